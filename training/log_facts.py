"""Facts of the log of a run: curves, figures and times, in 16 bytes for each number."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeGuard, overload

import numpy as np

Point = tuple[int, float]
"""images seen, value"""
NOT_FIGURES = {"images", "update", "time", "evaluated", "failed", "saved"}
LARGEST = float(np.finfo(np.float32).max)


class LoggedCurve(Sequence[Point]):
    """The values of one number of the log, over the images seen, in the order of the lines."""

    def __init__(self) -> None:
        self._images, self._values = array("q"), array("d")

    def append(self, images: int, value: float) -> None:
        """Adds the value after so many images."""
        self._images.append(images)
        self._values.append(value)

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> list[Point]: ...
    def __getitem__(self, index: int | slice) -> Point | list[Point]:
        if isinstance(index, slice):
            return list(zip(self._images[index], self._values[index], strict=True))
        return self._images[index], self._values[index]

    def __iter__(self) -> Iterator[Point]:
        return zip(self._images, self._values, strict=True)

    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the values, of which there is one or more."""
        low, middle, high = np.quantile(self._values, [0.25, 0.5, 0.75]).tolist()
        return low, middle, high


class LogFacts:
    """The facts of the lines that were added, in the order of the log."""

    def __init__(self) -> None:
        self.last_time: str | None = None
        """of the last line with a time"""
        self.images_seen = 0
        """the largest number of images of a line"""
        self.curves: dict[str, LoggedCurve] = {}
        """the finite values of every number, in the order in which they appeared"""
        self.figures: dict[str, LoggedCurve] = {}
        """as `curves`, of the lines that evaluations logged"""
        self.failed: list[Mapping[str, Any]] = []
        """the lines about evaluations that failed"""
        self.training_seconds = 0.0
        """of updates, without evaluations and checkpoints, from the speeds"""
        self.waiting_seconds = 0.0
        """of `training_seconds`, those that were spent waiting for data"""
        self._times: tuple[datetime, datetime] | None = None
        self._timed_lines = 0
        self._trained = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds the next line; `images` is a number from 0 to 2^63 - 1."""
        images = row["images"]
        self.images_seen = max(self.images_seen, images)
        if "failed" in row:
            self.failed.append(row)
        self._add_time(row.get("time"))
        self._add_interval(row)
        curves = self.figures if "evaluated" in row else self.curves
        for name, value in row.items():
            if is_number(value) and name not in NOT_FIGURES:
                curves.setdefault(name, LoggedCurve()).append(images, float(value))

    @property
    def speed(self) -> tuple[float, float, float] | None:
        """First quartile, median and third quartile of the images per second; None if none was logged."""
        speeds = self.curves.get("images_per_second")
        return None if speeds is None else speeds.quartiles()

    @property
    def elapsed_seconds(self) -> float | None:
        """Seconds from the first to the last time, interruptions included; None without two lines that have one."""
        if self._times is None or self._timed_lines < 2:
            return None
        first, last = self._times
        return (last - first).total_seconds()

    def _add_time(self, time: object) -> None:
        if time and isinstance(time, str):
            self.last_time = time
        if (moment := _moment(time)) is not None:
            first, last = self._times or (moment, moment)
            self._times = min(first, moment), max(last, moment)
            self._timed_lines += 1

    def _add_interval(self, row: Mapping[str, Any]) -> None:
        """Counts the seconds since the line before, if this line has a speed."""
        speed, wait = row.get("images_per_second"), row.get("data_wait")
        seconds = (row["images"] - self._trained) / speed if is_number(speed) and speed > 0 else 0.0
        if is_number(seconds) and seconds > 0:
            self.training_seconds += seconds
            self.waiting_seconds += seconds * min(max(wait, 0.0), 1.0) if is_number(wait) else 0.0
        if "loss" in row or "images_per_second" in row:  # an interval of skipped updates has no loss
            self._trained = row["images"]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a JSON document is a finite number, and no larger than those of float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
