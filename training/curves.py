"""Pictures of numbers: what evaluations logged over the images seen, and histograms."""

import gc
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from storage.extra import require_extra
from storage.write import replace_file
from training import log
from training.log_facts import LogFacts, Point
from training.task import Figure

COLUMNS = 3
PANEL_INCHES = (4.2, 3.2)
DPI = 100
BINS = 40


def draw_curves(log_file: Path, picture: Path, figures: Mapping[str, Figure]) -> None:
    """Draws `figures` from log.jsonl into the PNG file `picture`, which is replaced as a whole.

    Figures with the same axis share a panel. Nothing is drawn without a logged figure, and without matplotlib, which
    is reported once.
    """
    draw_points(_read(log_file, figures), picture, figures)
    gc.collect()  # a figure of matplotlib is garbage in cycles, which is collected late otherwise


def draw_points(curves: Mapping[str, Sequence[Point]], picture: Path, figures: Mapping[str, Figure]) -> None:
    """Draws curves by the name of their figure, as `draw_curves` does."""
    panels = dict[str, dict[str, Sequence[Point]]]()
    for name, points in curves.items():
        panels.setdefault(figures[name].axis, {})[name] = points
    if not panels or (new_figure := figure_class()) is None:
        return
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    sheet = new_figure(figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
    grid = list(sheet.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for axes, (axis, panel) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, axis, panel, figures)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    save_sheet(sheet, picture)


def draw_histograms(sets: Mapping[str, Float[np.ndarray, "n"]], axis: str, picture: Path) -> None:
    """Draws the values of each set as a histogram into the PNG file `picture`, which is replaced as a whole.

    Nothing is drawn without matplotlib, which is reported.
    """
    if (new_figure := figure_class()) is None:
        return
    sheet = new_figure(figsize=(6.4, 3.2), layout="constrained")
    axes = sheet.subplots()
    edges = np.histogram_bin_edges(np.concatenate(list(sets.values())), BINS)
    for name, values in sets.items():
        axes.hist(values, edges.tolist(), density=True, alpha=0.5, label=f"{name}: {values.mean():.2f}")
    axes.set(xlabel=axis, ylabel="density")
    axes.legend(fontsize="small")
    save_sheet(sheet, picture)


def save_sheet(sheet: Any, picture: Path) -> None:
    """Replaces the PNG file `picture`, whose folder is created if it is absent, by a figure of matplotlib."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    replace_file(picture, lambda new: sheet.savefig(new, format="png", dpi=DPI), flush=False)


def _read(log_file: Path, figures: Mapping[str, Figure]) -> dict[str, Sequence[Point]]:
    """The logged values of each figure that has any, in the order of `figures`."""
    facts = LogFacts()
    for row in log.read(log_file):
        facts.add(row)
    return {name: facts.figures[name] for name in figures if name in facts.figures}


def _draw_panel(axes: Any, axis: str, curves: Mapping[str, Sequence[Point]], figures: Mapping[str, Figure]) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    for name, points in curves.items():
        figure, label = figures[name], f"{name} {points[-1][1]:.3g}"
        if figure.best is not None:
            images, value = figure.choose(points, key=lambda point: point[1])
            axes.plot(images, value, "o", markersize=9, fillstyle="none", color="black")
            label += f", best {value:.3g}"
        line = {"linestyle": "--", "color": "grey"} if figure.dashed else {"marker": ".", "linewidth": 1.5}
        axes.plot(*zip(*points, strict=True), label=label, **line)
    if any(figures[name].log for name in curves):
        values = [value for points in curves.values() for _, value in points]
        if min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:  # unbiased estimates of a distance may be below 0
            axes.set_yscale("symlog", linthresh=min((value for value in values if value > 0), default=1.0))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel="images seen", ylabel=axis)
    axes.tick_params(labelbottom=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


@cache
def figure_class() -> Any | None:
    """matplotlib's class of figures, which needs no display; None, with a message, if it is not installed."""
    try:
        require_extra("matplotlib", "train", "a picture of them")
    except ValueError as error:
        log.print_line(f"curves are not drawn: {error}")
        return None
    from matplotlib.figure import Figure as Sheet

    return Sheet
