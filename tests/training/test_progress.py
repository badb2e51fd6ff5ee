"""The bar fits every width: what matters least is left out, and no line is cut in the middle."""

import io

import pytest

from training.progress import Bar

WORDS = "loss=0.0323 norm=0.35 lr=0.00012 wait=0%"


def line(columns: int | None, desc: str | None = None, postfix: str = WORDS, total: int | None = 200_000) -> str:
    """A bar after 122,000 of 200,000 images, at 200 images per second."""
    options = {"unit": "img", "unit_scale": True, "prefix": desc, "rate": 200.0}
    return Bar.format_meter(122_000, total, 610, ncols=columns, postfix=postfix, **options)


@pytest.mark.parametrize(
    ("columns", "end"),
    [
        (100, f"06:30 left 200img/s, {WORDS}"),
        (79, f"06:30 left 200img/s, {WORDS}"),
        (69, "06:30 left 200img/s, loss=0.0323 norm=0.35 lr=0.00012"),
        (55, "06:30 left 200img/s, loss=0.0323 norm=0.35"),
        (39, "06:30 left loss=0.0323"),
        (25, "06:30 left"),
    ],
)
def test_words_are_left_out_from_the_last_one_on(columns: int, end: str) -> None:
    found = line(columns)
    assert found.startswith("122k/200k ")
    assert found.endswith(end)
    assert len(found) <= columns


def test_a_line_without_a_width_or_a_total_is_whole() -> None:
    assert line(None) == f"122k/200k 06:30 left 200img/s, {WORDS}"
    assert "122k/?" in line(60, total=None)


def test_the_description_is_left_out_last() -> None:
    assert line(45, "decoding images", "").startswith("decoding images 122k/200k ")
    assert line(36, "decoding images", "") == "decoding images 122k/200k 06:30 left"
    assert line(35, "decoding images", "").startswith("122k/200k ")


@pytest.mark.parametrize("columns", range(1, 90))
def test_no_width_is_exceeded(columns: int) -> None:
    assert len(line(columns, "decoding images")) <= columns


def test_there_is_none_in_a_file() -> None:
    file = io.StringIO()
    with Bar(range(3), file=file, disable=None) as bar:
        assert list(bar) == [0, 1, 2]
    assert file.getvalue() == ""
