"""Drawn images: the pixels that a screen shows of them, and files like those that the model was trained on."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from training.data.pixel_format import BYTES, PixelFormat


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """Images in [-1, 1] as 8-bit pixels, rounded and clipped, on the CPU."""
    return BYTES.from_unit(images).transpose(0, 2, 3, 1)


def to_picture(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """A grey or colour picture of the first channel or the first three, as many as there are."""
    return Image.fromarray(pixels[..., 0] if shown(pixels.shape[-1]) == 1 else np.ascontiguousarray(pixels[..., :3]))


def shown(channels: int) -> int:
    """How many of the channels a picture shows: 1 (grey) or 3 (colour)."""
    return 1 if channels < 3 else 3


def hidden_note(channels: int) -> str | None:
    """What to say where pictures show less than there is."""
    if channels in (1, 3):
        return None
    return f"images have {channels} channels, of which pictures show the first{' 3' if shown(channels) == 3 else ''}"


def check_savable(channels: int, pixels: PixelFormat) -> None:
    """Raises ValueError unless images with this number of channels can be such files."""
    if pixels.file == "png" and channels not in (1, 3):
        raise ValueError(f"images with {channels} channels cannot be PNG files, which are grey (1) or colour (3) here")


def save_image(image: Float[Tensor, "c h w"], pixels: PixelFormat, path: Path) -> None:
    """Writes one image in [-1, 1] as `pixels` say: an array (c, h, w), or a picture.

    Colour pictures have 8 bits, whatever the cache kept, since Pillow knows no other; greys have 16 if `pixels` have.
    """
    if pixels.file == "npy":
        np.save(path, pixels.from_unit(image[None])[0])
    elif pixels.dtype == "uint16" and len(image) == 1:
        Image.fromarray(pixels.from_unit(image[None])[0, 0]).save(path)
    else:
        to_picture(to_uint8(image[None])[0]).save(path)
