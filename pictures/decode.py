"""Decodes pictures to arrays of pixels, and applies their preprocessing."""

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base

from pictures.formats import FORMATS, MAX_FILE, MAX_PIXELS
from pictures.preprocessing import Preprocessing
from storage.read import open_regular, read_bytes, require_regular

MAX_METADATA = 64 << 20
"""bytes that the texts or the colour profile of a PNG may have, uncompressed; Pillow's limit is 1 MiB"""
DEEP = "F"
"""Pillow's mode for greys of 0..65535; of its modes with more than 8 bits, only this one is resized exactly"""
TO_BYTES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""factor that Pillow applies to the levels of a PNG of this raw mode, but not to those of its transparent colour"""
AREA = 0.08, 1.0
"""smallest and largest share of the image's area"""
ASPECT = 3 / 4, 4 / 3
"""narrowest and widest width / height"""
TRIES = 10
STRIP = 1 << 20
"""pixels of a part of an image"""
TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""what makes an image of each EXIF orientation upright"""
warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged metadata are ignored, and large pictures an error
PngImagePlugin.MAX_TEXT_CHUNK = MAX_METADATA
PngImagePlugin.MAX_TEXT_MEMORY = MAX_METADATA


class Budget:
    """An amount of pixels or bytes that threads share: `hold` waits until as much is free, or all of it for more."""

    def __init__(self, most: int):
        self._most, self._free, self._changed = most, most, threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._most)
        with self._changed:
            self._changed.wait_for(lambda: amount <= self._free)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


IN_FLIGHT = Budget(MAX_PIXELS)
"""pixels that all threads decode at a time"""
OPEN_BYTES = Budget(256 << 20)
"""bytes of the files that all threads decode at a time, as some decoders read a file as a whole"""


class Postponed(Exception):
    """An image is not decoded now, because the memory for decoded images is full."""


class DecodedFile(NamedTuple):
    """The pixels of one image, and what its file holds."""

    pixels: Shaped[np.ndarray, "c h w"]
    several: bool
    """whether there are several pictures (an animation, pages)"""
    size: tuple[int, int]
    """width and height before preprocessing, upright"""


def decode(
    data: Path | bytes | np.ndarray, preprocessing: Preprocessing, random: np.random.Generator | None = None
) -> Shaped[np.ndarray, "c h w"]:
    """Pixels of one image, upright (EXIF orientation applied).

    Pictures become uint8, or uint16 if `preprocessing.bits` is 16. 16-bit greys are scaled to 8 bits (v / 257,
    rounded), or 8 bits to 16 (257 v), never clipped; transparent images are composited on the background; palettes,
    CMYK and other colour spaces become RGB; of several pictures in a file the first is used. Resizing uses Pillow's
    bicubic filter, whose support grows when an image shrinks, so that nothing aliases. A random crop is drawn from
    `random`; without it, the crop is in the center.
    Raises ValueError, with the reason in one line, if the image cannot be read.
    """
    return decode_file(data, preprocessing, random).pixels


def decode_file(
    data: Path | bytes | np.ndarray,
    preprocessing: Preprocessing,
    random: np.random.Generator | None = None,
    may_start: Callable[[], bool] = lambda: True,
    size: tuple[int, int] | None = None,
) -> DecodedFile:
    """`decode`, with further properties of the file. A picture is brought to the width and height `size` first, if
    given, so that a smaller one of the same scene is cropped alike.

    Waits until fewer images are decoded by other threads, if those are large. Raises Postponed if `may_start` is false
    then, and ValueError also if the picture has another aspect ratio than `size`.
    """
    try:
        file_bytes = require_regular(data).st_size if isinstance(data, Path) else 0
        with OPEN_BYTES.hold(file_bytes), open_image(data) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} px is more than {MAX_PIXELS:,} pixels")
            with IN_FLIGHT.hold(
                max(image.width * image.height, *map(math.prod, (preprocessing.size or (), size or ())))
            ):
                if not may_start():
                    raise Postponed
                several = getattr(image, "is_animated", False)
                plain = to_plain(image, preprocessing, data)
                if size is not None:
                    plain = same_scene(plain, size)
                return DecodedFile(to_pixels(plain, preprocessing, random), several, plain.size)
    except (MemoryError, Postponed):
        raise
    except UnidentifiedImageError:  # its text repeats the path
        raise ValueError("not an image") from None
    except Exception as error:  # a damaged file raises OSError, SyntaxError, struct.error, …
        lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
        raise ValueError(lines[0] if lines else type(error).__name__) from error


def same_scene(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture at this width and height, by a bicubic filter. Raises ValueError if its aspect ratio differs by more
    than the rounding of its sides to pixels."""
    (width, height), (image_width, image_height) = size, image.size
    if abs(image_width * height - image_height * width) >= max(width, height):
        raise ValueError(f"{image_width} x {image_height} px have another aspect ratio than {width} x {height}")
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def to_pixels(
    plain: Image.Image, preprocessing: Preprocessing, random: np.random.Generator | None
) -> Shaped[np.ndarray, "c h w"]:
    """The pixels of an image of `to_plain`, with the channels, size and bits that `preprocessing` specifies."""
    if preprocessing.channels is not None and plain.mode != DEEP:
        plain = in_mode(plain, "L" if preprocessing.channels == 1 else "RGB")
    plain = to_size(plain, preprocessing, random)
    channels = (preprocessing.channels or 1) if plain.mode == DEEP else len(plain.getbands())
    pixels = np.empty((channels, plain.height, plain.width), np.uint16 if preprocessing.bits == 16 else np.uint8)
    for rows, strip in strips(plain):
        levels = np.asarray(strip)
        levels = levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
        if plain.mode == DEEP:
            levels = np.rint(levels).clip(0, 65535)
        elif preprocessing.bits == 16:
            levels = levels.astype(np.uint16) * np.uint16(257)
        pixels[:, rows] = levels
    return pixels


def strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """An image in parts of a few rows, each with the numbers of its rows, so that copies of it take little memory."""
    height = max(1, STRIP // image.width)
    for top in range(0, image.height, height):
        rows = slice(top, min(top + height, image.height))
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image in another mode, or itself if it has this mode."""
    return image if image.mode == mode else image.convert(mode)


def to_size(image: Image.Image, preprocessing: Preprocessing, random: np.random.Generator | None) -> Image.Image:
    """An image, cropped and resized as `preprocessing` specifies."""
    if preprocessing.size is None:
        return image
    size = preprocessing.size[::-1]
    if preprocessing.crop == "random" and random is not None:
        return image.resize(size, Image.Resampling.BICUBIC, box=random_box(*image.size, random))
    if image.size == size and preprocessing.center_share == 1:
        return image
    if preprocessing.crop == "cut":
        return image.crop(cut_box(image.size, size, random))
    if preprocessing.crop == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC, bleed=(1 - preprocessing.center_share) / 2)


def cut_box(
    size: tuple[int, int], kept: tuple[int, int], random: np.random.Generator | None
) -> tuple[int, int, int, int]:
    """Edges, as of `random_box`, of a part with the width and height `kept` of an image of `size`: in the center, or at
    a random place.

    Raises ValueError for an image that is smaller.
    """
    if any(side < part for side, part in zip(size, kept, strict=True)):
        raise ValueError(
            f"{size[0]} x {size[1]} px (width x height) are fewer than the {kept[0]} x {kept[1]} px that are cut out"
        )
    left, upper = (
        (side - part) // 2 if random is None else int(random.integers(side - part + 1))
        for side, part in zip(size, kept, strict=True)
    )
    return left, upper, left + kept[0], upper + kept[1]


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


@contextmanager
def open_image(data: Path | bytes | np.ndarray) -> Iterator[Image.Image]:
    """Opens a file or the bytes of one, of which only the header is read; or takes pixels (h, w) or (h, w, c).

    Only decoders of `FORMATS` are tried, and only regular files are opened. Raises as Pillow does for other formats,
    and as `open_regular` does.
    """
    if isinstance(data, np.ndarray):
        yield Image.fromarray(data)
        return
    if not data:
        raise ValueError("no image")
    if isinstance(data, Path) and (size := require_regular(data).st_size) > MAX_FILE:
        raise ValueError(f"{size:,} bytes are more than {MAX_FILE:,}, the most that a picture may have")
    with (
        open_regular(data) if isinstance(data, Path) else BytesIO(data) as file,
        Image.open(file, formats=tuple(FORMATS)) as image,
    ):
        yield image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, from 1 to 8; 1, which is upright, if there is none, or if it or all of EXIF is invalid."""
    try:
        found = image.getexif().get(Base.Orientation)
    except Exception:  # as many types as there are ways of being damaged
        return 1
    return found if isinstance(found, int) and found in TURN else 1


def ends_early(image: Image.Image, data: Path | bytes | np.ndarray) -> bool:
    """Whether the compressed pixels of a loaded PNG or JPEG end before the last row, which Pillow does not report.

    Pillow leaves missing rows of a PNG 0, and libjpeg makes missing blocks grey. An image that ends like this is
    decoded again: a PNG over other values, a JPEG with more data before its end. If it changes, its own data were not
    enough. Of the other formats Pillow reports it. A progressive JPEG with less detail than was saved is not noticed.
    """
    width, height = image.size
    if isinstance(data, np.ndarray) or image.format not in ("PNG", "JPEG"):
        return False
    end = (0 if image.format == "PNG" else max(0, width - 8), height - 1, width, height)
    last = image.crop(end)
    if image.format == "PNG":
        if last.getbbox(alpha_only=False):
            return False
        with open_image(data) as again:
            again.im = Image.new(again.mode, again.size, 1).im
            return bool(again.crop(end).getbbox(alpha_only=False))
    if {level for pair in np.reshape(last.getextrema(), (-1, 2)) for level in pair} - {127, 128}:
        return False
    whole = read_bytes(data, None) if isinstance(data, Path) else data
    cut = whole.rfind(b"\xff\xd9")
    if cut < 0:
        return False
    with open_image(whole[:cut] + bytes(range(255)) * 4 + whole[cut:]) as again:
        parts = zip(strips(again), strips(image), strict=True)
        return any(ours.tobytes() != theirs.tobytes() for (_, ours), (_, theirs) in parts)


def to_plain(image: Image.Image, preprocessing: Preprocessing, data: Path | bytes | np.ndarray) -> Image.Image:
    """The image in `data`, upright and opaque, as mode L (grey), RGB or DEEP (16 bits to keep); palettes become RGB.

    Raises ValueError for pixels that end early, for 32 bits and, if 16 are to be kept, for files of which Pillow reads
    only 8.
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
    image.load()
    if ends_early(image, data):
        raise ValueError("the pixels end early")
    turn = TURN.get(orientation(image))
    plain = to_opaque(image, raw, deep, preprocessing)
    if plain is not image:
        image.close()  # its pixels are not needed while another copy is made
    return plain if turn is None else plain.transpose(turn)


def to_opaque(image: Image.Image, raw: str, deep: bool, preprocessing: Preprocessing) -> Image.Image:
    """See `to_plain`; `raw` is the `raw_mode` of the image, `deep` whether it is grey with 16 bits."""
    if deep and preprocessing.bits == 16:
        return image.convert(DEEP)
    if deep:
        levels, opaque = np.empty((2, image.height, image.width), np.uint8)
        for rows, strip in strips(image):
            values = np.asarray(strip).astype(np.int32)
            levels[rows] = (values + 128) // 257
            opaque[rows] = 255 * (values != image.info.get("transparency"))
        image = Image.fromarray(levels)
        if not opaque.all():
            image.putalpha(Image.fromarray(opaque))
    grey = image.mode in ("1", "L", "LA", "La") or raw.startswith("LA")  # Pillow makes RGBA of LA with 16 bits
    if not image.has_transparency_data:
        return in_mode(image, "L" if grey else "RGB")
    mode = "L" if grey and len(set(preprocessing.background)) == 1 else "RGB"
    canvas = Image.new(mode, image.size, preprocessing.background[0] if mode == "L" else preprocessing.background)
    for rows, strip in strips(image):
        part = in_mode(strip, "LA" if grey else "RGBA")
        canvas.paste(part.convert(mode), (0, rows.start), part.getchannel("A"))
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
