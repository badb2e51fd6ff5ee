"""Exponential moving average (EMA) of the weights. Samples and evaluations use it."""

from dataclasses import dataclass

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from training.settings import require


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The averaged model, which evaluations and model folders use."""

    halflife_images: int | None = 500_000
    """EMA half-life, in training images. null: no average, the trained weights are used"""
    rampup: float | None = 0.05
    """limits the half-life to this share of the images seen so far (Karras et al. 2022). null: no limit"""

    def __post_init__(self) -> None:
        halflife = self.halflife_images
        require(halflife is None or halflife >= 1, self, "halflife_images", "give at least 1, or null")
        require(self.rampup is None or self.rampup > 0, self, "rampup", "give a share above 0, or null")

    def decay(self, images_seen: int, batch: int) -> float:
        """The share of the averaged weights that is kept by the update that ended at `images_seen` images.

        The half-life is at most `rampup` times the images seen, so that the random initial weights are forgotten soon
        (Karras et al. 2022, appendix F, in half-life form).
        """
        if self.halflife_images is None:
            return 0.0
        halflife = float(self.halflife_images)
        if self.rampup is not None:
            halflife = min(halflife, self.rampup * images_seen)
        return 0.5 ** (batch / halflife)


class Ema:
    """An exponential moving average of a model, kept as a second model.

    `model` is that second model, in eval mode and without gradients. The trained weights are never swapped. Buffers of
    floating point type are averaged, too, because running statistics of batch norms belong to the weights that they
    were measured with; others are copied. All ranks hold the same averaged weights.
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
    def update(self, decay: float) -> None:
        """`average <- decay * average + (1 - decay) * trained`, in one call for all weights."""
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)
        for ours, theirs in self._copied:
            ours.copy_(theirs)

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Broadcasts the buffers of rank 0; before, each rank has those of its own images."""
        for buffer in self.model.buffers():
            buffer.copy_(broadcast(buffer.contiguous()))
