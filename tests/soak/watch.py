"""Samples memory, open files and threads of training processes, and finds what is left of them at the end."""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from tests.torture.runs import Started

EVERY_S = 0.5
WARM_UP_S = 30.0
"""from the first update that was seen: allocators, thread pools and the first evaluations take their memory"""
COOL_DOWN_S = 5.0
"""before the end: a process that stops ends its threads"""
MIN_S = 30.0
"""length of the shortest series whose slope counts"""
SHARED = Path("/dev/shm")


@dataclass
class Series:
    """Samples of one process."""

    rank: int
    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    """resident memory"""
    files: list[int] = field(default_factory=list)
    """open file handles"""
    threads: list[int] = field(default_factory=list)

    def add(self, process: psutil.Process) -> None:
        """Appends a sample; nothing if the process has ended."""
        with contextlib.suppress(psutil.Error, OSError), process.oneshot():
            now = process.memory_info().rss, process.num_fds(), process.num_threads()
            self.seconds.append(time.monotonic())
            for values, value in zip((self.bytes, self.files, self.threads), now, strict=True):
                values.append(value)

    @property
    def warm(self) -> slice:
        """The samples between warm-up and end."""
        edges = self.seconds[0] + WARM_UP_S, self.seconds[-1] - COOL_DOWN_S
        return slice(*np.searchsorted(self.seconds, edges).tolist())

    @property
    def length(self) -> float:
        """Seconds between warm-up and end."""
        return max(0.0, self.seconds[-1] - self.seconds[0] - WARM_UP_S - COOL_DOWN_S) if self.seconds else 0.0


class Watch:
    """A thread that samples the ranks of a command from its first update on."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self._started: Started | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def follow(self, started: Started | None) -> None:
        """Samples the present ranks of this command until the next call; none without one."""
        self._started = started

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        known: dict[psutil.Process, Series] = {}
        followed = None
        while not self._ended.wait(EVERY_S):
            if followed is not (started := self._started):
                followed, known = started, {}
                for rank, process in enumerate(started.ranks() if started else []):
                    known[process] = Series(rank)
                    self.series.append(known[process])
            for process, series in known.items():
                series.add(process)


@dataclass(frozen=True)
class Slopes:
    """The change of a figure per hour: mean over processes and its standard error; `level` is the figure itself."""

    mean: float
    error: float
    level: float
    count: int
    hours: float

    @classmethod
    def of(cls, series: Sequence[Series], name: str) -> "Slopes | None":
        """Least-squares slopes of the long series, weighted by the cube of their length; None without two of them.

        The cube is proportional to the precision of a slope. The error follows from the differences between series.
        """
        long = [each for each in series if each.length >= MIN_S]
        if len(long) < 2:
            return None
        slopes, weights, levels = [], [], []
        for each in long:
            seconds, values = np.array(each.seconds[each.warm]), np.array(getattr(each, name)[each.warm])
            slopes.append(np.polyfit((seconds - seconds[0]) / 3600, values, 1)[0])
            weights.append(each.length**3)
            levels.append(np.median(values))
        weight = np.array(weights) / np.sum(weights)
        mean = float(weight @ slopes)
        error = float(np.sqrt(np.square(weight * (np.array(slopes) - mean)).sum()))
        return cls(mean, error, float(np.median(levels)), len(long), sum(each.length for each in long) / 3600)

    @property
    def is_flat(self) -> bool:
        """Whether a growth cannot be distinguished from none: at most three standard errors, and rounding."""
        return self.mean <= 3 * self.error + 1e-6 * self.level


def processes_in(folder: Path) -> list[str]:
    """Processes whose current folder is this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()) == folder:
                found.append(f"{process.pid} ({' '.join(process.cmdline())[:80]})")
    return found


def shared_memory() -> set[str]:
    """Names of objects in shared memory that no process has mapped or open."""
    if not SHARED.is_dir():
        return set()
    used = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            used |= {Path(part.path) for part in process.memory_maps()} | {Path(f.path) for f in process.open_files()}
    return {path.name for path in SHARED.iterdir() if path not in used}
