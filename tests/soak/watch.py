"""Samples memory, open files and threads of training processes, and finds what is left of them at the end."""

import contextlib
import csv
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from tests.torture.runs import Started

EVERY_S = 0.5
WARM_UP_S = 300.0
"""from the first update that was seen: allocators, thread pools and the first evaluations take their memory"""
COOL_DOWN_S = 5.0
"""before the end: a process that stops ends its threads"""
BLOCK_S = 60.0
"""length of the part of a series that has a slope"""
MIN_BLOCKS = 10
"""without so many slopes their standard error is not known well enough"""
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
    def blocks(self) -> list[slice]:
        """The samples between warm-up and end, in parts of equal length."""
        if not self.seconds:
            return []
        edges = np.arange(self.seconds[0] + WARM_UP_S, self.seconds[-1] - COOL_DOWN_S, BLOCK_S)
        return [slice(*pair) for pair in itertools.pairwise(np.searchsorted(self.seconds, edges).tolist())]


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

    def write(self, file: Path) -> None:
        """Writes all samples into a CSV file; the processes are numbered in the order of their start."""
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["process", "rank", "seconds", "bytes", "files", "threads"])
            for number, each in enumerate(self.series):
                for row in zip(each.seconds, each.bytes, each.files, each.threads, strict=True):
                    writer.writerow([number, each.rank, *row])

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
    """The change of a figure per hour: mean over blocks and its standard error; `level` is the figure itself."""

    mean: float
    error: float
    level: float
    processes: int
    blocks: int

    @classmethod
    def of(cls, series: Sequence[Series], name: str) -> "Slopes | None":
        """Least-squares slopes of the blocks of all series; None with less than `MIN_BLOCKS`."""
        slopes, levels, processes = [], [], 0
        for each in series:
            values = np.array(getattr(each, name))
            for block in each.blocks:
                seconds = np.array(each.seconds[block])
                slopes.append(np.polyfit((seconds - seconds[0]) / 3600, values[block], 1)[0])
                levels.append(np.median(values[block]))
            processes += bool(each.blocks)
        if len(slopes) < MIN_BLOCKS:
            return None
        error = np.std(slopes, ddof=1) / np.sqrt(len(slopes))
        return cls(float(np.mean(slopes)), float(error), float(np.median(levels)), processes, len(slopes))

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
