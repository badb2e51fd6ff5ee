"""Drawn images: checked, and collected from all processes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")


def require_finite(images: Sequence[int], x: Float[Tensor, "b c h w"], guidance: float) -> None:
    """Raises ValueError, with the number of the first one, for drawn images with values that are not finite."""
    finite = x.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        way_out = "leave guidance at 1" if guidance != 1 else "take an earlier checkpoint, or other weights"
        broken = images[finite.index(False)]
        raise ValueError(f"image {broken} has values that are not finite (NaN, or too large to hold); {way_out}")


def gather_drawn(
    drawn: Sequence[tuple[int, T]], count: int, gather: Callable[[list[Any]], list[Any]] = gather_object
) -> list[T]:
    """What all processes have drawn, by image number, without the numbers of `count` and more. On every process."""
    ordered = sorted(gather(list(drawn)), key=lambda pair: pair[0])
    return [value for number, value in ordered if number < count]
