"""The order of images: a pure function of seed and position, so that no loader has a state to save."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

SHARD_STREAM = 2**64 - 1
"""random stream that orders the shards of an epoch; stream g orders the images of group g"""
AFTER_ORDER = 1
"""word of Philox's counter at which the random numbers of single images start; those of the order start at 0"""


def image_index(position: Int64[np.ndarray, "b"], n: int, seed: int) -> Int64[np.ndarray, "b"]:
    """Number of the image at each position of the endless sequence of a run over `n` images.

    Position p holds image perm(seed, p // n)[p % n]: every epoch is a fresh permutation, drawn with the counter-based
    generator Philox (Salmon et al. 2011) keyed by seed and epoch. Raises ValueError for a negative position or seed, or
    without images.
    """
    index = np.empty_like(position)
    for epoch, chosen, offsets in epochs(position, n, seed):
        index[chosen] = image_order(seed, epoch, n)[offsets]
    return index


class ShardOrder:
    """The order of images in shards of `sizes` images, of which few are needed at a time.

    Each epoch draws an order of the shards and takes `group` of them at a time; the images of a group are shuffled
    together. If one group holds all shards, the order is that of a set without shards, `image_index`.

    With `parts`, these are the shards `part`, `part` + `parts`, ... only, in an order of their own.
    """

    def __init__(self, sizes: Sequence[int], group: int, part: int = 0, parts: int = 1):
        self.group, self._part = group, part
        self.starts = np.cumsum([0, *sizes], dtype=np.int64)
        """number of the first image of each shard of the set; the last entry is the number of images"""
        self._numbers = np.arange(part, len(sizes), parts)
        self.sizes = np.array(sizes, np.int64)[self._numbers]
        self.count = int(self.sizes.sum())
        # A batch that crosses an edge needs what is on both sides of it. The arrays are shared: do not write to them.
        self._permutation = lru_cache(maxsize=2)(permutation)
        self._edges = lru_cache(maxsize=2)(self._find_edges)

    def index(self, position: Int64[np.ndarray, "b"], seed: int) -> Int64[np.ndarray, "b"]:
        """Number of the image at each position of a run. Raises ValueError as `image_index` does."""
        index = np.empty_like(position)
        for epoch, chosen, offsets in epochs(position, self.count, seed):
            _, edges = self._edges(seed, epoch)
            groups = np.searchsorted(edges, offsets, side="right") - 1
            for group in np.unique(groups).tolist():
                inside = groups == group
                shards = self._shards(seed, epoch, group)
                ends = np.cumsum(self.starts[shards + 1] - self.starts[shards])
                order = self._permutation(seed, epoch, int(ends[-1]), group, self._part)
                place = order[offsets[inside] - edges[group]]
                shard = np.searchsorted(ends, place, side="right")
                index[chosen[inside]] = place - ends[shard] + self.starts[shards[shard] + 1]
        return index

    def window(self, position: int, seed: int) -> list[int]:
        """Numbers of the shards that are read from `position` on: those of its group, then those of the next group."""
        shards, end = self._group_at(position, seed)
        return [*shards, *(shard for shard in self._group_at(end, seed)[0] if shard not in shards)]

    def _group_at(self, position: int, seed: int) -> tuple[list[int], int]:
        """The shards of the group at `position`, and the first position after it."""
        epoch, offset = divmod(position, self.count)
        _, edges = self._edges(seed, epoch)
        group = int(np.searchsorted(edges, offset, side="right")) - 1
        return self._shards(seed, epoch, group).tolist(), epoch * self.count + int(edges[group + 1])

    def _shards(self, seed: int, epoch: int, group: int) -> Int64[np.ndarray, "g"]:
        """The shards of a group, in the order of the set."""
        order, _ = self._edges(seed, epoch)
        return self._numbers[np.sort(order[group * self.group : (group + 1) * self.group])]

    def _find_edges(
        self, seed: int, epoch: int
    ) -> tuple[Int64[np.ndarray, "shards"], Int64[np.ndarray, "groups_and_1"]]:
        """The order of the shards; the offset in its epoch at which each group starts, and the end of the last one."""
        order = permutation(seed, epoch, len(self.sizes), SHARD_STREAM, self._part)
        groups = np.add.reduceat(self.sizes[order], np.arange(0, len(order), self.group))
        return order, np.cumsum([0, *groups])


