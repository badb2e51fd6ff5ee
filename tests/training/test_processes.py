import pytest

from training.processes import LAUNCHER, check_environment, on_main, process_state
from training.script import command


def test_processes_that_do_not_see_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 processes were launched, but each would train alone"):
        process_state()


def test_on_main_returns_and_raises():
    assert on_main(lambda: 3) == 3
    with pytest.raises(OSError, match="disk full"):
        on_main(lambda: (_ for _ in ()).throw(OSError("disk full")))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_FSDP", "True"),
        ("ACCELERATE_USE_MEGATRON_LM", "1"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "yes"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("RANK", "first"),
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "-1"),
        ("LOCAL_RANK", "0x1"),
        ("TORCHELASTIC_RESTART_COUNT", "2.5"),
    ],
)
def test_what_a_launcher_requests_in_vain_is_one_line(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        command(lambda argv: process_state())([])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name}={value}" in line or f"{name}={value!r}" in line


@pytest.mark.parametrize("value", ["", "no", "NO", "false", "0"])
def test_what_a_launcher_does_not_ask_for_is_fine(monkeypatch, value):
    for name in LAUNCHER:
        monkeypatch.setenv(name, value)
    check_environment()
