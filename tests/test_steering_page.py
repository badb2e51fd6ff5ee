"""docs/steering.md: its commands and pictures are those of benchmarks/gallery.py, and sample.py reads them."""

import re
from pathlib import Path

import pytest

import sample
from benchmarks.gallery import ROWS, write_inputs
from drawing.options import check_together

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "steering.md").read_text()


def test_every_command_of_the_page_draws_a_picture_of_it() -> None:
    commands = re.findall(r"^python (sample\.py .+)$", PAGE, re.MULTILINE)
    assert commands == [row.command for row in ROWS.values()]
    shown = re.findall(r"\]\(gallery/(\w+)\.\w+\)", PAGE)
    assert shown == list(ROWS)
    for path in (ROOT / "docs" / "gallery").iterdir():
        assert path.stat().st_size < 60_000, path


@pytest.mark.parametrize("name", ROWS)
def test_the_commands_are_read(name: str) -> None:
    script, *words = ROWS[name].command.split()
    assert script == "sample.py"
    check_together(sample.parser().parse_args(words))


def test_the_mask_of_the_page_is_that_of_the_script(tmp_path: Path) -> None:
    write_inputs(tmp_path, tmp_path / "runs")
    assert (tmp_path / "mask.png").read_bytes() == (ROOT / "docs" / "gallery" / "mask.png").read_bytes()
