"""Non-leaky augmentation: how each image was changed is an input of the network, so samples do not look augmented.

Karras et al. 2022, appendix F.2: each image is flipped, scaled, rotated, stretched and shifted at random. Nine numbers
per image describe this, all zero for an unchanged image. Samples are drawn with zeros.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from training.random import GlobalRandom

SPREAD = 0.2  # standard deviation of the base-2 logarithm of scale and stretch
SHIFT = 0.125  # standard deviation of a shift, as a share of the image's side

# Low-pass filter of the least asymmetric orthogonal wavelet with six vanishing moments (Daubechies 1992, table 6.3).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
CENTRE = 5  # tap in the middle of the filter, whose delay is 4.6 to 5.1 over the frequencies that it passes
PAD_PX = 3  # reach of the filter beyond the border


@dataclass(frozen=True)
class Change:
    """The changes of each image, in this order. An image whose numbers are all zero stays unchanged."""

    x_flip: Float[Tensor, "b"]
    """1: mirrored left to right"""
    y_flip: Float[Tensor, "b"]
    """1: mirrored top to bottom"""
    scale: Float[Tensor, "b"]
    """enlarged by 2 to the power of `SPREAD` times this"""
    angle: Float[Tensor, "b"]
    """rotated counter-clockwise, in radians"""
    axis: Float[Tensor, "b"]
    """direction of the stretch, in radians counter-clockwise from the right"""
    stretch: Float[Tensor, "b"]
    """stretched along the axis by 2 to the power of `SPREAD` times this, and shrunk across it by as much"""
    right: Float[Tensor, "b"]
    """shifted to the right by `SHIFT` times this, in widths of the image"""
    down: Float[Tensor, "b"]
    """shifted down by `SHIFT` times this, in heights of the image"""

    def label(self) -> Float[Tensor, "b 9"]:
        """The augmentation label (table 6): x flip, y flip, scale, cos(angle) - 1, sin(angle), stretch cos(axis),
        stretch sin(axis), right, down."""
        turned = (self.angle.cos() - 1, self.angle.sin())
        stretched = (self.stretch * self.axis.cos(), self.stretch * self.axis.sin())
        return torch.stack([self.x_flip, self.y_flip, self.scale, *turned, *stretched, self.right, self.down], dim=1)

    def __call__(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The changed images. Flipped and unchanged images are exact; the border is filled by reflection."""
        image = torch.where(_per_image(self.x_flip > 0), image.flip(3), image)
        image = torch.where(_per_image(self.y_flip > 0), image.flip(2), image)
        moves = torch.stack([self.scale, self.angle, self.stretch, self.right, self.down]).ne(0).any(dim=0)
        return torch.where(_per_image(moves), _warped(image, self), image)


def draw_change(random: GlobalRandom, probability: float) -> Change:
    """Random changes: each is made with this probability, but horizontal flips always with probability 1/2.

    A vertical flip that is drawn happens to half of the images. The numbers are standard normal, angles uniform.
    """

    def made(share: float) -> Float[Tensor, "b"]:
        return (random.uniform() < share).float()

    def angle() -> Float[Tensor, "b"]:
        return (2 * random.uniform() - 1) * math.pi

    stretched, moved = made(probability), made(probability)
    return Change(
        x_flip=made(0.5),
        y_flip=made(probability / 2),
        scale=made(probability) * random.normal(),
        angle=made(probability) * angle(),
        axis=stretched * angle(),
        stretch=stretched * random.normal(),
        right=moved * random.normal(),
        down=moved * random.normal(),
    )


