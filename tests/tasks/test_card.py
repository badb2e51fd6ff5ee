"""Model cards: licence, figures with their floors, seeds and settings, and nothing that takes effect as markup."""

import json
from pathlib import Path

import pytest
import yaml

from tasks.card import check_licence, complete_card
from training.yaml_file import write_yaml

CARD = """---
library_name: x
# license: name yours here, such as apache-2.0
---

# Title
"""
EVIL = "a`\n---\nlicense: evil\n# <script>"


def run_of(path: Path) -> Path:
    path.mkdir()
    settings = {"task": "diffusion", "data": {"source": EVIL, "validation": 0.1}, "train": {"images": 9, "seed": 3}}
    (path / "config.yaml").write_text(write_yaml({"format_version": 2, **settings, "quality": {"seed": 7}}))
    rows = [
        {"images": images, "update": 1, "evaluated": True, "frechet_distance": value, "frechet_floor": 0.25}
        | {"quality_images": 1797.0, EVIL: 1.0}
        for images, value in ((4, 8.0), (9, 2.0))
    ]
    (path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def header(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("card", [CARD, "# Title\n"])
def test_the_licence_is_in_the_header(card: str, tmp_path: Path) -> None:
    found = complete_card(card, str(tmp_path), None, "cc-by-4.0")
    assert header(found)["license"] == "cc-by-4.0"
    assert "name yours here" not in found
    assert found.endswith("\n\n# Title\n")
    assert complete_card(card, str(tmp_path), None, None) == card


@pytest.mark.parametrize("licence", ["", "a b", "x\nmodel: y", "a: b", "-", "é"])
def test_a_licence_that_is_no_identifier_is_refused(licence: str) -> None:
    with pytest.raises(ValueError, match="license="):
        check_licence(licence)
    check_licence("apache-2.0")


def test_the_run_gives_figures_with_floor_number_and_seeds(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    found = complete_card(CARD, str(run), 9, None)
    assert "| frechet\\_distance | 2 | frechet\\_floor 0\\.25 |" in found
    assert "1,797 images were compared" in found
    assert "train\\.seed 3, quality\\.seed 7" in found
    assert "| 8 |" in complete_card(CARD, str(run), 4, None)
    assert "## Figures" not in complete_card(CARD, str(run), 9, None, is_main=False)
    assert "## Figures" not in complete_card(CARD, str(run), 5, None)


def test_nothing_of_the_run_becomes_markup(tmp_path: Path) -> None:
    found = complete_card(CARD, str(run_of(tmp_path / "run")), 9, "mit")
    assert header(found) == {"library_name": "x", "license": "mit"}
    lines = found.split("---\n", 2)[2].splitlines()
    assert not [line for line in lines if line.startswith(("---", "license")) or "<script>" in line[:4]]
    outside = [line for line in lines if not line.startswith("    ")]
    assert "<script>" not in "\n".join(outside)


def test_of_absolute_paths_only_the_last_part_is_published(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    paths = {
        "source": "/home/someone/private/cats",
        "label_file": "C:\\Users\\someone\\labels.csv",
        "cache": "~/someone/cache",
        "variables": ["/home/someone/a.nc", "t2m"],
    }
    settings = {"format_version": 2, "init": "/home/someone/model", "teacher": "runs/digits", "data": paths}
    (run / "config.yaml").write_text(write_yaml(settings))
    found = complete_card(CARD, str(run), 9, None)
    assert "someone" not in found
    assert "- data: cats\n" in found
    shown = yaml.safe_load(found.rpartition("only the last part is shown:\n")[2])
    assert shown.pop("data") == {
        "source": "cats",
        "label_file": "labels.csv",
        "cache": "cache",
        "variables": ["a.nc", "t2m"],
    }
    assert shown == {"init": "model", "teacher": "runs/digits"}
