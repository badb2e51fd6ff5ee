"""Converts samples to 8-bit pictures and writes them in the file format of the training data."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pictures.pixel_format import BYTES, PixelFormat


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """Images in [-1, 1] as 8-bit pixels, rounded and clipped, on the CPU."""
    return BYTES.from_unit(images).transpose(0, 2, 3, 1)


def to_picture(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """A grey picture of the first channel, or a colour picture of the first three."""
    return Image.fromarray(pixels[..., 0] if shown(pixels.shape[-1]) == 1 else np.ascontiguousarray(pixels[..., :3]))


def shown(channels: int) -> int:
    """Number of channels that a picture shows: 1 (grey) or 3 (colour)."""
    return 1 if channels < 3 else 3


def hidden_note(channels: int) -> str | None:
    """A note about channels that pictures do not show; None if they show all."""
    if channels in (1, 3):
        return None
    return f"images have {channels} channels, of which pictures show the first{' 3' if shown(channels) == 3 else ''}"


def check_savable(channels: int, pixel_format: PixelFormat) -> None:
    """Raises ValueError unless images with this number of channels can be written in this format."""
    if pixel_format.file == "png" and channels not in (1, 3):
        raise ValueError(f"images with {channels} channels cannot be PNG files, which are grey (1) or colour (3)")


def save_image(image: Float[Tensor, "c h w"], pixel_format: PixelFormat, path: Path) -> None:
    """Writes one image in [-1, 1] in its format: an array (c, h, w), or a picture.

    Colour pictures have 8 bits, the most that Pillow supports. Greys have 16 bits if the format has.
    """
    if pixel_format.file == "npy":
        np.save(path, pixel_format.from_unit(image[None])[0])
    elif pixel_format.dtype == "uint16" and len(image) == 1:
        Image.fromarray(pixel_format.from_unit(image[None])[0, 0]).save(path)
    else:
        to_picture(to_uint8(image[None])[0]).save(path)
