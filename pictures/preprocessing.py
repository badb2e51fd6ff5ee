"""Preprocessing of pictures: the size, channels, bits, background and crop that decoding applies to all of them."""

from dataclasses import dataclass, replace
from typing import Literal

from pictures.pixel_format import PixelFormat


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pictures are decoded; the fields are those of `DataConfig`, None keeps what a file has.

    Raises ValueError, which starts with the name of the field, for a value out of range.
    """

    size: tuple[int, int] | None = None
    """height and width in pixels"""
    channels: int | None = None
    bits: Literal[8, 16] = 8
    background: tuple[int, int, int] = (255, 255, 255)
    crop: Literal["center", "stretch", "random", "cut"] = "center"
    center_share: float = 1.0

    def __post_init__(self) -> None:
        if any(isinstance(side, bool) or side < 1 for side in self.size or ()):
            raise ValueError(f"size {self.size} must be a positive number of pixels, or two: (height, width)")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels {self.channels} must be positive, or null (as found)")
        if self.bits not in (8, 16):
            raise ValueError(f"bits {self.bits} must be 8 or 16")
        if not all(0 <= level <= 255 for level in self.background):
            raise ValueError(f"background {self.background} must be three numbers of 0 to 255: red, green, blue")
        if self.crop not in ("center", "stretch", "random", "cut"):
            raise ValueError(f"crop {self.crop!r} must be center, stretch, random or cut")
        if self.crop == "cut" and self.size is None:
            raise ValueError("crop cut requires a size, that of the part that is cut out; set size")
        if not 0 < self.center_share <= 1:
            raise ValueError(f"center_share {self.center_share} must be a share, above 0 and at most 1")
        if self.center_share < 1 and (self.crop in ("stretch", "cut") or self.size is None):
            raise ValueError(f"center_share {self.center_share} requires crop center and a size; set both")

    @property
    def pixel_format(self) -> PixelFormat:
        """The format of decoded pictures."""
        return PixelFormat() if self.bits == 8 else PixelFormat(dtype="uint16", high=65535)

    def deterministic(self) -> "Preprocessing":
        """The same for evaluations: a random crop becomes a center crop.

        "cut" stays: without random numbers, its part is that in the center.
        """
        return replace(self, crop="center") if self.crop == "random" else self
