"""The order of images: a function of the seed and a position, so no loader has a state that a checkpoint must hold."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

OF_BLOCKS = 2**64 - 1
"""the stream of random numbers that orders blocks; stream g orders the images of group g"""


def image_index(position: Int64[np.ndarray, "b"], n: int, seed: int) -> Int64[np.ndarray, "b"]:
    """Number of the image at each position of the endless stream of a run over `n` images.

    Position p holds image perm(seed, p // n)[p % n]: every epoch is a fresh permutation, drawn with the counter-based
    generator Philox (Salmon et al. 2011) keyed by seed and epoch. Raises ValueError for a negative position or seed.
    """
    return one_block(n).index(position, seed)


class ShardOrder:
    """The order of a set in blocks of `sizes` images, of which few are held in memory at a time.

    Each epoch draws an order of the blocks and takes `group` of them at a time; the images of a group are permuted as
    one. Where one group holds all blocks this is the order of a set without blocks, `image_index`.
    Raises ValueError for a set without images.
    """

    def __init__(self, sizes: Sequence[int], group: int):
        self.group = group
        self.starts = np.cumsum([0, *sizes], dtype=np.int64)
        """number of the first image of each block, and of the images"""
        self.count = int(self.starts[-1])
        if self.count < 1:
            raise ValueError(f"{self.count} images: there must be at least one")

    def index(self, position: Int64[np.ndarray, "b"], seed: int) -> Int64[np.ndarray, "b"]:
        """Number of the image at each position of a run. Raises ValueError for a negative position or seed."""
        if seed < 0 or (len(position) and position.min() < 0):
            raise ValueError(f"seed {seed} and positions from {position.min(initial=0)} on must not be negative")
        epochs, offsets = np.divmod(position, self.count)
        index = np.empty_like(position)
        for epoch in np.unique(epochs):
            edges = group_edges(self, seed, int(epoch))
            groups = np.searchsorted(edges, offsets, side="right") - 1
            for group in np.unique(groups[epochs == epoch]):
                here = (epochs == epoch) & (groups == group)
                index[here] = group_images(self, seed, int(epoch), int(group))[offsets[here] - edges[group]]
        return index

    def window(self, position: int, seed: int) -> list[int]:
        """Numbers of the blocks that are read from `position` on: its group's, then the next group's."""
        blocks, end = self._group_at(position, seed)
        return [*blocks, *(block for block in self._group_at(end, seed)[0] if block not in blocks)]

    def _group_at(self, position: int, seed: int) -> tuple[list[int], int]:
        """The blocks of the group that `position` lies in, and the first position after it."""
        epoch, offset = divmod(position, self.count)
        edges = group_edges(self, seed, epoch)
        group = int(np.searchsorted(edges, offset, side="right")) - 1
        return group_blocks(self, seed, epoch, group).tolist(), epoch * self.count + int(edges[group + 1])


def permutation(seed: int, epoch: int, n: int, stream: int = 0) -> Int64[np.ndarray, "n"]:
    """A random order of `n` things, from one of the streams of random numbers of an epoch."""
    counter = np.array([0, 0, 0, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter)).permutation(n)


# What is kept here must not be written to. A batch that crosses an edge needs both sides of it.


@lru_cache(maxsize=2)
def one_block(n: int) -> ShardOrder:
    """The order of a set without blocks."""
    return ShardOrder([n], 1)


@lru_cache(maxsize=4)
def block_order(order: ShardOrder, seed: int, epoch: int) -> Int64[np.ndarray, "blocks"]:
    """The blocks in the order of an epoch."""
    return permutation(seed, epoch, len(order.starts) - 1, OF_BLOCKS)


def group_blocks(order: ShardOrder, seed: int, epoch: int, group: int) -> Int64[np.ndarray, "g"]:
    """The blocks of a group, in the order of the set."""
    return np.sort(block_order(order, seed, epoch)[group * order.group : (group + 1) * order.group])


@lru_cache(maxsize=4)
def group_edges(order: ShardOrder, seed: int, epoch: int) -> Int64[np.ndarray, "groups_and_1"]:
    """Where in its epoch each group starts, and where the last one ends."""
    sizes = np.diff(order.starts)[block_order(order, seed, epoch)]
    return np.cumsum([0, *np.add.reduceat(sizes, np.arange(0, len(sizes), order.group))])


@lru_cache(maxsize=2)
def group_images(order: ShardOrder, seed: int, epoch: int, group: int) -> Int64[np.ndarray, "n"]:
    """The images of a group in the order of an epoch."""
    starts = order.starts
    images = [np.arange(starts[block], starts[block + 1]) for block in group_blocks(order, seed, epoch, group)]
    whole = np.concatenate(images)
    return whole[permutation(seed, epoch, len(whole), group)]
