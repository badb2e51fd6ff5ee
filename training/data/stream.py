"""Streamed images: decoded when they are needed, for sets too large for a cache."""

import hashlib
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, Shaped
from tqdm import tqdm

from pictures.preprocessing import Preprocessing
from pictures.units import AnyFormat
from storage.show import printable
from training.data.images import Images, check_bad, check_parts, describe, with_static
from training.data.order import PartOrder, image_random
from training.data.originals import DataLost, Originals
from training.data.sources.labels import count_classes, number_labels, summarize
from training.data.sources.records import Item, Records, Source
from training.memory import total_bytes
from training.units import show_size

CHUNK = 8
"""images that a thread decodes at a time"""


class StreamedImages:
    """A set of images of one shape that is read shard by shard, see `PartOrder`; otherwise like `Images`.

    The image at a position follows from the seed and the files alone, with several `parts` also from the `batch`. The
    images of `group` shards are shuffled together; these shards are held in memory, encoded, while a thread reads those
    of the next group. Shards of parts in which a process takes no image are not read by it. An unreadable image is
    replaced by the next readable one of its shard; `max_bad` of them are allowed, on all processes together if they
    exchange `bad_numbers`. Only images to train on, if `training`, are cropped at random.

    Raises ValueError for an empty set, a shape that neither files nor settings define, labels out of range, `static`
    fields of another size, shards that do not fit into memory, and as `PartOrder` does.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        group: int,
        max_bad: int,
        *,
        static: Float32[np.ndarray, "k h w"] | None = None,
        training: bool = True,
        parts: int = 1,
        batch: int = 1,
    ) -> None:
        records = source.open()
        if records.count == 0:
            raise ValueError(f"data.source {source.setting!r} holds no image")
        self.shape = records.shape or stated_shape(preprocessing, pictures=2 if records.conditions is None else 1)
        """channels, height, width"""
        self.pixel_format: AnyFormat = records.pixel_format
        """how decoded values become those of networks"""
        self.seen: np.ndarray | None = None
        """unknown, as no image has been read; see `Images.seen`"""
        self.autoencoder: None = None
        """streamed images are not encoded"""
        self.conditions = records.condition_channels(self.shape[0])
        """number of channels that are a condition: the last ones"""
        self.static = static
        """channels (k, h, w) that all images share, unscaled, or None"""
        self.vectors, self.vector_columns = records.vectors, records.vector_columns
        """numbers of each image, unscaled, float32 (n, v), or None, and the names of these columns"""
        self.coordinates = records.coordinates
        """names and units of the channels and axes, or None"""
        check_parts(self.shape, self.conditions, static)
        check_memory(records, group)
        self._order = PartOrder(records.sizes, group, parts, batch)
        self._group = group
        self.labels: np.ndarray | None = None
        """class number of each image, int64 (n,), or None"""
        self.classes: tuple[str, ...] | None = None
        """names of the classes, or None without labels"""
        if records.labels is not None:
            self.labels, self.classes = number_labels(records.labels, records.classes)
        self.fingerprint = with_static(fingerprint(self, records, preprocessing), static)
        """SHA-256 (hexadecimal) of names, sizes in bytes, labels, vectors, static fields and preprocessing, without any
        pixel"""
        self._records, self._preprocessing, self._max_bad = records, preprocessing, max_bad
        self._draws = training and preprocessing.crop in ("random", "cut")
        self._notes = source.notes
        self._shard_files, self._item_files = Originals(records.shard_files), Originals(records.item_files)
        self._read_late = not any(records.bytes)  # items are read when they are decoded
        self._bad: dict[int, str] = {}
        self._held: OrderedDict[int, Future[Sequence[Item]]] = OrderedDict()
        self._parts_read: set[int] = set()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._decoders = ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")

    def __len__(self) -> int:
        return self._order.count

    @property
    def class_counts(self) -> tuple[int, ...] | None:
        """The number of images of each class, or None without labels."""
        return None if self.labels is None or self.classes is None else count_classes(self.labels, self.classes)

    def __str__(self) -> str:
        """A summary in one line."""
        shards, group, parts = len(self._records.sizes), self._group, len(self._order.parts)
        how = f" in {shards:,} shards, {group} shuffled together" if shards > group * parts else ""
        how += f", in {parts} parts" if parts > 1 else ""
        classes, notes = summarize(self.class_counts, self.classes), "".join(f"; {note}" for note in self._notes)
        static = 0 if self.static is None else len(self.static)
        text = describe(
            len(self), self.shape, self.pixel_format, self.classes, self.conditions, self.vector_columns, static
        )
        return f"{text}{classes}; streamed{how}{notes}"

    @property
    def bad(self) -> tuple[str, ...]:
        """Name and reason of each image that could not be read so far."""
        return tuple(self._bad.values())

    @property
    def bad_numbers(self) -> dict[int, str]:
        """As `bad`, by the number of the image."""
        return dict(self._bad)

    def add_bad(self, found: Mapping[int, str]) -> None:
        """Counts images that other processes could not read. Raises TooManyBad for more of them than are allowed."""
        for index, reason in found.items():
            self._bad.setdefault(index, reason)
        check_bad(self.bad, self._max_bad)

    def take(
        self, position: Int64[np.ndarray, "b"], seed: int, out: Shaped[np.ndarray, "b c h w"]
    ) -> Int64[np.ndarray, "b"]:
        """As `Images.take`. Raises DataLost if a file has changed or disappeared since the set was opened, and if more
        images are unreadable than `data.max_bad` allows, or all of a shard."""
        ahead = self._order.window(position, seed)
        random = [image_random(seed, int(place)) for place in position] if self._draws else None
        return self.read(self._order.index(position, seed), out, ahead, random)

    def read(
        self,
        indices: Int[np.ndarray, "b"],
        out: Shaped[np.ndarray, "b c h w"],
        ahead: Sequence[int] = (),
        random: Sequence[np.random.Generator] | None = None,
    ) -> Int64[np.ndarray, "b"]:
        """Decodes the images with these numbers into `out`, and loads the shards `ahead` in the background.

        `random` holds a generator for the random crop of each image; without it, crops are in the center. Returns the
        numbers of the images in `out`, which differ from `indices` only where an image was unreadable.
        """
        starts = self._order.starts
        shards = np.searchsorted(starts, indices, side="right") - 1
        needed = {int(shard): self._hold(int(shard)) for shard in np.unique(shards)}
        if self._read_late and len(self._shard_files):
            for shard in needed:
                self._shard_files.check(shard)
        for shard in ahead:
            self._hold(shard)
        found = indices.astype(np.int64)
        jobs = []
        for shard, future in needed.items():
            slots, items = np.flatnonzero(shards == shard), future.result()
            for few in np.split(slots, range(CHUNK, len(slots), CHUNK)):
                jobs.append(self._decoders.submit(self._decode, items, int(starts[shard]), few, found, out, random))
        for job in jobs:
            job.result()
        return found

    def _hold(self, shard: int) -> Future[Sequence[Item]]:
        """Loads a shard unless it is held; the shards of the two most recent groups of each part are held."""
        self._parts_read.add(shard % len(self._order.parts))
        if shard not in self._held:
            self._held[shard] = self._loader.submit(self._load, shard)
        self._held.move_to_end(shard)
        while len(self._held) > 2 * self._group * len(self._parts_read):
            self._held.popitem(last=False)
        return self._held[shard]

    def _load(self, shard: int) -> Sequence[Item]:
        """The items of a shard, from the file that was opened. Raises DataLost for another one."""
        if not len(self._shard_files):
            return self._records.load(shard)
        self._shard_files.check(shard)
        try:
            return self._records.load(shard)
        finally:  # the reason of a failure, and of wrong values
            self._shard_files.check(shard)

    def _decode(
        self,
        items: Sequence[Item],
        start: int,
        slots: Int64[np.ndarray, "few"],
        found: Int64[np.ndarray, "b"],
        out: Shaped[np.ndarray, "b c h w"],
        random: Sequence[np.random.Generator] | None,
    ) -> None:
        """Fills the slots of `out` with images of the shard `items`, whose first image has the number `start`."""
        from training.data.decode import attempt

        for slot in slots:
            for step in range(len(items)):
                row = (int(found[slot]) - start + (step > 0)) % len(items)
                found[slot] = start + row
                drawn = None if random is None else random[slot]
                if len(self._item_files):
                    self._item_files.check(start + row)
                _, decoded, _ = attempt(items[row], preprocessing=self._preprocessing, random=drawn)
                if not isinstance(decoded, str):
                    out[slot] = decoded
                    break
                self._skip(start + row, f"{items[row].name}: {decoded}")
            else:
                raise DataLost(f"none of the images from {items[0].name} to {items[-1].name} can be read")

    def _skip(self, index: int, reason: str) -> None:
        """Reports once that an image is replaced. Raises TooManyBad for more of them than are allowed."""
        if self._bad.setdefault(index, reason) is reason:
            tqdm.write(printable(f"replaced {reason}"), file=sys.stderr)
            check_bad(self.bad, self._max_bad)


ImageSet = Images | StreamedImages
"""images of a run"""


def stated_shape(preprocessing: Preprocessing, pictures: int = 1) -> tuple[int, int, int]:
    """Channels, height and width of so many pictures. Raises ValueError if one of them is not set."""
    if preprocessing.size is None or preprocessing.channels is None:
        raise ValueError(
            "data.stream is true, so images are not inspected before training: set data.size and data.channels, such as"
            " --data.size 64 --data.channels 3"
        )
    return (preprocessing.channels * pictures, *preprocessing.size)


def check_memory(records: Records, group: int) -> None:
    """Raises ValueError if two groups of the largest shards exceed the memory of the machine."""
    available, held = total_bytes(torch.device("cpu")), 2 * group
    needed = sum(sorted(records.bytes, reverse=True)[:held])
    if available is not None and needed > available:
        raise ValueError(
            f"data.stream_shards {group} holds up to {held} row groups, {show_size(needed)}, but each process has"
            f" {show_size(available)} of memory; lower it, or write tables with smaller row groups"
        )


def fingerprint(images: StreamedImages, records: Records, preprocessing: Preprocessing) -> str:
    """See `StreamedImages.fingerprint`."""
    settings = [asdict(preprocessing), asdict(images.pixel_format)]
    if images.conditions or images.vector_columns:
        settings.append({"conditions": images.conditions, "vector_columns": images.vector_columns})
    digest = hashlib.sha256(json.dumps([images.shape, images.classes, settings, records.stamp()]).encode())
    if images.labels is not None:
        digest.update(np.ascontiguousarray(images.labels, dtype="<i8").data)
    if images.vectors is not None:
        digest.update(np.ascontiguousarray(images.vectors, dtype="<f4").data)
    return digest.hexdigest()
