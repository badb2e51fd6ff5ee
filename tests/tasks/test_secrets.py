"""Tokens of the environment reach no file of a run and no line of its output."""

import pytest

import train as script
from pipelines.diffusion_folder import load_model
from tasks.grid_evaluation import GridEvaluation
from tests.training.toy import accelerator, config

TOKENS = {"HF_TOKEN": "hf_marker0123456789", "WANDB_API_KEY": "marker9876543210"}
CONFIG = """
data: {source: digits, cache: cache}
model: {base_channels: 8, channel_multipliers: [1], blocks_per_level: 1, attention_levels: [], groups: 4}
sample: {num: 1, steps: 1}
train: {images: 4, batch: 4, precision: float32}
schedule: {warmup_images: 0}
"""


@pytest.fixture(autouse=True)
def _tokens(tmp_path, monkeypatch):
    for name, value in TOKENS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    accelerator(config())  # a fresh state
    (tmp_path / "run.yaml").write_text(CONFIG)


def test_no_file_and_no_line_of_a_run_has_a_token(tmp_path, monkeypatch, capfd):
    def fail(*arguments):
        raise ConnectionError(f"401 for https://me:password1@host with {' and '.join(TOKENS.values())}")

    monkeypatch.setattr(GridEvaluation, "run", fail)
    script.main(["--config", "run.yaml", "--run", "run"])
    (tmp_path / "run/card.md").write_text(load_model(tmp_path / "run").model_card("me/digits"))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.yaml", "log.jsonl", "report.html", "state.json", "hparams.yml"} <= names
    printed = capfd.readouterr()
    texts = {str(path): path.read_bytes() for path in files} | {"printed": (printed.out + printed.err).encode()}
    for secret in (*TOKENS.values(), "password1"):
        assert [name for name, text in texts.items() if secret.encode() in text] == []
    assert b"<HF_TOKEN>" in texts[str(tmp_path / "run/log.jsonl")], "the failure is there"


@pytest.mark.parametrize("value", [f"hub:me/{TOKENS['HF_TOKEN']}", "https://me:password1@host/images"])
def test_a_secret_in_a_setting_is_refused_without_showing_it(tmp_path, capfd, value):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--config", "run.yaml", "--run", "run", "--data.source", value])
    (line,) = capfd.readouterr().err.splitlines()
    assert "data.source" in line
    assert not [secret for secret in (*TOKENS.values(), "password1") if secret in line]
    assert not (tmp_path / "run").exists()
