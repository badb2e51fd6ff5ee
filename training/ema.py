"""The running average of the weights, which is what samples are drawn from."""

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a model, kept as a second model.

    `model` is that second model, in eval mode and without gradients: state by name, ready to be used or saved; the
    trained weights are never swapped. Buffers are averaged too, as the statistics of batch norms go with the weights
    that they were found under; whole numbers are copied. Every process keeps the same average of the weights.
    """

    def __init__(self, average: nn.Module, trained: nn.Module) -> None:
        """`average` is a copy of `trained` on the same device; it becomes `model`."""
        self.model = average.requires_grad_(False).eval()
        pairs = list(zip(average.buffers(), trained.buffers(), strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._average: list[Tensor] = [*average.parameters(), *(ours for ours, _ in averaged)]
        self._weights: list[Tensor] = [*trained.parameters(), *(theirs for _, theirs in averaged)]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, keep: float) -> None:
        """`average <- keep * average + (1 - keep) * trained`, in one call for all weights."""
        torch._foreach_lerp_(self._average, self._weights, 1 - keep)
        for ours, theirs in self._copied:
            ours.copy_(theirs)

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Give every process the buffers of the main one; without this each has those of its own images."""
        for buffer in self.model.buffers():
            buffer.copy_(broadcast(buffer.contiguous()))
