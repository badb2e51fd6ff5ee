"""Random numbers that depend only on (seed, update, stream), not on processes, micro-batches or interruptions."""

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def mix(seed: int, *words: int | str) -> int:
    """A 32-bit seed from non-negative integers and names.

    32 bits, because a CPU `torch.Generator` uses no more of its seed. Similar inputs give unrelated outputs
    (`numpy.random.SeedSequence`).
    """
    numbers = [crc32(word.encode()) if isinstance(word, str) else word for word in (seed, *words)]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int, *words: int | str) -> Iterator[None]:
    """Seeds torch's CPU generator with `mix(seed, *words)` inside the block, and restores its state afterwards.

    A model that is built inside `with seeded(config.seed, "model")` has the same weights on every process.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(mix(seed, *words))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and of `device`, which dropout uses.

    `torch.manual_seed` would also queue calls for accelerators that are not used, at half a millisecond each.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class GlobalRandom:
    """The random numbers of one update for the rows of one micro-batch, drawn for the whole global batch.

    Every process and every micro-batch draws the same numbers from one generator per (seed, update, stream) and keeps
    its `rows`. So two processes, or four micro-batches, get the numbers of a single large batch.
    Streams: "augment" for `Task.prepare`, "task" for `Task.loss`.
    """

    def __init__(
        self, seed: int, update: int, stream: str, batch: int, rows: slice, device: torch.device | str
    ) -> None:
        self.seed, self.update, self.batch, self.rows, self.device = seed, update, batch, rows, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(mix(seed, update, stream))
        self._host = np.random.default_rng(mix(seed, update, stream, "host"))

    def stream(self, name: str) -> "GlobalRandom":
        """Another stream of the same update and rows, from its beginning."""
        return GlobalRandom(self.seed, self.update, name, self.batch, self.rows, self.device)

    def normal(self, *shape: int) -> Float[Tensor, "rows *shape"]:
        """Standard normal numbers of the given shape for each image, float32."""
        return torch.randn(self.batch, *shape, generator=self.generator, device=self.device)[self.rows]

    def uniform(self) -> Float[Tensor, "rows"]:
        """One uniform number in [0, 1) for each image, float32."""
        return torch.rand(self.batch, generator=self.generator, device=self.device)[self.rows]

    def stratified(self) -> Float[Tensor, "rows"]:
        """One number in [0, 1) for each image, float32: each in another of `batch` equal parts, in random order."""
        part = torch.randperm(self.batch, generator=self.generator, device=self.device)
        inside = torch.rand(self.batch, generator=self.generator, device=self.device)
        return ((part + inside) / self.batch).clamp(max=1 - 2**-24)[self.rows]

    def integers(self, high: int) -> Int[Tensor, "rows"]:
        """One uniform integer in [0, high) for each image, int64."""
        return torch.randint(high, (self.batch,), generator=self.generator, device=self.device)[self.rows]

    def beta(self, concentration: float) -> Float[Tensor, "rows"]:
        """One number in [0, 1] for each image, float32, symmetric about 1/2: Beta(concentration, concentration).

        Drawn by numpy, because torch's Beta distribution takes no generator, and copied without waiting for the device.
        """
        drawn = self._host.beta(concentration, concentration, self.batch).astype(np.float32)[self.rows]
        return torch.from_numpy(drawn).to(self.device, non_blocking=True)
