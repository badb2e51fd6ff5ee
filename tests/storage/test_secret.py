import pytest

from storage.secret import hide_secrets, secret_in

TOKEN = "hf_0123456789abcdef"


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PASSWORD", "MY_SECRET"])
def test_the_value_of_a_variable_is_hidden(monkeypatch, name):
    monkeypatch.setenv(name, TOKEN)
    assert secret_in(f"401 for {TOKEN}.") == name
    assert hide_secrets(f"401 for {TOKEN}.") == f"401 for <{name}>."


def test_passwords_in_addresses_are_hidden():
    assert secret_in("https://me:word@host/x") is not None
    assert hide_secrets("at https://me:word@host/x") == "at https://<password>@host/x"


@pytest.mark.parametrize("text", ["", "https://host:80/x", "hub:me/pets@v1", "me@host", "s3://bucket/a:b", "12"])
def test_other_texts_stay(monkeypatch, text):
    monkeypatch.setenv("HF_TOKEN", "12")  # too short to be one
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "https://host:80/x")
    assert secret_in(text) is None
    assert hide_secrets(text) == text