def non_leaky(
    image: Float[Tensor, "b c h w"], random: GlobalRandom, probability: float
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 9"]]:
    """Float32 images changed at random on their device, and their augmentation labels.

    `probability` is that of each change. Half of all images are mirrored, and labelled so, as published. The result
    does not depend on processes or micro-batches. Resampling rings at edges, so values may leave the range of the
    images by a little.
    Raises ValueError for images of fewer than 4 pixels a side.
    """
    if min(image.shape[2:]) <= PAD_PX:
        h, w = image.shape[2:]
        raise ValueError(
            f"images of {h}×{w} pixels are too small to be augmented; give at least 4×4, or no augmentation"
        )
    change = draw_change(random, probability)
    return change(image), change.label()


def _warped(image: Float[Tensor, "b c h w"], change: Change) -> Float[Tensor, "b c h w"]:
    """The images scaled, rotated, stretched and shifted, resampled at twice their size.

    The wavelet filter that doubles and halves the size has orthogonal shifts, so images that are not moved, or moved by
    whole pixels, are exact (Karras et al. 2020, "Training GANs with limited data", appendix B). Sums of slices replace
    convolutions, which may round to TF32.
    """
    h, w = image.shape[2:]
    large = _doubled(_doubled(F.pad(image, (PAD_PX,) * 4, mode="reflect")).mT).mT
    y, x = (torch.arange(-CENTRE, 2 * n + CENTRE, device=image.device) / 2 - (n - 1) / 2 for n in (h, w))
    x, y = _source(change, x.expand(len(image), len(y), -1), y[:, None].expand(len(image), -1, len(x)), h, w)
    grid = torch.stack([_in_large(x, w), _in_large(y, h)], dim=-1)
    moved = F.grid_sample(large, grid, mode="bilinear", align_corners=True)
    return _halved(_halved(moved).mT).mT


def _source(change: Change, x: Tensor, y: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Source coordinates of the points of the changed image, in pixels from the middle: each change undone in turn."""
    scale, angle, axis, stretch, right, down = (
        n[:, None, None] for n in (change.scale, change.angle, change.axis, change.stretch, change.right, change.down)
    )
    x, y = x - SHIFT * w * right, y - SHIFT * h * down
    x, y = _rotated(x, y, -axis)
    x, y = x * (-SPREAD * stretch).exp2(), y * (SPREAD * stretch).exp2()
    x, y = _rotated(x, y, axis - angle)
    return x * (-SPREAD * scale).exp2(), y * (-SPREAD * scale).exp2()


def _rotated(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated counter-clockwise as displayed, with y pointing down."""
    c, s = angle.cos(), angle.sin()
    return c * x + s * y, c * y - s * x


def _in_large(x: Tensor, pixels: int) -> Tensor:
    """Coordinates for `grid_sample` of points in pixels from the middle, reflected at the outermost pixels."""
    last = pixels - 1
    x = last - ((x + last / 2).remainder(2 * last) - last).abs()
    return 2 * (2 * x + 1) / (2 * pixels + 1) - 1  # the doubled image begins one half pixel before the first pixel


def _doubled(x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w2"]:
    """Half pixels -1 … 2 w of a row that was padded by `PAD_PX` on either side to w + 6."""
    count = x.shape[-1] - CENTRE
    even, odd = (_weighted(x, SYM6[phase::2], range(CENTRE, -1, -1), 1, count) for phase in (0, 1))
    return math.sqrt(2) * torch.stack([even, odd], dim=-1).flatten(-2)


def _halved(x: Float[Tensor, "*b w2"]) -> Float[Tensor, "*b w"]:
    """The w pixels of a row of half pixels -5 … 2 w + 4: the transpose of `_doubled`."""
    return _weighted(x, SYM6, range(len(SYM6)), 2, (x.shape[-1] - 2 * CENTRE) // 2) / math.sqrt(2)


def _weighted(x: Tensor, taps: Sequence[float], starts: Sequence[int], step: int, count: int) -> Tensor:
    total = torch.zeros_like(x[..., :count])
    for tap, start in zip(taps, starts, strict=True):
        total.add_(x[..., start : start + step * (count - 1) + 1 : step], alpha=tap)
    return total


def _per_image(which: Tensor) -> Tensor:
    return which[:, None, None, None]
