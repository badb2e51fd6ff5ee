"""The order of images: a function of the seed and a position, so no loader has a state that a checkpoint must hold."""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64


def image_index(position: Int64[np.ndarray, "b"], n: int, seed: int) -> Int64[np.ndarray, "b"]:
    """Number of the image at each position of the endless stream of a run over `n` images.

    Position p holds image perm(seed, p // n)[p % n]: every epoch is a fresh permutation, drawn with the counter-based
    generator Philox (Salmon et al. 2011) keyed by seed and epoch. Raises ValueError for a negative position or seed.
    """
    if n < 1:
        raise ValueError(f"{n} images: there must be at least one")
    if seed < 0 or (len(position) and position.min() < 0):
        raise ValueError(f"seed {seed} and positions from {position.min(initial=0)} on must not be negative")
    epochs, offsets = np.divmod(position, n)
    index = np.empty_like(position)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = permutation(seed, int(epoch), n)[offsets[here]]
    return index


@lru_cache(maxsize=2)  # a batch that crosses the edge of an epoch needs both sides
def permutation(seed: int, epoch: int, n: int) -> Int64[np.ndarray, "n"]:
    """The order of one epoch; kept, so not to be written to."""
    order = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(n)
    order.setflags(write=False)
    return order
