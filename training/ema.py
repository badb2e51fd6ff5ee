"""Averages of the weights over a training. Samples and evaluations use the main one."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from training.settings import require, setting

MAIN = "ema"
"""the name of the main average"""
MIN_WIDTH, MAX_WIDTH = 0.001, 0.288
"""of power-function averages; the average with equal weights has the width 12^(-1/2) = 0.2887"""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Averages of the weights. The main one is the model that evaluations and model folders use."""

    halflife_images: int | None = 500_000
    """half-life of the main average, in training images. null: no average, the trained weights are used"""
    rampup: float | None = 0.05
    """limits half-lives to this share of the images seen so far (Karras et al. 2022). null: no limit"""
    more_halflife_images: tuple[int, ...] = ()
    """half-lives of further averages in the checkpoints, for --ema of sample.py, evaluate.py and export.py"""
    power_widths: tuple[float, ...] = ()
    """widths of power-function averages, as relative standard deviations (0.05,0.1 in Karras et al. 2024). From their
    snapshots --ema reconstructs other widths"""
    snapshot_every_images: int = setting(1_000_000, may_change=True)
    """images between two snapshots of the power-function averages; the end of the run always has one"""

    def __post_init__(self) -> None:
        main, more, widths = self.halflife_images, self.more_halflife_images, self.power_widths
        require(main is None or main >= 1, self, "halflife_images", "give at least 1, or null")
        require(self.rampup is None or self.rampup > 0, self, "rampup", "give a share above 0, or null")
        differ = len({main, *more}) == 1 + len(more)
        way_out = f"give numbers from 1 that differ from each other and from ema.halflife_images={main}"
        require(differ and all(each >= 1 for each in more), self, "more_halflife_images", way_out)
        in_range = all(MIN_WIDTH <= width <= MAX_WIDTH for width in widths)
        way_out = f"give widths from {MIN_WIDTH} to {MAX_WIDTH}, such as 0.05,0.1"
        require(in_range, self, "power_widths", way_out)
        require(len(set(widths)) == len(widths), self, "power_widths", "give each width once")
        require(self.snapshot_every_images >= 1, self, "snapshot_every_images", "give at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all averages, which are those of their files in a checkpoint; the main one is the first."""
        return (MAIN, *map(average_name, (*self.more_halflife_images, *self.power_widths)))

    def decays(self, images_seen: int, batch: int) -> dict[str, float]:
        """The share of each average, by name, that is kept by the update that ended at `images_seen` images.

        Half-lives are at most `rampup` times the images seen, so that the random initial weights are forgotten soon
        (Karras et al. 2022, appendix F, in half-life form). Power-function averages keep `(1 - 1/t)^(γ + 1)` in
        update t (Karras et al. 2024, section 3.1; γ: `power_exponent`).
        """
        limit = float("inf") if self.rampup is None else self.rampup * images_seen
        halflives = [min(each or 0, limit) for each in (self.halflife_images, *self.more_halflife_images)]
        kept = [0.5 ** (batch / halflife) if halflife else 0.0 for halflife in halflives]
        kept += [(1 - batch / images_seen) ** (power_exponent(width) + 1) for width in self.power_widths]
        return dict(zip(self.names, kept, strict=True))


def average_name(value: float) -> str:
    """The name of the average with a half-life in images, or of the power-function average with a width."""
    return f"{MAIN}-{value}"


def power_exponent(width: float) -> float:
    """The exponent of the power-function average of a relative standard deviation `width`.

    In that average the weights at time τ count in proportion to `τ^γ`. The exponent γ is the largest root of
    `width^2 (γ + 2)^2 (γ + 3) = γ + 1` (Karras et al. 2024, appendix C).
    """
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class Ema:
    """An exponential moving average of a model, kept as a second model.

    `model` is that second model, in eval mode and without gradients. The trained weights are never swapped. Buffers of
    floating point type are averaged, too, because running statistics of batch norms belong to the weights that they
    were measured with; others are copied. Frozen weights equal their average. All ranks hold the same averaged weights.
    """

    def __init__(self, average: nn.Module, trained: nn.Module) -> None:
        """`average` is a copy of `trained` on the same device; it becomes `model`."""
        self.model = average.requires_grad_(False).eval()
        pairs = list(zip(average.buffers(), trained.buffers(), strict=True))
        averaged: list[tuple[Tensor, Tensor]] = [pair for pair in pairs if pair[0].is_floating_point()]
        weights = zip(average.parameters(), trained.parameters(), strict=True)
        averaged += [pair for pair in weights if pair[1].requires_grad]
        self._average: list[Tensor] = [ours for ours, _ in averaged]
        self._weights: list[Tensor] = [theirs for _, theirs in averaged]
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
