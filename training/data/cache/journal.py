"""The journal of a build: its progress, saved regularly, so that an interrupted build can resume."""

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from training.data.sources.labels import Label

JOURNAL = "journal.jsonl"


@dataclass
class Progress:
    """The state of a build after the first `taken` items of its source."""

    taken: int = 0
    count: int = 0
    """images written"""
    shape: tuple[int, int, int] | None = None
    """channels, height and width of each image written"""
    first: str = ""
    """name of the first image written"""
    labels: list[Label] = field(default_factory=list)
    """label of each image written, as in the source"""
    bad: list[str] = field(default_factory=list)
    """name and reason of each image that could not be read"""
    several: int = 0
    """number of files with several pictures"""
    example: str = ""
    """the first of them"""


class Journal:
    """A file to which each `save` appends one line of JSON: a `Progress`, with only the new entries of its lists.

    A line that a crash truncated is dropped.
    """

    def __init__(self, path: Path):
        self.path = path
        self._labels = self._bad = 0

    def load(self) -> Progress:
        """The last progress that was saved; an empty one if there is none."""
        progress, end = Progress(), 0
        for line in self._lines():
            entry = json.loads(line)
            entry["labels"], entry["bad"] = progress.labels + entry["labels"], progress.bad + entry["bad"]
            entry["shape"] = entry["shape"] and tuple(entry["shape"])
            del entry["process"]
            progress, end = Progress(**entry), end + len(line)
        if self.path.exists():
            os.truncate(self.path, end)
        self._labels, self._bad = len(progress.labels), len(progress.bad)
        return progress

    def save(self, progress: Progress) -> None:
        """Appends a line. The images that it counts must be on the disk before."""
        new = {"labels": progress.labels[self._labels :], "bad": progress.bad[self._bad :]}
        process = f"process {os.getpid()} on {socket.gethostname()}"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(vars(progress) | new | {"process": process}) + "\n")
        self._labels, self._bad = len(progress.labels), len(progress.bad)

    def writer(self) -> str:
        """The process that wrote the last line."""
        lines = self._lines()
        return json.loads(lines[-1])["process"] if lines else "another process"

    def _lines(self) -> list[bytes]:
        """The complete lines."""
        if not self.path.exists():
            return []
        return [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
