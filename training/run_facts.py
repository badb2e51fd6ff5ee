"""What a run folder records about its run: settings, log, use of the machine. Damaged parts become notes."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from storage.read import is_regular, read_json
from storage.write import write_text
from training import log
from training.disk_space import ignore_disk_full
from training.run_folder import RunFolder
from training.yaml_file import read_settings

USAGE_FILE = "usage.json"
NOT_FIGURES = {"images", "update", "time", "evaluated", "failed", "saved"}
Point = tuple[int, float]
"""images seen, value"""


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder records it, in progress or finished. Reads only."""

    path: Path
    settings: Mapping[str, Any]
    """by dotted name"""
    rows: tuple[Mapping[str, Any], ...]
    """the lines of the log"""
    usage: Mapping[str, Any] = field(default_factory=dict)
    """see `add_usage`"""
    notes: tuple[str, ...] = ()
    """what of the folder could not be read"""

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self.settings.get("task", "unknown"))

    @property
    def total_images(self) -> int | None:
        """Images of the whole run; None if the settings have no such number."""
        total = self.settings.get("train.images")
        return int(total) if isinstance(total, int | float) else None

    @property
    def images_seen(self) -> int:
        """Images in the last line of the log; 0 without one."""
        return max((row["images"] for row in self.rows), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether all images were seen."""
        return self.total_images is not None and self.images_seen >= self.total_images

    @cached_property
    def curves(self) -> dict[str, list[Point]]:
        """The finite values of every number of the log, over the images seen, in the order in which they appeared."""
        return self._points([row for row in self.rows if "evaluated" not in row])

    @cached_property
    def figures(self) -> dict[str, list[Point]]:
        """As `curves`, of the numbers that evaluations logged."""
        return self._points([row for row in self.rows if "evaluated" in row])

    @property
    def training_seconds(self) -> float:
        """Seconds of updates, without evaluations and checkpoints, from the speeds of the log."""
        return float(sum(seconds for seconds, _ in self._intervals))

    @property
    def waiting_seconds(self) -> float:
        """Seconds of `training_seconds` that were spent waiting for data."""
        return float(sum(seconds * wait for seconds, wait in self._intervals))

    @property
    def elapsed_seconds(self) -> float | None:
        """Seconds from the first to the last line of the log, interruptions included; None without two such lines."""
        times = [moment for row in self.rows if (moment := _moment(row.get("time"))) is not None]
        return (max(times) - min(times)).total_seconds() if len(times) > 1 else None

    @property
    def speed(self) -> tuple[float, float, float] | None:
        """First quartile, median and third quartile of the images per second; None if none was logged."""
        values = [value for _, value in self.curves.get("images_per_second", [])]
        if not values:
            return None
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        return low, middle, high

    @cached_property
    def _intervals(self) -> list[tuple[float, float]]:
        """Seconds of training, and share of waiting, of each line of the log with a speed."""
        found, before = list[tuple[float, float]](), 0
        for row in self.rows:
            speed = row.get("images_per_second")
            if isinstance(speed, int | float) and speed > 0:
                wait = row.get("data_wait")
                found.append(((row["images"] - before) / speed, wait if isinstance(wait, int | float) else 0.0))
            if "loss" in row or "images_per_second" in row:  # an interval of skipped updates has no loss
                before = row["images"]
        return found

    @staticmethod
    def _points(rows: list[Mapping[str, Any]]) -> dict[str, list[Point]]:
        found = dict[str, list[Point]]()
        for row in rows:
            for name, value in row.items():
                if _is_number(value) and name not in NOT_FIGURES:
                    found.setdefault(name, []).append((row["images"], float(value)))
        return found


def read_facts(path: Path) -> RunFacts:
    """The facts of a run folder. Raises ValueError for another folder, and for settings that cannot be read."""
    folder = RunFolder(path)
    if not is_regular(folder.config):
        raise ValueError(f"{str(path)!r} is no run folder (no config.yaml); give a run folder of train.py")
    settings, _ = read_settings(folder.config, is_record=True)
    rows, usage, notes = list[Mapping[str, Any]](), dict[str, Any](), list[str]()
    damaged = 0
    try:
        for row in log.read_lines(folder.log):
            if row is None:
                damaged += 1
            else:
                rows.append(row)
    except (ValueError, OSError) as error:
        notes.append(f"log.jsonl cannot be read: {error}")
    if damaged:
        notes.append(f"{damaged:,} damaged lines of log.jsonl are left out")
    try:
        if (path / USAGE_FILE).exists():
            usage = read_json(path / USAGE_FILE)
    except (ValueError, OSError) as error:
        notes.append(f"{USAGE_FILE} cannot be read: {error}")
    return RunFacts(path, settings, tuple(rows), usage, tuple(notes))


def add_usage(path: Path, seconds: Mapping[str, float], machine: Mapping[str, Any], device_bytes: int | None) -> None:
    """Adds to RUN/usage.json: seconds of evaluations, checkpoints and the like; and replaces machine and peak memory.

    The memory is that of the main process. A full disk is ignored.
    """
    try:
        before = read_json(path / USAGE_FILE).get("seconds")
    except (ValueError, OSError):  # absent, or damaged
        before = None
    spent = {name: value for name, value in before.items() if _is_number(value)} if isinstance(before, dict) else {}
    for name, value in seconds.items():
        spent[name] = spent.get(name, 0.0) + value
    document = {
        "seconds": {name: round(value, 3) for name, value in spent.items()},
        "machine": dict(machine),
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_device_memory_bytes": device_bytes,
    }
    with ignore_disk_full():
        write_text(path / USAGE_FILE, json.dumps(document, indent=2) + "\n")


def peak_memory_bytes() -> int | None:
    """The most memory that this process has used; None where the system does not count it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