class PartOrder:
    """The order of images of a set in `parts`, of which each process reads few; for batches of `batch` images.

    Part k has the shards k, k + `parts`, ..., and an endless order of its own, see `ShardOrder`. The k-th of `parts`
    equal slices of each batch holds its next images. So the order depends neither on the number of processes nor on
    what was read before, and each of as many processes as parts reads the shards of one part. With one part, the order
    is that of `ShardOrder` for any batch.

    Raises ValueError for a batch that the parts do not divide, and for a part without images.
    """

    def __init__(self, sizes: Sequence[int], group: int, parts: int = 1, batch: int = 1):
        if batch % parts or not all(any(sizes[part::parts]) for part in range(parts)):
            raise ValueError(
                f"data.stream_parts {parts} must divide the batch of {batch} images, and each part needs a shard with"
                f" images, but there are {np.count_nonzero(sizes)}; a folder is one shard"
            )
        self.batch, self.parts = batch, [ShardOrder(sizes, group, part, parts) for part in range(parts)]
        self.starts, self.count = self.parts[0].starts, int(self.parts[0].starts[-1])
        """as those of `ShardOrder`, of the set"""

    def index(self, position: Int64[np.ndarray, "b"], seed: int) -> Int64[np.ndarray, "b"]:
        """Number of the image at each position of a run. Raises ValueError as `image_index` does."""
        index = np.empty_like(position)
        for part, chosen, inside in self._divide(position):
            index[chosen] = part.index(inside, seed)
        return index

    def window(self, position: Int64[np.ndarray, "b"], seed: int) -> list[int]:
        """Numbers of the shards that are read from these positions on, see `ShardOrder.window`."""
        windows = [part.window(int(inside[0]), seed) for part, _, inside in self._divide(position)]
        return [shard for window in windows for shard in window]

    def _divide(
        self, position: Int64[np.ndarray, "b"]
    ) -> Iterator[tuple[ShardOrder, Int64[np.ndarray, "part"], Int64[np.ndarray, "part"]]]:
        """For each part at these positions: its order, the indices into `position`, and the positions in the part."""
        if len(self.parts) == 1:
            yield self.parts[0], np.arange(len(position)), position
            return
        share = self.batch // len(self.parts)
        update, slot = np.divmod(position, self.batch)
        for number in np.unique(slot // share).tolist():
            chosen = np.flatnonzero(slot // share == number)
            yield self.parts[number], chosen, update[chosen] * share + slot[chosen] % share


def epochs(
    position: Int64[np.ndarray, "b"], n: int, seed: int
) -> Iterator[tuple[int, Int64[np.ndarray, "part"], Int64[np.ndarray, "part"]]]:
    """For each epoch of `n` images in `position`: its number, the indices into `position`, and their offsets in it."""
    if n < 1:
        raise ValueError(f"{n} images: there must be at least one")
    if seed < 0 or (len(position) and position.min() < 0):
        raise ValueError(f"seed {seed} and positions from {position.min(initial=0)} on must not be negative")
    number, offset = np.divmod(position, n)
    for epoch in np.unique(number).tolist():
        chosen = np.flatnonzero(number == epoch)
        yield epoch, chosen, offset[chosen]


def permutation(seed: int, epoch: int, n: int, stream: int = 0, part: int = 0) -> Int64[np.ndarray, "n"]:
    """A random permutation of 0 to `n` - 1, from one of the random streams of an epoch of a part of the set."""
    counter = np.array([0, part, 0, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter)).permutation(n)


# A batch that crosses an edge needs the permutations on both sides of it. They are shared: do not write to them.
image_order = lru_cache(maxsize=2)(permutation)


def image_random(seed: int, position: int) -> np.random.Generator:
    """The random numbers of the image at this position of a run, independent of processes and batches."""
    counter = np.array([0, 0, AFTER_ORDER, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64), counter=counter))
