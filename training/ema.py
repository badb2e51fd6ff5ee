"""The running average of the weights, which is what samples are drawn from."""

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a model, kept as a second model.

    `model` is that second model, in eval mode and without gradients: state by name, ready to be used or saved; the
    trained weights are never swapped. Buffers are copied, not averaged. Every process keeps the same average.
    """

    def __init__(self, average: nn.Module, trained: nn.Module) -> None:
        """`average` is a copy of `trained` on the same device; it becomes `model`."""
        self.model = average.requires_grad_(False).eval()
        self._average: list[Tensor] = list(average.parameters())
        self._weights: list[Tensor] = list(trained.parameters())
        self._buffers, self._sources = list(average.buffers()), list(trained.buffers())

    @torch.no_grad()
    def update(self, keep: float) -> None:
        """`average <- keep * average + (1 - keep) * trained`, in one call for all weights."""
        torch._foreach_lerp_(self._average, self._weights, 1 - keep)
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._sources)
