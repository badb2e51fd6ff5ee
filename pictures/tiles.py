"""Images of any size in tiles: a function of small images is applied to overlapping parts of a large one."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")
Pausing = Generator[float, None, T]
"""a computation that pauses after each part, yields the share that is done, and returns its result"""


def finish(computation: Pausing[T]) -> T:
    """The result of a computation, without its pauses."""
    while True:
        try:
            next(computation)
        except StopIteration as end:
            result: T = end.value
            return result


@dataclass(frozen=True)
class Tiles:
    """Square tiles that overlap. An image that is smaller than a tile is one tile.

    Raises ValueError for an overlap that leaves no step from one tile to the next.
    """

    px: int
    """side of a tile, in pixels"""
    overlap_px: int
    """pixels that neighbours share, at least. Each of them is used alone in the quarter that is farthest from its edge,
    and between these quarters they are blended; so a quarter of the overlap hides what edges change"""
    batch: int = 8
    """tiles that the function receives at a time"""

    def __post_init__(self) -> None:
        if self.px < 1 or self.batch < 1:
            raise ValueError(f"tile={self.px}, batch={self.batch} is out of range; give at least 1")
        if not 0 <= self.overlap_px < self.px:
            raise ValueError(f"overlap={self.overlap_px} is out of range for tile={self.px}; give 0 to {self.px - 1}")

    def apply(
        self, function: Callable[[Float[Tensor, "n c h w"]], Tensor], image: Float[Tensor, "1 c h w"], scale: int = 1
    ) -> Float[Tensor, "1 c2 h2 w2"]:
        """What the function makes of the tiles, put together; it makes them `scale` times as high and wide.

        The function must not depend on what else is in the batch. Where it needs no pixel that is farther away than a
        quarter of the overlap, the result is that of the whole image. Overlaps are summed at least in float32.
        """
        return finish(self.applying(function, image, scale))

    def applying(
        self, function: Callable[[Float[Tensor, "n c h w"]], Tensor], image: Float[Tensor, "1 c h w"], scale: int = 1
    ) -> Pausing[Float[Tensor, "1 c2 h2 w2"]]:
        """As `apply`, with a pause after each call of the function."""
        height, width = image.shape[2:]
        rows, columns = min(self.px, height), min(self.px, width)
        corners = [(top, left) for top in self._starts(height) for left in self._starts(width)]
        if len(corners) == 1:
            return function(image)
        total: Tensor | None = None
        weights = torch.zeros(1, 1, scale * height, scale * width, device=image.device)
        for first in range(0, len(corners), self.batch):
            group = corners[first : first + self.batch]
            parts = torch.cat([image[:, :, top : top + rows, left : left + columns] for top, left in group])
            for (top, left), made in zip(group, function(parts), strict=True):
                down = self._ramp(rows, top > 0, top + rows < height, scale, image.device)
                right = self._ramp(columns, left > 0, left + columns < width, scale, image.device)
                weight = down[:, None] * right
                if total is None:
                    dtype = torch.promote_types(made.dtype, torch.float32)
                    total = torch.zeros(1, made.shape[0], *weights.shape[2:], dtype=dtype, device=made.device)
                y, x = (slice(scale * a, scale * (a + n)) for a, n in ((top, rows), (left, columns)))
                total[:, :, y, x] += weight * made
                weights[:, :, y, x] += weight
            yield min(1.0, (first + self.batch) / len(corners))
        assert total is not None, "there are at least two tiles"
        return total / weights

    def _starts(self, side: int) -> list[int]:
        """The first pixel of each tile along a side."""
        last = max(0, side - self.px)
        return [*range(0, last, self.px - self.overlap_px), last]

    def _ramp(self, side: int, low: bool, high: bool, scale: int, device: torch.device) -> Float[Tensor, "pixels"]:
        """The weight of a tile's pixels along a side: it rises over the middle half of the overlap at edges inside the
        image, at the `low` end, at the `high` end, or both."""
        place = (torch.arange(scale * side, device=device) + 0.5) / scale
        ends = [end for end, inside in ((place, low), (side - place, high)) if inside]
        slopes = [((end - self.overlap_px / 4) / max(self.overlap_px / 2, 1e-6)).clamp(0, 1) for end in ends]
        return reduce(torch.mul, slopes, torch.ones_like(place))
