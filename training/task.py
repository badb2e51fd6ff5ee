"""All that the training loop sees of what it trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.random import GlobalRandom


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device: augmented float32 images in [-1, 1], and int64 labels if the data has any.

    `augment` is what the network is to be told of each image's augmentation, if it is non-leaky.
    """

    image: Float[Tensor, "b c h w"]
    label: Int[Tensor, "b"] | None
    augment: Float[Tensor, "b 9"] | None = None


@runtime_checkable
class Task(Protocol):
    """A trainable thing: its model, its loss, what to do when an evaluation is due, and how it is handed on."""

    model: nn.Module

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Float[Tensor, "b"]:
        """One float32 loss per image. `model` is `self.model` prepared for the devices (autocast, several processes);
        every random number comes from `random`, so that the result does not depend on the number of processes."""
        ...

    def evaluate(
        self,
        model: nn.Module,
        folder: Path,
        images_seen: int,
        accelerator: Accelerator,
        interrupted: Callable[[], object],
    ) -> Mapping[str, float] | None:
        """Called on every process with the EMA model in eval mode; files go to `folder`, by the main process only.
        The numbers that it returns are logged. What takes long asks `interrupted()` now and then, every process
        equally often: all of them get the same answer, and if it is true, leave by returning None."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Called on the main process: write `model` and all that using it takes into the existing empty `folder`."""
        ...

    def example(self, batch: int, device: torch.device | str) -> tuple[Tensor, ...]:
        """Inputs with which `self.model(*inputs)` can be called, for `batch` images."""
        ...
