"""Units of arrays: values that are standardised per channel for networks, after an optional transform, and back."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pictures.pixel_format import DTYPES, FULL_RANGE, PixelFormat

Function = Callable[[Tensor], Tensor]
TRANSFORMS: dict[str, tuple[Function, Function]] = {
    "none": (lambda values: values, lambda values: values),
    "log1p": (torch.log1p, torch.expm1),
    "arcsinh": (torch.arcsinh, torch.sinh),
}
"""functions of values with heavy tails, and their inverses"""


@dataclass(frozen=True, kw_only=True)
class Units:
    """A map from the values v of each channel to (transform(v) - mean) / std, and back to the units of the data.

    No value is clipped, in either direction. `mean` and `std`, after the transform, are rounded to float32.

    Raises ValueError for a dtype that is not in `DTYPES`, for an unknown transform, for numbers that are not finite or
    a standard deviation that is not positive, and for lists of different lengths.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: tuple[str, ...]
    """keys of TRANSFORMS, one per channel"""
    dtype: str = "float32"
    """numpy's name of the dtype in the source files, also used for samples; one of DTYPES"""

    file: ClassVar[str] = "npy"
    """file type of samples"""
    limit: ClassVar[float] = math.inf
    """largest absolute value that networks should draw"""
    spacing: ClassVar[float | None] = None
    """of neighbouring integers; unknown, as it differs between channels"""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not supported; give one of {', '.join(DTYPES)}")
        if not self.mean or not len(self.mean) == len(self.std) == len(self.transform):
            raise ValueError(
                f"mean, std and transform have {len(self.mean)}, {len(self.std)} and {len(self.transform)} channels; "
                "give one number per channel"
            )
        if unknown := [name for name in self.transform if name not in TRANSFORMS]:
            raise ValueError(f"transform={unknown[0]!r} is unknown; give one of {', '.join(TRANSFORMS)}")
        smallest, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            if not (abs(mean) <= largest and smallest <= std <= largest):
                raise ValueError(
                    f"mean={mean:g} and std={std:g} of channel {channel} are not those of varying values; give a "
                    "finite mean and a positive standard deviation of float32"
                )

    @property
    def stored(self) -> np.dtype:
        """The dtype in the cache: that of the files if torch supports it without loss of speed, else float32."""
        return np.dtype(self.dtype if self.dtype in FULL_RANGE else "float32")

    @property
    def about(self) -> str:
        """The values in words."""
        rows = zip(self.transform, self.mean, self.std, strict=True)
        texts = (f"{mean:.6g} ± {std:.6g}{'' if name == 'none' else f' of {name}'}" for name, mean, std in rows)
        return f"{self.dtype} standardised per channel ({', '.join(texts)})"

    def channels(self, start: int, stop: int) -> "Units":
        """The units of some of the channels."""
        rows = slice(start, stop)
        return replace(self, mean=self.mean[rows], std=self.std[rows], transform=self.transform[rows])

    def to_unit(self, image: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Stored values as float32, standardised. NaN stays NaN."""
        exact = set(self.transform) != {"none"} and image.device.type != "mps"  # which has no float64
        values = _transformed(image.double() if exact else image.float(), self.transform, 0)
        return ((values - _per_channel(self.mean, image.device)) / _per_channel(self.std, image.device)).float()

    def from_unit(self, image: Float[Tensor, "b c h w"]) -> Shaped[np.ndarray, "b c h w"]:
        """The inverse of `to_unit`, on the CPU, of dtype `dtype`.

        Integers are rounded; those that the dtype cannot hold become its lowest or highest one. Real numbers that it
        cannot hold become infinite.
        """
        image = image.detach().cpu().double()
        device = image.device
        values = image * _per_channel(self.std, device).double() + _per_channel(self.mean, device).double()
        array = _transformed(values, self.transform, 1).numpy()
        if np.issubdtype(self.dtype, np.integer):
            ends = np.iinfo(self.dtype)
            array = array.round().clip(ends.min, ends.max)
        with np.errstate(over="ignore"):
            return array.astype(self.dtype)


AnyFormat = PixelFormat | Units
"""how stored values become those that networks take"""


@lru_cache(maxsize=64)  # each copy to a device waits for it
def _per_channel(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "c 1 1"]:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def _transformed(image: Float[Tensor, "b c h w"], names: tuple[str, ...], which: int) -> Float[Tensor, "b c h w"]:
    """Each channel by its function (`which` 0) or the inverse of that (1)."""
    if set(names) == {"none"}:
        return image
    pairs = zip(image.unbind(1), names, strict=True)
    return torch.stack([TRANSFORMS[name][which](channel) for channel, name in pairs], dim=1)
