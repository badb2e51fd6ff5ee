"""The journal of a build: its progress, saved regularly, so that an interrupted build can resume."""

import json
import os
import socket
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.read import MAX_TEXT, is_regular, open_regular, parse_json
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
    skipped: list[int] = field(default_factory=list)
    """number of each of them in the source"""
    several: int = 0
    """number of files with several pictures"""
    example: str = ""
    """the first of them"""
    checksum: int = 0
    """`Checksums.total` of the images written"""
    pixels: str = ""
    """`chained` hash of the pixels of images that are written as latents"""


class Journal:
    """A file to which each `save` appends one line of JSON: a `Progress`, with only the new entries of its lists.

    Each line has its own CRC-32. The lines from the first damaged one on, such as one that a crash truncated, are
    dropped.
    """

    def __init__(self, path: Path):
        self.path = path
        self._labels = self._bad = 0

    def load(self) -> Progress:
        """The last progress that was saved; an empty one if there is none."""
        progress, labels, bad, skipped, end = Progress(), list[Label](), list[str](), list[int](), 0
        for entry, size in self._entries():
            labels += entry["labels"]
            bad += entry["bad"]
            skipped += entry.get("skipped", [])  # journals of earlier versions have none
            entry["shape"] = entry["shape"] and tuple(entry["shape"])
            del entry["process"]
            progress, end = Progress(**(entry | {"labels": labels, "bad": bad, "skipped": skipped})), end + size
        if is_regular(self.path) and end < self.path.stat().st_size:
            text = f"{self.path} is damaged from byte {end:,} on; decoding goes on after {progress.count:,} images"
            print(text, file=sys.stderr)
            os.truncate(self.path, end)
        self._labels, self._bad = len(progress.labels), len(progress.bad)
        return progress

    def save(self, progress: Progress) -> None:
        """Appends a line. The images that it counts must be on the disk before."""
        new = {
            "labels": progress.labels[self._labels :],
            "bad": progress.bad[self._bad :],
            "skipped": progress.skipped[self._bad :],
        }
        process = f"process {os.getpid()} on {socket.gethostname()}"
        entry = vars(progress) | new | {"process": process}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry | {"crc32": crc32(entry)}) + "\n")
        self._labels, self._bad = len(progress.labels), len(progress.bad)

    def writer(self) -> str:
        """The process that wrote the last line."""
        process = "another process"
        for entry, _ in self._entries():
            process = entry["process"]
        return process

    def _entries(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each line before the first damaged one, and its size in bytes."""
        if not is_regular(self.path):
            return
        with open_regular(self.path) as file:
            while (line := file.readline(MAX_TEXT)).endswith(b"\n"):
                try:
                    entry = parse_json(line)
                    if entry.pop("crc32") != crc32(entry):
                        return
                except (ValueError, KeyError, AttributeError, TypeError):
                    return
                yield entry, len(line)


def crc32(document: dict[str, Any]) -> int:
    """CRC-32 of the JSON of a document, independent of the order of its keys."""
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
