"""Hands a process its images: the right slice of each global batch, read one ahead in a thread."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from training.data.stream.stream import ImageSet

Slice = tuple[Shaped[Tensor, "b c h w"], Int64[Tensor, "b"] | None]


class BatchReader:
    """Images and labels of one process, update by update.

    Update u covers positions u * batch to (u + 1) * batch of the run (see `Images.take`). Rank r takes the r-th of
    `ranks` equal parts, in pieces of `micro_batch` images (None: all at once). The next piece is read by a thread while
    the device works on this one; on CUDA it lies in pinned memory and is copied without waiting.
    Raises ValueError if the parts do not come out even.
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
                f"batch {batch} cannot be shared by {ranks} processes in pieces of {self.micro_batch} images;"
                " it must be a multiple of processes x train.micro_batch"
            )
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} is outside 0..{ranks - 1}")
        self.images, self.seed, self.batch = images, seed, batch
        self.first = rank * (batch // ranks)
        self.micros = batch // ranks // self.micro_batch
        """pieces per update"""
        self.device = torch.device(device)
        self.waited_seconds = 0.0
        """time that `get` has waited for the thread, in all"""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._ahead: tuple[tuple[int, int], Future[Slice]] | None = None

    def get(self, update: int, micro: int = 0) -> Slice:
        """Piece `micro` of this rank's part of update `update`, on the device: images as stored, and labels, if any."""
        assert 0 <= micro < self.micros, (micro, self.micros)
        if self._ahead is None or self._ahead[0] != (update, micro):
            self._start(update, micro)
        assert self._ahead is not None
        future = self._ahead[1]
        self._ahead = None
        start = time.perf_counter()
        image, label = future.result()
        self.waited_seconds += time.perf_counter() - start
        self._start(*((update, micro + 1) if micro + 1 < self.micros else (update + 1, 0)))
        return image.to(self.device, non_blocking=True), None if label is None else label.to(
            self.device, non_blocking=True
        )

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, update: int, micro: int) -> None:
        self._ahead = (update, micro), self._pool.submit(self._read, update, micro)

    def _read(self, update: int, micro: int) -> Slice:
        start = update * self.batch + self.first + micro * self.micro_batch
        position = np.arange(start, start + self.micro_batch, dtype=np.int64)
        pinned = self.device.type == "cuda"
        dtype = getattr(torch, self.images.pixel_format.stored.name)
        image = torch.empty((len(position), *self.images.shape), dtype=dtype, pin_memory=pinned)
        numbers = self.images.take(position, self.seed, image.numpy())
        if numbers is None:
            return image, None
        label = torch.from_numpy(numbers)
        return image, label.pin_memory() if pinned else label
