"""Reads the micro-batches of one process, one ahead in a thread."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor

from training.data.originals import DataLost
from training.data.stream import ImageSet


class MicroBatch(NamedTuple):
    """Images as stored, target and condition, with their labels and vectors if the set has any."""

    image: Shaped[Tensor, "b c h w"]
    label: Int64[Tensor, "b"] | None
    vector: Float32[Tensor, "b v"] | None
    numbers: Int64[np.ndarray, "b"]
    """of the images in the set"""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device, where pinned memory arrives asynchronously."""
        label, vector = (
            None if part is None else part.to(device, non_blocking=True) for part in (self.label, self.vector)
        )
        return MicroBatch(self.image.to(device, non_blocking=True), label, vector, self.numbers)


class BatchReader:
    """Images, labels and vectors of one process, micro-batch by micro-batch.

    Update u covers positions u * batch to (u + 1) * batch of the run (see `Images.take`). Rank r reads the r-th of
    `ranks` equal slices, in micro-batches of `micro_batch` images (None: all at once). A thread reads the next
    micro-batch while the device works on this one; for CUDA it is in pinned memory and copied asynchronously.
    Raises ValueError if the batch is not divisible.
    """

    def __init__(
        self,
        images: ImageSet,
        seed: int,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        micro_batch: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.micro_batch = batch // ranks if micro_batch is None else micro_batch
        if self.micro_batch < 1 or batch < 1 or batch % (ranks * self.micro_batch):
            raise ValueError(
                f"batch {batch} is not divisible into micro-batches of {self.micro_batch} images on {ranks} processes;"
                " give a multiple of processes x train.micro_batch"
            )
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} is outside 0..{ranks - 1}")
        self.images, self.seed, self.batch = images, seed, batch
        self.first = rank * (batch // ranks)
        self.micro_batches = batch // ranks // self.micro_batch
        """micro-batches per update"""
        self.device = torch.device(device)
        self._is_pinned = self.device.type == "cuda"
        self.waited_seconds = 0.0
        """total time that `get` has waited for the thread"""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._ahead: tuple[tuple[int, int], Future[MicroBatch]] | None = None

    def get(self, update: int, index: int = 0) -> MicroBatch:
        """Micro-batch `index` of this rank in an update, on the device."""
        assert 0 <= index < self.micro_batches, (index, self.micro_batches)
        if self._ahead is None or self._ahead[0] != (update, index):
            self._submit(update, index)
        assert self._ahead is not None
        future = self._ahead[1]
        self._ahead = None
        start = time.perf_counter()
        found = future.result()
        self.waited_seconds += time.perf_counter() - start
        self._submit(*((update, index + 1) if index + 1 < self.micro_batches else (update + 1, 0)))
        return found.to(self.device)

    def lost(self, update: int) -> DataLost | None:
        """Waits for the first micro-batch of an update; returns the error if the data set cannot be read on."""
        if self._ahead is None or self._ahead[0] != (update, 0):
            self._submit(update, 0)
        assert self._ahead is not None
        start = time.perf_counter()
        error = self._ahead[1].exception()
        self.waited_seconds += time.perf_counter() - start
        return error if isinstance(error, DataLost) else None

    def resize(self, micro_batch: int) -> None:
        """Reads micro-batches of another size from now on, which divides the images of this rank."""
        self.micro_batches, self.micro_batch = self.micro_batches * self.micro_batch // micro_batch, micro_batch
        self._ahead = None

    def close(self) -> None:
        """Stops reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, update: int, index: int) -> None:
        self._ahead = (update, index), self._pool.submit(self._read, update, index)

    def _read(self, update: int, index: int) -> MicroBatch:
        start = update * self.batch + self.first + index * self.micro_batch
        position = np.arange(start, start + self.micro_batch, dtype=np.int64)
        dtype = getattr(torch, self.images.pixel_format.stored.name)
        image = torch.empty((len(position), *self.images.shape), dtype=dtype, pin_memory=self._is_pinned)
        numbers = self.images.take(position, self.seed, image.numpy())
        labels, vectors = (self._values_of(values, numbers) for values in (self.images.labels, self.images.vectors))
        return MicroBatch(image, labels, vectors, numbers)

    def _values_of(self, values: np.ndarray | None, numbers: np.ndarray) -> Tensor | None:
        """The values of the images with these numbers."""
        if values is None:
            return None
        found = torch.from_numpy(values[numbers])
        return found.pin_memory() if self._is_pinned else found
