"""Pictures of findings: axes with units, one colour per curve, the range over the seeds as a band or as error bars."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.finding import Curve, Finding, Panel, Value
from storage.extra import require_extra
from storage.write import replace_file

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
"""distinguishable with every kind of colour blindness (Okabe and Ito 2008)"""
MARKERS = "os^DvP*X"
PANEL_INCHES = (4.8, 3.4)
DPI = 100
IN_ROW = 2
"""panels side by side, so that a picture can be read where it is 900 pixels wide"""
LABEL, TITLE = 34, 54
"""characters in a line of the name of an axis, and of the title above one panel"""
TICKS = 8
"""points of a logarithmic axis that have their own marks; more have powers of ten"""


def draw(finding: Finding, path: Path) -> None:
    """Replaces the PNG file `path` by the panels of a finding. Raises ValueError without matplotlib."""
    require_extra("matplotlib", "train", "a picture")
    from matplotlib.figure import Figure

    panels = finding.panels
    columns = min(IN_ROW, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = PANEL_INCHES[0] * max(columns, 1.4)
    sheet = Figure(figsize=(width, PANEL_INCHES[1] * rows), dpi=DPI, layout="constrained")
    places = list(sheet.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in places[len(panels) :]:
        axes.remove()
    title = finding.message[:1].upper() + finding.message[1:]
    sheet.suptitle(textwrap.fill(title, round(TITLE * width / PANEL_INCHES[0])), fontsize="medium")
    replace_file(path, lambda new: sheet.savefig(new, format="png"), flush=False)


def _draw_panel(axes: Any, panel: Panel) -> None:
    bars = [curve for curve in panel.curves if isinstance(curve.x[0], str)]
    for i, curve in enumerate(panel.curves):
        if curve in bars:
            _draw_bars(axes, curve, COLORS[i % len(COLORS)], (i - (len(bars) - 1) / 2) * 0.8 / len(bars), len(bars))
        else:
            _draw_line(axes, curve, COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)])
    if "x" in panel.log:
        axes.set_xscale("log")
        if len(points := sorted({x for curve in panel.curves for x in curve.x})) <= TICKS:
            axes.set_xticks(points, [f"{point:g}" for point in points])
        axes.tick_params(axis="x", which="minor", labelbottom=False)
    if "y" in panel.log:
        axes.set_yscale("log")
    axes.set(xlabel=textwrap.fill(panel.x, LABEL), ylabel=textwrap.fill(panel.y, LABEL))
    axes.grid(alpha=0.3)
    if len(panel.curves) > 1 or not bars:
        names = [len(curve.name) for curve in panel.curves]
        in_row = min(len(names), max(1, 62 // (max(names) + 6)))
        axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=in_row, frameon=False)


def _draw_line(axes: Any, curve: Curve, color: str, marker: str) -> None:
    middle, low, high = _spread(curve.y)
    axes.plot(curve.x, middle, color=color, label=curve.name, marker=marker if len(middle) <= 30 else "", markersize=4)
    if low != high:
        axes.fill_between(curve.x, low, high, color=color, alpha=0.2, linewidth=0)


def _draw_bars(axes: Any, curve: Curve, color: str, offset: float, count: int) -> None:
    middle, low, high = _spread(curve.y)
    places = [place + offset for place in range(len(middle))]
    errors = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
    axes.bar(
        places, middle, 0.8 / count, yerr=errors if low != high else None, color=color, label=curve.name, capsize=2
    )
    turned = {"rotation": 30, "ha": "right"} if sum(map(len, map(str, curve.x))) > 30 else {}
    axes.set_xticks(range(len(curve.x)), curve.x, fontsize="small", **turned)


def _spread(values: Sequence[Value]) -> tuple[list[float], list[float], list[float]]:
    """Median, least and largest value of each point."""
    points = [[value] if isinstance(value, int | float) else [float(one) for one in value] for value in values]
    return [statistics.median(point) for point in points], [*map(min, points)], [*map(max, points)]
