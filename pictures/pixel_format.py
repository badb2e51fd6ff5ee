"""Pixel formats: the dtype and range of stored pixels, converted to [-1, 1] for networks and back."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

DTYPES = ("uint8", "uint16", "int8", "int16", "int32", "float16", "float32", "float64")
FULL_RANGE = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
FILES = ("png", "npy")


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """A linear map from stored pixels to [-1, 1]: `low` becomes -1, `high` becomes 1.

    Raises ValueError for a dtype that is not in `DTYPES`, for a range that is empty or not finite, and for another kind
    of file.
    """

    dtype: str = "uint8"
    """numpy's name of the dtype in the source files, also used for samples; one of DTYPES"""
    low: float = 0.0
    high: float = 255.0
    file: str = "png"
    """file type of samples: "png" for pictures, "npy" for arrays (c, h, w)"""

    limit: ClassVar[float] = 1.0
    """largest absolute value that networks should draw; samples are clipped to it"""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not supported; give one of {', '.join(DTYPES)}")
        if not is_range(self.low, self.high):
            raise ValueError(
                f"low={self.low:g} and high={self.high:g} are not a range of float32; give two numbers, the lower first"
            )
        if self.file not in FILES:
            raise ValueError(f"file={self.file!r} is not supported; give {' or '.join(FILES)}")

    @property
    def stored(self) -> np.dtype:
        """The dtype in the cache: that of the files if torch supports it without loss of speed, else float32."""
        return np.dtype(self.dtype if self.dtype in FULL_RANGE else "float32")

    @property
    def spacing(self) -> float | None:
        """Distance of neighbouring integers in units of [-1, 1]; None for real numbers."""
        return 2 / (self.high - self.low) if np.issubdtype(self.dtype, np.integer) else None

    @property
    def about(self) -> str:
        """The values in words."""
        return f"{self.dtype} from {self.low:g} to {self.high:g}"

    def channels(self, start: int, stop: int) -> "PixelFormat":
        """The format of some of the channels, which all have the same."""
        return self

    def to_unit(self, image: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Stored pixels as float32 in [-1, 1]."""
        return image.float().sub_(self.low).div_((self.high - self.low) / 2).sub_(1)

    def from_unit(self, image: Float[Tensor, "b c h w"]) -> Shaped[np.ndarray, "b c h w"]:
        """The inverse of `to_unit`, on the CPU, of dtype `dtype`: clipped to the range, rounded for integers."""
        values = image.float().clamp(-1, 1).add(1).mul((self.high - self.low) / 2).add(self.low).cpu()
        if np.issubdtype(self.dtype, np.integer):
            values = values.double().round()
        return values.numpy().astype(self.dtype)


def is_range(low: float, high: float) -> bool:
    """Whether `high` is above `low` by a number that float32 can hold and divide by."""
    return float(np.finfo(np.float32).tiny) <= high - low <= float(np.finfo(np.float32).max)


BYTES = PixelFormat()
"""the format of 8-bit pictures"""
