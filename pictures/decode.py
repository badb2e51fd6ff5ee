"""Decodes pictures to arrays of pixels, and applies their preprocessing."""

import math
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps

from pictures.preprocessing import Preprocessing

MAX_PIXELS = 89_478_485
"""an image with more pixels is an error, as a few kB can unpack to gigabytes; Pillow warns beyond this number"""
DEEP = "F"
"""Pillow's mode for greys of 0..65535; of its modes with more than 8 bits, only this one is resized exactly"""
TO_BYTES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""factor that Pillow applies to the levels of a PNG of this raw mode, but not to those of its transparent colour"""
AREA = 0.08, 1.0
"""smallest and largest share of the image's area"""
ASPECT = 3 / 4, 4 / 3
"""narrowest and widest width / height"""
TRIES = 10
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error by MAX_PIXELS


def decode(
    data: Path | bytes | np.ndarray, preprocessing: Preprocessing, random: np.random.Generator | None = None
) -> Shaped[np.ndarray, "c h w"]:
    """Pixels of one image, upright (EXIF orientation applied).

    Pictures become uint8, or uint16 if `preprocessing.bits` is 16. 16-bit greys are scaled to 8 bits (v / 257,
    rounded), or 8 bits to 16 (257 v), never clipped; transparent images are composited on the background; palettes,
    CMYK and other colour spaces become RGB; of several pictures in a file the first is used. Resizing uses Pillow's
    bicubic filter, whose support grows when an image shrinks, so that nothing aliases. A random crop is drawn from
    `random`; without it, the crop is in the center.
    Raises an error of any type, as Pillow does, if the image cannot be read.
    """
    return decode_file(data, preprocessing, random)[0]


def decode_file(
    data: Path | bytes | np.ndarray, preprocessing: Preprocessing, random: np.random.Generator | None = None
) -> tuple[Shaped[np.ndarray, "c h w"], bool]:
    """`decode`, and whether the file holds several pictures (an animation, pages)."""
    with Image.fromarray(data) if isinstance(data, np.ndarray) else open_image(data) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} px is more than {MAX_PIXELS:,} pixels")
        plain = to_plain(image, preprocessing)
        several = getattr(image, "is_animated", False)
    if preprocessing.channels is not None and plain.mode != DEEP:
        plain = plain.convert("L" if preprocessing.channels == 1 else "RGB")
    plain = to_size(plain, preprocessing, random)
    pixels = np.asarray(plain)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if plain.mode == DEEP:
        pixels = np.repeat(np.rint(pixels).clip(0, 65535).astype(np.uint16), preprocessing.channels or 1, axis=0)
    elif preprocessing.bits == 16:
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    return np.ascontiguousarray(pixels), several


def to_size(image: Image.Image, preprocessing: Preprocessing, random: np.random.Generator | None) -> Image.Image:
    """An image, cropped and resized as `preprocessing` specifies."""
    if preprocessing.size is None:
        return image
    size = preprocessing.size[::-1]
    if preprocessing.crop == "random" and random is not None:
        return image.resize(size, Image.Resampling.BICUBIC, box=random_box(*image.size, random))
    if image.size == size and preprocessing.center_share == 1:
        return image
    if preprocessing.crop == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC, bleed=(1 - preprocessing.center_share) / 2)


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge, in pixels, of a random crop of an image of this size.

    Area and logarithm of the aspect ratio are uniform. A crop that exceeds the image is drawn again; after `TRIES` it
    is the largest center crop with an aspect ratio in `ASPECT` (Szegedy et al. 2015, section 6, as in torchvision).
    """
    for _ in range(TRIES):
        area = width * height * random.uniform(*AREA)
        aspect = math.exp(random.uniform(*np.log(ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, upper, left + w, upper + h
    narrowest, widest = ASPECT
    w, h = min(width, round(height * widest)), min(height, round(width / narrowest))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def open_image(data: Path | bytes) -> Image.Image:
    """Opens an image file, or its bytes."""
    if isinstance(data, bytes) and not data:
        raise ValueError("no image")
    return Image.open(BytesIO(data) if isinstance(data, bytes) else data)


def to_plain(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Any image, upright and opaque, as mode L (grey), RGB or DEEP (16 bits to keep); palettes become RGB.

    Raises ValueError for 32 bits and, if 16 are to be kept, for files of which Pillow reads only 8.
    """
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # Pillow reads it as 0..65535
    if image.mode in ("I", "F") and not deep:
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no agreed range; save it with 8 or 16 bits")
    raw = raw_mode(image)
    if preprocessing.bits == 16 and ";16" in raw and (not deep or image.has_transparency_data):
        raise ValueError(
            "colour or transparency with 16 bits, of which only 8 can be read; save it as an array (.npy), or set"
            " data.bits to 8"
        )
    if raw in TO_BYTES and "transparency" in image.info:
        colour = np.multiply(image.info["transparency"], TO_BYTES[raw]).astype(int).tolist()
        image.info["transparency"] = tuple(colour) if image.mode == "RGB" else colour
    image = ImageOps.exif_transpose(image)
    if deep:
        levels = np.asarray(image).astype(np.int64)
        if preprocessing.bits == 16:
            return Image.fromarray(levels.astype(np.float32))
        opaque = levels != image.info.get("transparency")
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        if not opaque.all():
            image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    grey = image.mode in ("1", "L", "LA", "La") or raw.startswith("LA")  # Pillow makes RGBA of LA with 16 bits
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB")
    image = image.convert("LA" if grey else "RGBA")
    mode = "L" if grey and len(set(preprocessing.background)) == 1 else "RGB"
    canvas = Image.new(mode, image.size, preprocessing.background[0] if mode == "L" else preprocessing.background)
    canvas.paste(image.convert(mode), mask=image.getchannel("A"))
    return canvas


def raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, such as "RGB;16B", as long as they are not loaded; else Pillow's mode."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return image.mode
    codec, _, _, arguments = tiles[0]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    deep_ppm = codec.startswith("ppm") and isinstance(arguments, tuple) and arguments[1] > 255
    return f"{first};16" if deep_ppm else str(first or image.mode)
