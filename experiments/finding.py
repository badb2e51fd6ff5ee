"""Results of an experiment: a table, the curves of a picture, and a verdict on each claim."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from storage.write import write_text

Verdict = Literal["holds", "holds with a limit", "does not hold", "too small to tell"]
Value = float | str | Sequence[float]
"""a number, a text, or one number per seed"""
DIGITS = 6
"""significant digits of the numbers in JSON files"""


@dataclass(frozen=True)
class Claim:
    """What an experiment measured of one item of `claims.yaml`."""

    item: int
    measured: str
    """in words, with the numbers"""
    verdict: Verdict


@dataclass(frozen=True)
class Curve:
    """One line of a panel, or its bars if `x` has texts. Where `y` has values per seed, their range is drawn."""

    name: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[Value]


@dataclass(frozen=True)
class Panel:
    """Curves with common axes, whose names include their units."""

    x: str
    y: str
    curves: Sequence[Curve]
    log: Literal["", "x", "y", "xy"] = ""
    """logarithmic axes"""


@dataclass(frozen=True)
class Finding:
    """What an experiment found.

    Raises ValueError for rows that do not fit the columns, for numbers that are not finite, and for unknown verdicts.
    """

    message: str
    """what was found, as a title"""
    columns: Mapping[str, str]
    """names of the columns of the table, with the unit of each; an empty text for none"""
    rows: Sequence[Sequence[Any]]
    """a `Value` per column"""
    claims: Sequence[Claim]
    panels: Sequence[Panel]
    seeds: int = 0
    """number of seeds; 0: nothing is random"""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"the row {list(row)} should have {len(self.columns)} values: {list(self.columns)}")
        for claim in self.claims:
            if claim.verdict not in get_args(Verdict):
                raise ValueError(f"item {claim.item}: no verdict {claim.verdict!r}; one of: {get_args(Verdict)}")
        _require_finite("rows", self.rows)
        _require_finite("panels", [curve.y for panel in self.panels for curve in panel.curves])

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Finding":
        """The finding whose JSON file has this content."""
        names = [field.name for field in fields(cls)]
        found = {name: document[name] for name in names}
        found["claims"] = [Claim(**claim) for claim in document["claims"]]
        panels = [panel | {"curves": [Curve(**curve) for curve in panel["curves"]]} for panel in document["panels"]]
        return cls(**found | {"panels": [Panel(**panel) for panel in panels]})

    def table(self) -> str:
        """The table in Markdown: values per seed as median and range."""
        header = [name + (f" ({unit})" if unit else "") for name, unit in self.columns.items()]
        rows = [header, ["---"] * len(header), *([show(value) for value in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def verdicts(self) -> str:
        """One line per claim."""
        return "\n".join(f"{claim.item:>3} {claim.verdict}: {claim.measured}" for claim in self.claims)

    def write(self, path: Path, **details: Any) -> None:
        """Replaces the JSON file `path`. `details` are further entries."""
        write_text(path, json.dumps(details | _plain(asdict(self)), indent=1, ensure_ascii=False) + "\n")


def show(value: Value) -> str:
    """A value of a table; values per seed as median and range."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if len(value) == 1:
        return show(value[0])
    return f"{statistics.median(value):.4g} ({min(value):.4g} to {max(value):.4g})"


def holds(condition: bool, limit: bool = False) -> Verdict:
    """The verdict on a claim that a measurement without chance confirms or refutes. `limit`: only within a limit."""
    return limited("holds" if condition else "does not hold", limit)


def compare(differences: Sequence[float], least: float = 0.0) -> Verdict:
    """The verdict on a claim that all `differences`, one per seed, are positive.

    It is "too small to tell" if the seeds differ in sign, or if one of them is not above `least` in size.
    """
    if min(differences) > least:
        return "holds"
    return "does not hold" if max(differences) < -least else "too small to tell"


def limited(verdict: Verdict, limit: bool) -> Verdict:
    """The verdict, with a limit if it holds and there is one."""
    return "holds with a limit" if verdict == "holds" and limit else verdict


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, int | float):
        return [value]
    return [] if isinstance(value, str) else [number for part in value for number in _numbers(part)]


def _require_finite(what: str, value: Any) -> None:
    if wrong := [number for number in _numbers(value) if not math.isfinite(number)]:
        raise ValueError(f"{what} has {wrong[0]}: all numbers of a finding must be finite")


def _plain(value: Any) -> Any:
    """The value for JSON, with rounded numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
