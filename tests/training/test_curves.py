"""The picture of the figures that evaluations logged."""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure as Sheet
from PIL import Image

from training import curves
from training.curves import draw_curves
from training.task import Figure

FIGURES = {
    "distance": Figure("distance (squared features)", log=True, best="lowest"),
    "floor": Figure("distance (squared features)", log=True, dashed=True),
    "top1": Figure("share of images"),
    "never": Figure("is not logged"),
}


@pytest.fixture
def drawn(monkeypatch) -> list[Sheet]:
    """The pictures that are drawn."""
    sheets: list[Sheet] = []

    def sheet(**options) -> Sheet:
        sheets.append(Sheet(**options))
        return sheets[-1]

    monkeypatch.setattr(curves, "figure_class", lambda: sheet)
    return sheets


def log_of(path: Path, *rows: dict) -> Path:
    path.write_text("".join(f"{json.dumps({'update': 1, **row})}\n" for row in rows))
    return path


ROWS = [
    {"images": 100, "evaluated": True, "distance": 8.0, "floor": 0.5, "top1": 0.25},
    {"images": 150, "loss": 1.0, "distance": 99.0},
    {"images": 200, "evaluated": True, "distance": 2.0, "floor": 0.5, "top1": "damaged"},
    {"images": 300, "evaluated": True, "distance": 4.0, "floor": 0.5, "other": 1.0},
]


def test_no_figure_stays_in_memory(tmp_path):
    file = log_of(tmp_path / "log.jsonl", *ROWS)
    gc.disable()
    try:
        draw_curves(file, tmp_path / "metrics.png", FIGURES)
        assert not [each for each in gc.get_objects() if type(each) is Sheet]
    finally:
        gc.enable()


def test_every_logged_figure_is_a_curve_over_the_images_seen(tmp_path, drawn):
    draw_curves(log_of(tmp_path / "log.jsonl", *ROWS), tmp_path / "metrics.png", FIGURES)
    [sheet] = drawn
    distance, share = (axes for axes in sheet.axes if axes.axison)
    lines = {line.get_label().split()[0]: line for line in distance.get_lines() if line.get_label()[0] != "_"}
    assert lines["distance"].get_xydata().tolist() == [[100, 8], [200, 2], [300, 4]]
    assert lines["floor"].get_xydata().tolist() == [[100, 0.5], [200, 0.5], [300, 0.5]]
    assert (lines["distance"].get_linestyle(), lines["floor"].get_linestyle()) == ("-", "--")
    assert [line.get_xydata().tolist() for line in distance.get_lines() if line.get_label()[0] == "_"] == [[[200, 2]]]
    assert "best 2" in lines["distance"].get_label()
    assert (distance.get_yscale(), share.get_yscale()) == ("log", "linear")
    assert (distance.get_ylabel(), distance.get_xlabel()) == ("distance (squared features)", "images seen")
    assert [line.get_xydata().tolist() for line in share.get_lines()] == [[[100, 0.25]]]
    with Image.open(tmp_path / "metrics.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tmp-")] == []


def test_distances_below_zero_are_drawn(tmp_path, drawn):
    rows = [{"images": 1, "evaluated": True, "distance": -0.1}, {"images": 2, "evaluated": True, "distance": 0.2}]
    draw_curves(log_of(tmp_path / "log.jsonl", *rows), tmp_path / "metrics.png", FIGURES)
    assert drawn[0].axes[0].get_yscale() == "symlog"


def test_a_number_that_no_float_holds_is_left_out(tmp_path, drawn):
    draw_curves(log_of(tmp_path / "log.jsonl", *ROWS, {**ROWS[0], "top1": 10**400}), tmp_path / "metrics.png", FIGURES)
    assert drawn[0].axes[1].lines[0].get_xydata().tolist() == [[100, 0.25]]


@pytest.mark.parametrize("rows", [[], [{"images": 1, "evaluated": True, "other": 1.0}], [{"images": 1, "loss": 2.0}]])
def test_nothing_is_drawn_without_a_figure(tmp_path, drawn, rows):
    draw_curves(log_of(tmp_path / "log.jsonl", *rows), tmp_path / "metrics.png", FIGURES)
    assert not (tmp_path / "metrics.png").exists()


def test_a_run_without_matplotlib_prints_it_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    curves.figure_class.cache_clear()
    for _ in range(2):
        draw_curves(log_of(tmp_path / "log.jsonl", *ROWS), tmp_path / "metrics.png", FIGURES)
    curves.figure_class.cache_clear()
    assert not (tmp_path / "metrics.png").exists()
    assert capsys.readouterr().out.count("[train]") == 1


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_panels_without_curves_are_hidden(tmp_path, drawn, count):
    figures = {f"figure{number}": Figure(f"axis {number}") for number in range(count)}
    row = {"images": 1, "evaluated": True, **dict.fromkeys(figures, 1.0)}
    draw_curves(log_of(tmp_path / "log.jsonl", row), tmp_path / "metrics.png", figures)
    assert [axes.get_ylabel() for axes in drawn[0].axes if axes.axison] == [each.axis for each in figures.values()]
