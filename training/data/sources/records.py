"""Items, records and sources: the types that every kind of source produces, and helpers for splits and files."""

import os
import re
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pictures.pixel_format import PixelFormat
from training.data.sources.arrays import ArrayFile

TABLES = (".parquet", ".arrow")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
ARRAYS = (".npy",)
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class Item:
    """One image before decoding: the file or the bytes of a picture, uint8 pixels (h, w), or the file of an array."""

    name: str
    data: Path | bytes | np.ndarray | ArrayFile
    label: int | str | None = None
    """class number or name"""


@dataclass(frozen=True)
class Records:
    """The items of a source in their fixed order."""

    items: Generator[Item, None, None]
    count: int
    """number of items"""
    pixel_format: PixelFormat
    """of decoded items"""
    labelled: bool
    """whether items carry labels"""
    classes: tuple[str, ...] | None = None
    """names of the classes; None if the labels alone define them"""


@dataclass(frozen=True)
class Columns:
    """The columns of a table as settings name them; None finds one by its type, else by usual names."""

    image: str | None
    label: str | None
    labels: bool | None
    """True requires labels, False ignores them, None uses them if there are any"""


@dataclass(frozen=True)
class Source:
    """A source that exists, without any image read."""

    setting: str
    """the value of data.source"""
    name: str
    """a short name, for the cache folder"""
    key: list
    """JSON that changes whenever the items would"""
    open: Callable[[], Records]
    tables: tuple[Path, ...] = ()
    """the files of a source that consists of local tables"""
    columns: Columns | None = None
    """the columns of `tables`, None for another source"""


def walk(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below `folder` with one of the suffixes, in the order of their paths; without hidden ones.

    Links are followed, each folder is visited once.
    """
    seen = set()
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            found += [Path(root, name) for name in files if not name.startswith(".")]
        seen.add(real)
    chosen = [file for file in found if file.suffix.lower() in suffixes]
    return sorted(chosen, key=lambda file: file.relative_to(folder).as_posix())


def split_of(name: str) -> str | None:
    """The split that a file or folder name contains ("val-00001.parquet": validation), or None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in SPLITS.items() for word in words if word in names), None)


def by_split(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by the split that their path below `folder` contains; those without one belong to train."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file.relative_to(folder).as_posix()) or "train", []).append(file)
    return splits


def choose_split(split: str, splits: Iterable[str], source: str) -> str:
    """The name among `splits` that `split` or a synonym of it has. Raises ValueError with the known splits."""
    known = list(splits)
    for name in (split, split_of(split)):
        if name in known:
            return str(name)
    raise ValueError(f"data.split {split!r} is not a split of data.source {source!r}; give one of: {', '.join(known)}")


def stamp(file: Path) -> list:
    """A signature of a file's content: its path, size in bytes and modification time in nanoseconds.

    Of a broken link it is only the path; the decoder reports it.
    """
    path = os.path.realpath(file)
    try:
        status = file.stat()
    except OSError:
        return [path]
    return [path, status.st_size, status.st_mtime_ns]
