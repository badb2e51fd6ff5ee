"""Measures loss, gradient norm and speed over an interval, without a host sync per update."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from training.step import StepResult


class Meter:
    """Sums loss and gradient norm on the device, and measures the time between two readings.

    A checkpoint stores the sums, so that a resumed run reads the same means as an undisturbed one.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, device=device)
        self.updates = 0
        """updates since the last `restart`, in earlier processes too"""
        self.restart_clock(0.0)

    def add(self, result: StepResult) -> None:
        """Count one update. One that was skipped counts for the time only."""
        self._timed_updates += 1
        if not result.skipped:
            self._sums += torch.stack([result.loss, result.gradient_norm])
            self.updates += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside the block is not counted as training time."""
        begin = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - begin

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean loss and gradient norm of the updates since the last `restart`, over all processes. Waits for them.

        Empty if there was none.
        """
        if not self.updates:
            return {}
        loss, norm = (accelerator.reduce(self._sums, "mean") / self.updates).tolist()
        return {"loss": loss, "gradient_norm": norm}

    def speed(self, batch: int, waited_seconds: float) -> dict[str, float]:
        """Images per second, and the share of time spent waiting for data (`waited_seconds` in total).

        Nothing if no update was timed.
        """
        if not self._timed_updates:
            return {}
        elapsed = time.perf_counter() - self._since - self._paused_s
        return {
            "images_per_second": batch * self._timed_updates / elapsed,
            "data_wait": (waited_seconds - self._waited_seconds) / elapsed,
        }

    def restart(self, waited_seconds: float) -> None:
        """Start a new interval."""
        self._sums.zero_()
        self.updates = 0
        self.restart_clock(waited_seconds)

    def restart_clock(self, waited_seconds: float) -> None:
        """Measure the speed from now on."""
        self._timed_updates, self._waited_seconds = 0, waited_seconds
        self._paused_s, self._since = 0.0, time.perf_counter()

    def sums(self, accelerator: Accelerator) -> tuple[tuple[float, float], ...]:
        """Loss and gradient norm since the last `restart`, summed, of each process; to be called on every process."""
        return tuple((loss, norm) for loss, norm in accelerator.gather(self._sums[None]).tolist())

    def restore(self, updates: int, sums: Sequence[tuple[float, float]], accelerator: Accelerator) -> None:
        """Continue from the `sums` over `updates`; with another number of processes, from the mean of them."""
        if sums:
            saved = torch.tensor(sums, dtype=self._sums.dtype)
            is_same = len(saved) == accelerator.num_processes
            self._sums.copy_(saved[accelerator.process_index] if is_same else saved.mean(dim=0))
            self.updates = updates


def require_finite(where: str, numbers: Mapping[str, float]) -> None:
    """Raises the error `diverged` if one of `numbers` is not finite."""
    if not all(map(math.isfinite, numbers.values())):
        raise diverged(where, numbers)


def diverged(where: str, numbers: Mapping[str, float]) -> ValueError:
    """The error that training diverged; `where` the numbers were measured begins its message."""
    shown = ", ".join(f"{name} is {number:.4g}" for name, number in numbers.items())
    return ValueError(
        f"training diverged: {where} {shown}. Lower optimizer.learning_rate, raise schedule.warmup_images, "
        "or give other weights to init, if it is set; and start over with --fresh"
    )
