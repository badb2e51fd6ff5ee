"""Weights and inputs that anyone can make again: each tensor is drawn from a generator seeded with its own name."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def _normal(name: str, shape: Sequence[int]) -> Tensor:
    # RandomState is numpy's frozen generator: its numbers are the same in every version.
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(numbers, dtype=np.float32))


def fill(key: str, shape: Sequence[int], salt: str = "") -> Tensor:
    """The tensor of a published state dict under the name `key`, scaled by what kind of tensor it is."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    v = _normal(salt + key, shape)
    if key.endswith("running_var"):
        return 1 + 0.2 * v.abs()
    if len(shape) > 1:
        return v / math.prod(shape[1:]) ** 0.5
    return 1 + 0.1 * v if key.endswith(("weight", "gain")) else 0.1 * v


def golden_input(shape: Sequence[int], name: str = "input") -> Tensor:
    """Standard normal numbers."""
    return _normal(name, shape)
