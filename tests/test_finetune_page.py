"""The page about fine-tuning: its flags exist, its config is read, its Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from export import parser
from tasks import RUNS
from training.cli import Schema, parse
from training.flags import read_flags

PAGE = (Path(__file__).parent.parent / "docs" / "finetune.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_there_is_a_command_for_each_home_of_a_checkpoint() -> None:
    assert len(COMMANDS) >= 8
    assert {command[1] for command in COMMANDS} == {"train.py", "export.py"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[1:]))
def test_the_commands_are_understood(command: list[str]) -> None:
    if command[1] == "export.py":
        parser().parse_args(command[2:])
        return
    _, flags = read_flags(command[2:])
    given = {name: text for name, text in flags.items() if name != "init"}  # it would be opened
    assert set(Schema(RUNS["diffusion"], {}, given).values()) >= set(given)


def test_the_config_is_read(tmp_path: Path) -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "finetune.yaml").write_text(config)
    run = parse(RUNS, ["--config", str(tmp_path / "finetune.yaml")]).run
    assert (run.train.images, run.optimizer.learning_rate, run.schedule.warmup_images) == (200_000, 5e-5, 5_000)


def test_the_python_makes_a_plain_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a.weight": torch.arange(6.0).view(2, 3).T}}, "checkpoint.pt")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    assert load_file("checkpoint.safetensors")["a.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
