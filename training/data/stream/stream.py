"""Images that are decoded when they are needed: for sets too large for a cache."""

import hashlib
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int, Int64, Shaped
from tqdm import tqdm

from training.data.cache.build import check_bad, settings
from training.data.config import DataConfig
from training.data.images import Images, describe
from training.data.order import ShardOrder
from training.data.random_crop import image_random
from training.data.sources.labels import check_label, number_labels
from training.data.sources.records import Item
from training.data.sources.source import find_source
from training.data.stream.shards import Shards, find_shards
from training.memory import total_bytes
from training.units import show_size

CHUNK = 8
"""images that a thread decodes at a time"""


class StreamedImages:
    """A set of images of one shape that is read block by block, see `ShardOrder`; for the rest like `Images`.

    Nothing here has a state that matters: which images stand at a position follows from the seed and the files. The
    blocks of a group are held in memory as they are in the files while a thread reads those of the next group.
    An image that cannot be read is replaced by the next one of its block that can.

    Raises ValueError for an empty set, one whose shape is not stated, labels outside the classes, and blocks that do
    not fit into memory.
    """

    def __init__(self, blocks: Shards, config: DataConfig):
        self.shape = blocks.shape or stated_shape(config)
        """channels, height, width"""
        self.pixel_format = blocks.pixel_format
        """what the numbers of decoded images mean"""
        if blocks.shape is not None and config.crop == "random":
            raise ValueError("data.crop random is for pictures; arrays stay as they are, leave it out")
        if sum(blocks.sizes) == 0:
            raise ValueError(f"data.source {config.source!r} holds no image")
        check_memory(blocks, config)
        self.labels, self.classes = numbered(blocks)
        self.fingerprint = fingerprint(self, blocks, config)
        """SHA-256 (hexadecimal) of names, sizes in bytes, labels and settings: no pixel is looked at"""
        self._blocks, self._config = blocks, config
        self._order = ShardOrder(blocks.sizes, config.stream_shards)
        self._bad: dict[int, str] = {}
        self._held: OrderedDict[int, Future[Sequence[Item]]] = OrderedDict()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="blocks")
        self._decoders = ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")

    def __len__(self) -> int:
        return self._order.count

    def __str__(self) -> str:
        """What a user wants to know of the data, in one line."""
        blocks, mixed = len(self._blocks.sizes), self._config.stream_shards
        how = f" in {blocks:,} blocks, {mixed} mixed at a time" if blocks > mixed else ""
        return f"{describe(len(self), self.shape, self.pixel_format, self.classes)}; streamed{how}"

    @property
    def bad(self) -> tuple[str, ...]:
        """Name and reason of each image that this process could not read so far."""
        return tuple(self._bad.values())

    def take(
        self, position: Int64[np.ndarray, "b"], seed: int, out: Shaped[np.ndarray, "b c h w"]
    ) -> Int64[np.ndarray, "b"] | None:
        """As `Images.take`. Raises ValueError if more images cannot be read than `data.max_bad` allows."""
        ahead = self._order.window(int(position[0]), seed)
        draws = self._config.crop == "random"
        random = [image_random(seed, int(place)) for place in position] if draws else None
        found = self.read(self._order.index(position, seed), out, ahead, random)
        return None if self.labels is None else self.labels[found]

    def read(
        self,
        indices: Int[np.ndarray, "b"],
        out: Shaped[np.ndarray, "b c h w"],
        ahead: Sequence[int] = (),
        random: Sequence[np.random.Generator] | None = None,
    ) -> Int64[np.ndarray, "b"]:
        """Decode the images with these numbers into `out`, then read the blocks `ahead` in the background.

        A random crop needs the random numbers of each; without them it is that of the centre. Returns the numbers of
        the images that are in `out`: others only where one could not be read.
        """
        starts = self._order.starts
        blocks = np.searchsorted(starts, indices, side="right") - 1
        needed = {int(block): self._hold(int(block)) for block in np.unique(blocks)}
        for block in ahead:
            self._hold(block)
        found = indices.astype(np.int64)
        jobs = []
        for block, future in needed.items():
            slots, items = np.flatnonzero(blocks == block), future.result()
            for few in np.split(slots, range(CHUNK, len(slots), CHUNK)):
                jobs.append(self._decoders.submit(self._decode, items, int(starts[block]), few, found, out, random))
        for job in jobs:
            job.result()
        return found

    def _hold(self, block: int) -> Future[Sequence[Item]]:
        """A block, which is loaded if it is not held; held are those of two groups that were asked for last."""
        if block not in self._held:
            self._held[block] = self._loader.submit(self._blocks.load, block)
        self._held.move_to_end(block)
        while len(self._held) > 2 * self._config.stream_shards:
            self._held.popitem(last=False)
        return self._held[block]

    def _decode(
        self,
        items: Sequence[Item],
        start: int,
        slots: Int64[np.ndarray, "few"],
        found: Int64[np.ndarray, "b"],
        out: Shaped[np.ndarray, "b c h w"],
        random: Sequence[np.random.Generator] | None,
    ) -> None:
        """Fill the slots of `out` with images of the block `items`, whose first has the number `start`."""
        from training.data.decode import attempt

        for slot in slots:
            for step in range(len(items)):
                row = (int(found[slot]) - start + (step > 0)) % len(items)
                found[slot] = start + row
                decoded = attempt(items[row], self._config, None if random is None else random[slot])
                if not isinstance(decoded, str):
                    out[slot] = decoded
                    break
                self._skip(start + row, f"{items[row].name}: {decoded}")
            else:
                raise ValueError(f"none of the images from {items[0].name} to {items[-1].name} can be read")

    def _skip(self, index: int, reason: str) -> None:
        """Say once that an image is replaced. Raises ValueError if it is one too many."""
        if self._bad.setdefault(index, reason) is reason:
            tqdm.write(f"replaced {reason}", file=sys.stderr)
            check_bad(self.bad, self._config.max_bad)


