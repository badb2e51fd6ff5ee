"""docs/architecture.md: its tables equal the rules of the packages and what is measured."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_arrows import ARROWS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
LIMITS = {"one update": 20, "one sample": 15}


def section(title: str) -> str:
    """The text under a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def floors() -> dict[str, int]:
    """The floor of each package: one above the highest that it imports."""
    found: dict[str, int] = {}
    while len(found) < len(ARROWS):
        for package, (below, _) in ARROWS.items():
            if below <= found.keys():
                found[package] = 1 + max((found[other] for other in below), default=-1)
    return found


def test_the_table_of_packages_equals_the_arrows() -> None:
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| .+? \| (.*?) ?\|$", section("Floors"), re.MULTILINE)
    assert {package: int(floor) for floor, package, _ in rows} == floors()
    for i, (_, package, imports) in enumerate(rows):
        above = {name for _, name, _ in rows[:i]}
        assert (above if imports == "all of the above" else set(re.findall(r"`(\w+)`", imports))) == ARROWS[package][0]


def test_the_picture_has_every_package_on_its_floor() -> None:
    picture = re.findall(r"^  floor (\d)   │(.*)$", section("Floors"), re.MULTILINE)
    assert {name: int(floor) for floor, line in picture for name in re.findall(r"\w+", line)} == floors()
    (scripts,) = re.findall(r"^  scripts   │(.*)$", section("Floors"), re.MULTILINE)
    assert set(re.findall(r"\w+\.py", scripts)) == {path.name for path in ROOT.glob("*.py")}


@pytest.fixture(scope="module")
def measured() -> dict[str, list[str]]:
    """The files of one update and of one sample, measured without the type checks of the tests."""
    command = [sys.executable, "-m", "tests.files_passed"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lists = re.findall(r"^(one \w+), \d+ files:\n((?:    .+\n)+)", done.stdout, re.MULTILINE)
    return {name: files.split() for name, files in lists}


@pytest.mark.parametrize("name", LIMITS)
def test_the_list_of_files_is_what_is_measured(name: str, measured: dict[str, list[str]]) -> None:
    rows = re.findall(r"^\| (\d+) \| `(\S+\.py)` \| .+ \|$", section(name.capitalize()), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert [file for _, file in rows] == measured[name]
    assert len(rows) <= LIMITS[name]


def test_other_files_on_the_page_exist() -> None:
    for name in re.findall(r"`([\w/]+\.py)`", PAGE):
        assert (ROOT / name).is_file(), name
