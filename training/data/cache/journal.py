"""How far a build has come, written along the way, so that a killed one goes on where it was."""

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from training.data.sources.labels import Label


@dataclass
class Progress:
    """What a build has done with the first `taken` items of its source."""

    taken: int = 0
    count: int = 0
    """images written"""
    shape: tuple[int, int, int] | None = None
    """of each image written"""
    first: str = ""
    """name of the first image written"""
    labels: list[Label] = field(default_factory=list)
    """as the source has them, of each image written"""
    bad: list[str] = field(default_factory=list)
    """name and reason of each image that could not be read"""
    several: int = 0
    """files with more than one picture"""
    example: str = ""
    """the first of them"""


class Journal:
    """A file to which each `save` adds one line of JSON: all of a `Progress`, but of its lists only what is new.

    What a crash left of a line that it cut short is dropped.
    """

    def __init__(self, path: Path):
        self.path = path
        self._labels = self._bad = 0

    def load(self) -> Progress:
        """The last progress that was saved; a fresh one if there is none."""
        progress, end = Progress(), 0
        for line in self._lines():
            told = json.loads(line)
            told["labels"], told["bad"] = progress.labels + told["labels"], progress.bad + told["bad"]
            told["shape"] = told["shape"] and tuple(told["shape"])
            del told["by"]
            progress, end = Progress(**told), end + len(line)
        if self.path.exists():
            os.truncate(self.path, end)
        self._labels, self._bad = len(progress.labels), len(progress.bad)
        return progress

    def save(self, progress: Progress) -> None:
        """Add a line. What it speaks of must be on the disk before."""
        new = {"labels": progress.labels[self._labels :], "bad": progress.bad[self._bad :]}
        by = f"process {os.getpid()} on {socket.gethostname()}"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(vars(progress) | new | {"by": by}) + "\n")
        self._labels, self._bad = len(progress.labels), len(progress.bad)

    def writer(self) -> str:
        """Who wrote the last line."""
        lines = self._lines()
        return json.loads(lines[-1])["by"] if lines else "another process"

    def _lines(self) -> list[bytes]:
        """The complete lines."""
        if not self.path.exists():
            return []
        return [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
