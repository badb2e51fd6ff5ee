"""Random numbers that depend on (seed, update, stream) alone: not on processes, accumulation or interruptions."""

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def mix(seed: int, *words: int | str) -> int:
    """A 32-bit seed from non-negative integers and names.

    32 bits, because a CPU `torch.Generator` keeps no more of its seed; neighbouring inputs give unrelated outputs
    (`numpy.random.SeedSequence`).
    """
    numbers = [crc32(word.encode()) if isinstance(word, str) else word for word in (seed, *words)]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int, *words: int | str) -> Iterator[None]:
    """Within the block torch's CPU generator starts from `mix(seed, *words)`; afterwards it goes on as before.

    Build a model inside `with seeded(config.seed, "model")` and every process starts from the same weights.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(mix(seed, *words))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def seed_device(seed: int, device: torch.device) -> None:
    """Start the default generators of the CPU and of `device`, which dropout draws from, at `seed`.

    `torch.manual_seed` would also queue calls for accelerators that are not in use, at half a millisecond each.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class GlobalRandom:
    """The random numbers of one update, drawn for the whole global batch and handed out for one slice of it.

    Every process and every micro-batch draws the same numbers from one generator per (seed, update, stream) and keeps
    its `part`, so that two processes, or four micro-batches, see what a single large batch would see.
    Streams: "augment" for `Task.prepare`, "task" for `Task.loss`.
    """

    def __init__(
        self, seed: int, update: int, stream: str, batch: int, part: slice, device: torch.device | str
    ) -> None:
        self.seed, self.update, self.batch, self.part, self.device = seed, update, batch, part, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(mix(seed, update, stream))
        self._host = np.random.default_rng(mix(seed, update, stream, "host"))

    def stream(self, name: str) -> "GlobalRandom":
        """Another stream of the same update and part, from its beginning."""
        return GlobalRandom(self.seed, self.update, name, self.batch, self.part, self.device)

    def normal(self, *shape: int) -> Float[Tensor, "part *shape"]:
        """Standard normal numbers of the given shape for each image, float32."""
        return torch.randn(self.batch, *shape, generator=self.generator, device=self.device)[self.part]

    def uniform(self) -> Float[Tensor, "part"]:
        """One uniform number in [0, 1) for each image, float32."""
        return torch.rand(self.batch, generator=self.generator, device=self.device)[self.part]

    def integers(self, high: int) -> Int[Tensor, "part"]:
        """One uniform integer in [0, high) for each image, int64."""
        return torch.randint(high, (self.batch,), generator=self.generator, device=self.device)[self.part]

    def beta(self, concentration: float) -> Float[Tensor, "part"]:
        """One number in [0, 1] for each image, float32, symmetric about 1/2: Beta(concentration, concentration).

        Drawn by numpy, since torch has no generator of its own for it, and copied without waiting for the device.
        """
        drawn = self._host.beta(concentration, concentration, self.batch).astype(np.float32)[self.part]
        return torch.from_numpy(drawn).to(self.device, non_blocking=True)
