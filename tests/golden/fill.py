"""Weights and inputs that two implementations can share without a file: drawn by name from a frozen generator."""

import zlib

import numpy as np
import torch
from torch import Tensor


def normal(shape: tuple[int, ...], name: str) -> Tensor:
    """Standard normal float32 numbers of `RandomState(crc32(name))`."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(draw, dtype=np.float32))


def fill(key: str, shape: tuple[int, ...], salt: str = "") -> Tensor:
    """The tensor of one state-dict entry, scaled by what it is: a matrix, a gain or a bias."""
    draw = normal(shape, salt + key)
    if len(shape) >= 2:
        return draw / np.prod(shape[1:]) ** 0.5
    return 1 + 0.1 * draw if key.endswith(("weight", "gain")) else 0.1 * draw
