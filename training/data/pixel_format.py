"""What the stored numbers of a data set mean: from files to [-1, 1], which is what networks see, and back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

DTYPES = ("uint8", "uint16", "int8", "int16", "int32", "float16", "float32", "float64")
FULL_RANGE = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
FILES = ("png", "npy")


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """`low` is -1 to the network, `high` is 1; in between it is linear.

    Raises ValueError for a dtype that no image is stored in, and for a range that is empty or not finite.
    """

    dtype: str = "uint8"
    """numpy's name of the numbers in the files that were read, and that samples are written in; one of DTYPES"""
    low: float = 0.0
    high: float = 255.0
    file: str = "png"
    """what single samples are written as: "png", pictures, or "npy", arrays (c, h, w)"""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not stored in images; known: {', '.join(DTYPES)}")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{self.low:g} to {self.high:g} is no range; give two numbers, the lower one first")
        if self.file not in FILES:
            raise ValueError(f"file={self.file!r} is neither {' nor '.join(FILES)}")

    @property
    def stored(self) -> np.dtype:
        """The dtype in the cache: as in the files where torch has it without loss of speed, else float32."""
        return np.dtype(self.dtype if self.dtype in FULL_RANGE else "float32")

    def to_unit(self, image: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Stored numbers as float32, `low` at -1 and `high` at 1."""
        return image.float().sub_(self.low).div_((self.high - self.low) / 2).sub_(1)

    def from_unit(self, image: Float[Tensor, "b c h w"]) -> Shaped[np.ndarray, "b c h w"]:
        """The inverse, clipped to the range and rounded where `dtype` holds whole numbers; on the CPU."""
        values = image.float().clamp(-1, 1).add(1).mul((self.high - self.low) / 2).add(self.low).cpu()
        if np.issubdtype(self.dtype, np.integer):
            values = values.double().round()
        return values.numpy().astype(self.dtype)


BYTES = PixelFormat()
"""the usual pictures"""
