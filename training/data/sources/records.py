"""What every kind of source has in common: items, records, splits, and the files of a folder."""

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.config import DataConfig
from training.data.pixel_format import PixelFormat
from training.data.sources.arrays import ArrayFile

TABLES = (".parquet", ".arrow")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
ARRAYS = (".npy",)
PICTURE_FORMATS = {8: PixelFormat(), 16: PixelFormat(dtype="uint16", high=65535)}
"""what the numbers of decoded pictures mean, by `DataConfig.bits`"""
SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev")} | {
    "test": ("test", "testing", "eval", "evaluation")
}


@dataclass(frozen=True)
class Item:
    """One image before decoding: a picture's file or its bytes, pixels (h, w) uint8, or the file of an array.

    `label` is an index or a name.
    """

    name: str
    data: Path | bytes | np.ndarray | ArrayFile
    label: int | str | None = None


@dataclass(frozen=True)
class Records:
    """The items of a source in their fixed order, how many (None: not known beforehand) and the names of the classes.

    `pixel_format` is that of decoded items. `labelled` tells that items carry labels; `classes`
    is then None where the labels themselves are all there is.
    """

    items: Generator[Item, None, None]
    count: int | None
    pixel_format: PixelFormat
    labelled: bool
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """A source that was found: `name` for people, `key` (JSON) that changes with the content, `open` to read it.

    `tables` are its files, if it consists of tables that lie here.
    """

    name: str
    key: list
    open: Callable[[], Records]
    tables: tuple[Path, ...] = ()


def walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files below `folder` with one of the suffixes, hidden ones left out, links followed (once), in a fixed order."""
    seen = set()
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            found += [Path(root, name) for name in files if not name.startswith(".")]
        seen.add(real)
    kept = [file for file in found if file.suffix.lower() in suffixes]
    return iter(sorted(kept, key=lambda file: file.relative_to(folder).as_posix()))


def split_of(name: str) -> str | None:
    """The split that a file or folder name speaks of ("val-00001.parquet": validation), or None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in SPLITS.items() for word in words if word in names), None)


def by_split(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by the split that their path below `folder` speaks of; one that speaks of none belongs to train."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file.relative_to(folder).as_posix()) or "train", []).append(file)
    return splits


def choose_split(config: DataConfig, splits: Iterable[str]) -> str:
    """`config.split` under the name that `splits` has for it. Raises ValueError with the splits there are."""
    known = list(splits)
    for name in (config.split, split_of(config.split)):
        if name in known:
            return str(name)
    raise ValueError(f"data.split {config.split!r} is not a split of {config.source!r}; splits: {', '.join(known)}")


def refuse(config: DataConfig, fields: Iterable[str], why: str) -> None:
    """Raises ValueError if one of these fields is set, as it would have no effect."""
    for field in fields:
        if (value := getattr(config, field)) is not None:
            shown = str(value) if isinstance(value, Path) else value
            raise ValueError(f"data.{field} is {shown!r} but {why}; leave it out")


def no_columns(config: DataConfig, what: str) -> None:
    """Refuse column names where there are no columns."""
    refuse(config, ("image_column", "label_column"), f"{what} has no columns")


def only_pictures(config: DataConfig) -> None:
    """Refuse what only arrays can have."""
    refuse(config, ("range",), "data.source holds pictures, whose range is known")
    if config.channels not in (None, 1, 3):
        raise ValueError(f"data.channels {config.channels} must be 1 (grey), 3 (RGB) or null (as found) for pictures")


def stamp(file: Path) -> list:
    """What tells that a file has changed: its path, size in bytes and time of change in nanoseconds.

    Of a link that leads nowhere there is only the path; that it cannot be read is for the decoder to say.
    """
    path = os.path.realpath(file)
    try:
        status = file.stat()
    except OSError:
        return [path]
    return [path, status.st_size, status.st_mtime_ns]
