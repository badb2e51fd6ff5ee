"""The README's Python runs, and its recipes and files exist."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tasks import RUNS
from training.cli import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["y"].shape == (2, 128, 16, 16)
    assert names["eps"].shape == (2, 3, 32, 32)
    assert (tmp_path / "folder" / "model.safetensors").is_file()


def test_the_files_that_the_readme_names_exist() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(links) > 4
    for name in [*links, *re.findall(r"configs/\S+?\.yaml", README)]:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_recipe_is_understood_and_says_what_to_expect(recipe: str) -> None:
    path = ROOT / "configs" / recipe
    assert parse(RUNS, ["--config", str(path)]).folder.name == path.stem
    header = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert all(word in header for word in ("Hardware:", "ime", "esult"))


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs" / "accelerate").glob("*.yaml")))
def test_accelerate_reads_its_config_files(name: str) -> None:
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / name))
    assert config.num_processes >= 1
    assert config.mixed_precision == "no"
