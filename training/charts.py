"""Curves as inline SVG of fixed size, for pages that need no library to be shown."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 34
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989")
MAX_POINTS = 400
"""of a curve; of more, evenly spaced ones and the last are drawn"""
SMALLEST = 1e-290
"""of values and differences that have ticks of their own; floats end at 1e-308"""
Curve = Sequence[tuple[float, float]]


def chart(curves: Mapping[str, Curve], log: bool = False, dashed: Sequence[str] = (), title: str = "") -> str:
    """One SVG element with curves over the images seen, and a legend below it if there are several.

    `log` scales the vertical axis logarithmically if all values are above `SMALLEST`. The curves named in `dashed` are
    grey and dashed. Curves have one point or more, with finite values of float32.
    """
    points = {name: _thinned(curve) for name, curve in curves.items()}
    xs, ys = ([point[axis] for curve in points.values() for point in curve] for axis in (0, 1))
    log = log and min(ys) > SMALLEST
    low, high, ticks = _log_axis(min(ys), max(ys)) if log else _axis(min(ys), max(ys))
    step = None if log else ticks[1] - ticks[0]
    scale: Callable[[float], float] = math.log10 if log else float
    left, right = (0.0, max(xs)) if max(xs) > 0 else (-0.5, 0.5)

    def x_of(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (scale(value) - scale(low)) / (scale(high) - scale(low)) * (HEIGHT - TOP - BOTTOM)

    lines = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    for tick in ticks:
        y = y_of(tick)
        lines.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_short(tick, step)}</text>')
    for tick in _axis(left, right, 4)[2]:
        if left <= tick <= right:
            anchor = "end" if x_of(tick) > WIDTH - 3 * RIGHT else "middle"
            lines.append(f'<text x="{x_of(tick):.1f}" y="{HEIGHT - 20}" text-anchor="{anchor}">{_short(tick)}</text>')
    lines.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 5}" text-anchor="middle">images seen</text>')
    for number, (name, curve) in enumerate(points.items()):
        colour = "#6e7781" if name in dashed else COLOURS[number % len(COLOURS)]
        places = [(x_of(x), y_of(y)) for x, y in curve]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dash = ' stroke-dasharray="5 4"' if name in dashed else ""
        lines.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        if len(places) <= 30 and name not in dashed:
            lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"/>' for x, y in places]
    lines.append("</svg>")
    if len(points) > 1:
        keys = (
            f'<span class="key" style="color:{"#6e7781" if name in dashed else COLOURS[n % len(COLOURS)]}">'
            f"{'╌' if name in dashed else '━'} {escape(name)}</span>"
            for n, name in enumerate(points)
        )
        lines.append(f'<p class="legend">{" ".join(keys)}</p>')
    return "".join(lines)


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    step = -(-len(curve) // MAX_POINTS)
    kept = list(curve[::step])
    return kept if kept[-1] == curve[-1] else [*kept, curve[-1]]


def _axis(low: float, high: float, count: int = 5) -> tuple[float, float, list[float]]:
    """Ends of a linear axis around the values, and about `count` round ticks."""
    if high - low <= 1e-9 * max(abs(low), abs(high), SMALLEST):
        margin = abs(high) / 2 or 1.0
        low, high = low - margin, high + margin
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, last * step, [number * step for number in range(first, last + 1)]


def _log_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends of a logarithmic axis around positive values, and ticks at 1, 2 and 5, or at powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    factors = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    low_end = max((tick for tick in ticks if tick <= low), default=low / 2)
    high_end = min((tick for tick in ticks if tick >= high and tick > low_end), default=high * 2)
    kept = [tick for tick in ticks if low_end <= tick <= high_end]
    return low_end, high_end, kept[:: -(-len(kept) // 8)]


def _short(value: float, step: float | None = None) -> str:
    """A number of an axis in few characters: 250k, 1.5M, 0.02. Numbers that differ by `step` have different texts."""
    digits = 3
    if step is not None and abs(value) > step:
        digits = max(digits, math.floor(math.log10(abs(value))) - math.floor(math.log10(step)) + 1)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.{digits}g}{name}"
    return f"{value:.{digits}g}"
