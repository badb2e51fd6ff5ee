"""Items, records and sources: the types that every kind of source produces, and helpers for splits and files."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pictures.autoencoder import Autoencoder
from pictures.coordinates import Coordinates
from pictures.pixel_format import PixelFormat
from training.data.sources.arrays import ArrayImage
from training.data.sources.labels import Label

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


Content = Path | bytes | np.ndarray | ArrayImage
"""one image before decoding: the file or the bytes of a picture, uint8 pixels (h, w), or an array"""


@dataclass(frozen=True)
class Pair:
    """A target and its condition, two pictures or two arrays, which are decoded to the channels of one image."""

    target: Content
    condition: Content


@dataclass(frozen=True)
class Item:
    """One image before decoding, or two that form one."""

    name: str
    data: Content | Pair

    @property
    def contents(self) -> tuple[Content, ...]:
        """The one image, or the two of a pair."""
        return (self.data.target, self.data.condition) if isinstance(self.data, Pair) else (self.data,)


@dataclass(frozen=True, kw_only=True)
class Records:
    """The items of a source in their fixed order, in shards that can be read one by one.

    A table has a shard for each row group (parquet) or record batch (arrow). A folder is one shard: any of its files
    can be opened at any time.
    """

    sizes: Sequence[int]
    """items in each shard"""
    load: Callable[[int], Sequence[Item]]
    """the items of a shard, not decoded, held in memory"""
    read: Callable[[int], Iterable[Item]] | None = None
    """the items of a shard one after the other, where that takes less memory"""
    labels: Sequence[Label] | None
    """the label of every item, or None"""
    classes: tuple[str, ...] | None
    """names of the classes if the source has them; None if the labels alone define them"""
    pixel_format: PixelFormat
    """of decoded items"""
    stamp: Callable[[], list]
    """JSON that changes with the content, but not with its location: names, sizes in bytes, rows"""
    bytes: Sequence[int] = (0,)
    """memory of each shard; 0 if its items are read one by one"""
    shape: tuple[int, int, int] | None = None
    """channels, height and width of every image if the files define them, as arrays do"""
    conditions: int | None = 0
    """number of channels that are a condition: the last ones; None: half of them, as in pairs of pictures"""
    vectors: Float32[np.ndarray, "n v"] | None = None
    """numbers of every item"""
    vector_columns: tuple[str, ...] = ()
    """names of the columns of `vectors`"""
    coordinates: Coordinates | None = None
    """of the channels and axes, if the source has them"""
    shard_files: Sequence[Path] = ()
    """the file that holds each shard, if one does"""
    item_files: Sequence[Path] = ()
    """the file of each item (target), if it has its own"""

    @property
    def count(self) -> int:
        """Number of items."""
        return sum(self.sizes)

    def condition_channels(self, channels: int) -> int:
        """How many of the channels of an image are a condition."""
        return channels // 2 if self.conditions is None else self.conditions

    def items(self) -> Iterator[Item]:
        """All items; at most one shard is held."""
        return chain.from_iterable(map(self.read or self.load, range(len(self.sizes))))


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
    """lists the items without reading an image; raises ValueError for what cannot be read and for wrong columns"""
    notes: tuple[str, ...] = ()
    """remarks for the user, one line each, such as the number of files that are left out"""
    autoencoder: Autoencoder | None = None
    """encodes each decoded picture; None: the pixels are kept"""


def split_of(name: str) -> str | None:
    """The split that a file or folder name contains ("val-00001.parquet": validation), or None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in SPLITS.items() for word in words if word in names), None)


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