ImageSet = Images | StreamedImages
"""what a run is trained on"""


def stream_images(config: DataConfig) -> StreamedImages:
    """The images of a run, streamed. Raises ValueError, in one line, for whatever is wrong with source and labels."""
    return StreamedImages(find_shards(find_source(config), config), config)


def stated_shape(config: DataConfig) -> tuple[int, int, int]:
    """Channels, height and width. Raises ValueError if the config leaves them to the images."""
    if config.hw is None or config.channels is None:
        raise ValueError(
            "data.stream is true, so images are not looked at before training: set data.size and data.channels, such as"
            " --data.size 64 --data.channels 3"
        )
    return (config.channels, *config.hw)


def numbered(blocks: Shards) -> tuple[Int64[np.ndarray, "n"] | None, tuple[str, ...] | None]:
    """Class number of each image, and the names of the classes; neither without labels."""
    if blocks.labels is None:
        return None, None
    limit = None if blocks.classes is None else len(blocks.classes)
    for index, label in enumerate(blocks.labels):
        check_label(label, index, limit)
    return number_labels(blocks.labels, blocks.classes)


def check_memory(blocks: Shards, config: DataConfig) -> None:
    """Raises ValueError if two groups of the largest blocks are more than the machine's memory."""
    there_is, held = total_bytes(torch.device("cpu")), 2 * config.stream_shards
    needed = sum(sorted(blocks.bytes, reverse=True)[:held])
    if there_is is not None and needed > there_is:
        raise ValueError(
            f"data.stream_shards {config.stream_shards} holds up to {held} row groups, {show_size(needed)}, but there"
            f" is memory of {show_size(there_is)} for each process; lower it, or write tables with smaller row groups"
        )


def fingerprint(images: StreamedImages, blocks: Shards, config: DataConfig) -> str:
    """See `StreamedImages.fingerprint`."""
    digest = hashlib.sha256(json.dumps([images.shape, images.classes, settings(config), blocks.stamp]).encode())
    if images.labels is not None:
        digest.update(np.ascontiguousarray(images.labels, dtype="<i8").data)
    return digest.hexdigest()
