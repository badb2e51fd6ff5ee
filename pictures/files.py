"""Converts samples to 8-bit pictures, writes them in the file format of the training data, and reads them."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pictures.pixel_format import BYTES, FULL_RANGE, PixelFormat
from pictures.units import AnyFormat
from storage.read import read_bytes
from storage.write import replace_file


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """Images in [-1, 1] as 8-bit pixels, rounded and clipped, on the CPU."""
    return BYTES.from_unit(images).transpose(0, 2, 3, 1)


def to_picture(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """A grey picture of one channel, or a colour picture of three."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels))


def are_pictures(channels: int, pixel_format: AnyFormat) -> bool:
    """Whether such images can be shown as they are: grey or colour, with the full range of 8 or 16 bits."""
    if not isinstance(pixel_format, PixelFormat) or channels not in (1, 3):
        return False
    return FULL_RANGE.get(pixel_format.dtype) == (pixel_format.low, pixel_format.high)


def are_saved_as_bytes(channels: int, pixel_format: AnyFormat) -> bool:
    """Whether `save_image` writes such images as PNG files of 8 bits."""
    return pixel_format.file == "png" and (pixel_format.dtype == "uint8" or channels == 3)


def check_savable(channels: int, pixel_format: AnyFormat) -> None:
    """Raises ValueError unless images with this number of channels can be written in this format."""
    if pixel_format.file == "png" and channels not in (1, 3):
        raise ValueError(f"images with {channels} channels cannot be PNG files, which are grey (1) or colour (3)")


def save_image(
    image: Float[Tensor, "c h w"],
    pixel_format: AnyFormat,
    path: Path,
    text: Mapping[str, str] | None = None,
    known: Shaped[np.ma.MaskedArray, "c h w"] | None = None,
) -> None:
    """Writes one image, as networks draw it, in its format, at once: an array (c, h, w), or a picture with `text` as
    metadata.

    The values of `known` that are not masked replace those of an array, which are rounded otherwise.

    Colour pictures have 8 bits, the most that Pillow supports. Greys have 16 bits if the format has.
    """
    data = BytesIO()
    if pixel_format.file == "npy":
        values = pixel_format.from_unit(image[None])[0]
        np.save(data, values if known is None else np.where(known.mask, values, known.data).astype(values.dtype))
    else:
        info = PngInfo()
        for key, value in (text or {}).items():
            info.add_text(key, value)
        if pixel_format.dtype == "uint16" and len(image) == 1:
            picture = Image.fromarray(pixel_format.from_unit(image[None])[0, 0])
        else:
            picture = to_picture(to_uint8(image[None])[0])
        picture.save(data, "png", pnginfo=info)
    replace_file(path, lambda new: new.write_bytes(data.getvalue()), flush=False)


def read_image(path: Path) -> Shaped[np.ndarray, "c h w"]:
    """The values of an image that `save_image` has written. Raises ValueError or OSError if it is damaged."""
    data = BytesIO(read_bytes(path, None))
    if path.suffix == ".npy":
        return np.lib.format.read_array(data, allow_pickle=False)
    try:
        with Image.open(data, formats=["PNG"]) as picture:
            pixels = np.asarray(picture)
    except SyntaxError as error:  # how Pillow reports a damaged PNG file
        raise ValueError(f"{path} is damaged: {error}") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def picture_bytes(values: Shaped[np.ndarray, "c h w"]) -> UInt8[np.ndarray, "h w c"]:
    """The 8-bit pixels of a picture of 8 or 16 bits, rounded."""
    pixels = values.transpose(1, 2, 0)
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)
