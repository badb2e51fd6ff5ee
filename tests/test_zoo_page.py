"""docs/zoo.md: its table is up to date, and its Python gives the results in its comments."""

import re

import pytest

import resnet
from benchmarks.zoo_table import PAGE, TABLE, table
from resnet.layouts.resnets import LAYOUTS

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_table_is_up_to_date() -> None:
    (found,) = TABLE.findall(TEXT)
    assert found == table(), "python -m benchmarks.zoo_table writes it anew"
    assert set(re.findall(r"^\| `(\w+)` \| [\d,]+ \|", found, re.MULTILINE)) == set(resnet.list_models())


def test_the_python_of_the_page_runs(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(str(tmp_path))
    made: dict = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, made)
    printed = capsys.readouterr().out
    assert printed.startswith(resnet.summary(resnet.create_model("resnet50"), 224))
    for line in re.findall(r"^# ((?:conv1|fc).*)$", TEXT, re.MULTILINE):
        assert line in printed
    assert made["logits"].shape == (2, 10)
    assert [level.shape[1] for level in (made["c2"], made["c3"], made["c4"], made["c5"])] == [256, 512, 1024, 2048]
    assert f"net.feature_info  # {resnet.model_info('resnet50').config.feature_info}: " in TEXT
    assert f"pyramid.feature_info  # {made['pyramid'].feature_info}" in TEXT
    assert [96 // made[p].shape[-1] for p in ("p2", "p3", "p4", "p5")] == [4, 8, 16, 32]
    assert made["larger"].shape == (1, 3, 48, 48)
    assert f"parameters  # {resnet.model_info('resnet50').parameters};" in TEXT
    assert f"# {resnet.list_models('res*50*')[:4]}"[:-1] in TEXT


def test_the_page_lists_all_layouts() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| [^|\d]", TEXT, re.MULTILINE)) == set(LAYOUTS)
