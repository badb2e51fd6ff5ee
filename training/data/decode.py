"""From one file to the numbers of an image, pictures in the asked size, channels and bits."""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from training.data.config import DataConfig
from training.data.random_crop import random_box
from training.data.sources.arrays import ArrayFile
from training.data.sources.records import Item

T = TypeVar("T")

MAX_PIXELS = 89_478_485
"""an image with more pixels is refused, as a few kB can unpack to gigabytes (from here on Pillow itself warns)"""
CHUNK = 32
QUICK_SECONDS = 5e-4
DEEP = "F"
"""Pillow's mode for greys of 0..65535 on their way: of those with more than 8 bits it resizes this one exactly"""
TO_BYTES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""what Pillow multiplies the levels of such a PNG with, but not those of its transparent colour"""
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS makes that an error


def decode(
    data: Path | bytes | np.ndarray | ArrayFile, config: DataConfig, random: np.random.Generator | None = None
) -> Shaped[np.ndarray, "c h w"]:
    """Numbers of one image, upright (EXIF orientation applied), of `config.hw`, `config.channels` and `config.crop`.

    Pictures become uint8, with `config.bits` 16 uint16. 16-bit greys are scaled to 8 bits (v / 257, rounded), or 8 bits
    to 16 (257 v), never clipped; transparent images are laid on `config.background`; palettes, CMYK and other colour
    spaces become RGB; of several pictures in a file the first is taken. Scaling is Pillow's bicubic filter, which
    widens when it shrinks an image, so nothing aliases. A random crop is drawn from `random`; without it, it is that of
    the centre. Arrays stay as they are, see `ArrayFile.read`.
    Raises whatever tells that the image cannot be read.
    """
    return decode_file(data, config, random)[0]


def decode_file(
    data: Path | bytes | np.ndarray | ArrayFile, config: DataConfig, random: np.random.Generator | None = None
) -> tuple[Shaped[np.ndarray, "c h w"], bool]:
    """`decode`, and whether the file holds more than the one picture (an animation, pages)."""
    if isinstance(data, ArrayFile):
        return data.read(), False
    with Image.fromarray(data) if isinstance(data, np.ndarray) else open_image(data) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} px is more than {MAX_PIXELS:,} pixels")
        plain = to_plain(image, config)
        several = getattr(image, "is_animated", False)
    if config.channels is not None and plain.mode != DEEP:
        plain = plain.convert("L" if config.channels == 1 else "RGB")
    if config.hw is not None:
        plain = to_size(plain, config.hw, config, random)
    pixels = np.asarray(plain)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if plain.mode == DEEP:
        pixels = np.repeat(np.rint(pixels).clip(0, 65535).astype(np.uint16), config.channels or 1, axis=0)
    elif config.bits == 16:
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    return np.ascontiguousarray(pixels), several


def to_size(
    image: Image.Image, hw: tuple[int, int], config: DataConfig, random: np.random.Generator | None
) -> Image.Image:
    """The part of an image that `config.crop` names, scaled to height and width `hw`."""
    size = hw[::-1]
    if config.crop == "random" and random is not None:
        return image.resize(size, Image.Resampling.BICUBIC, box=random_box(*image.size, random))
    if image.size == size and config.center_share == 1:
        return image
    if config.crop == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC, bleed=(1 - config.center_share) / 2)


def open_image(data: Path | bytes) -> Image.Image:
    """An image file, or its bytes, opened."""
    if isinstance(data, bytes) and not data:
        raise ValueError("no image")
    return Image.open(BytesIO(data) if isinstance(data, bytes) else data)


def to_plain(image: Image.Image, config: DataConfig) -> Image.Image:
    """Any image, upright and opaque, as mode L (grey), RGB or, with `config.bits` 16, DEEP; a palette is a colour.

    Raises ValueError for 32 bits and, where 16 are to be kept, for what Pillow reads as 8.
    """
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # that comes as 0..65535
    if image.mode in ("I", "F") and not deep:
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no agreed range; save it with 8 or 16 bits")
    raw = raw_mode(image)
    if config.bits == 16 and ";16" in raw and (not deep or image.has_transparency_data):
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
        if config.bits == 16:
            return Image.fromarray(levels.astype(np.float32))
        opaque = levels != image.info.get("transparency")
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        if not opaque.all():
            image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    grey = image.mode in ("1", "L", "LA", "La") or raw.startswith("LA")  # Pillow makes RGBA of LA with 16 bits
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB")
    image = image.convert("LA" if grey else "RGBA")
    mode = "L" if grey and len(set(config.background)) == 1 else "RGB"
    laid = Image.new(mode, image.size, config.background[0] if mode == "L" else config.background)
    laid.paste(image.convert(mode), mask=image.getchannel("A"))
    return laid


def raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, such as "RGB;16B", as long as they are not loaded; Pillow's mode where it tells
    nothing."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return image.mode
    codec, _, _, arguments = tiles[0]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    deep_ppm = codec.startswith("ppm") and isinstance(arguments, tuple) and arguments[1] > 255
    return f"{first};16" if deep_ppm else str(first or image.mode)


Decoded = tuple[Item, np.ndarray | str, bool]


def decode_all(items: Iterable[Item], config: DataConfig) -> Generator[Decoded, None, None]:
    """Each item in order with its numbers (c, h, w) or the reason why it cannot be read, and whether its file holds
    several pictures.

    Pillow decodes and scales outside Python's lock, so threads help where an image takes long; where it is small they
    only take the lock from each other, so the time of the first chunk decides. A stream is not read far ahead.
    """
    todo = iter(items)
    start = time.perf_counter()
    first = [attempt_file(item, config) for item in islice(todo, CHUNK)]
    quick = time.perf_counter() - start < QUICK_SECONDS * len(first)
    yield from first
    if quick:
        yield from (attempt_file(item, config) for item in todo)
    else:
        yield from in_threads(partial(attempt_file, config=config), todo, min(16, os.cpu_count() or 1))


def in_threads(function: Callable[[Item], T], items: Iterable[Item], workers: int) -> Generator[T, None, None]:
    """What `function` makes of each item, the order kept, by several threads with at most 2 * workers chunks in flight.

    An item is taken from `items` only when there is room for it.
    """
    todo = iter(items)
    pending: deque[Future[list[T]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(pending) < 2 * workers and (chunk := list(islice(todo, CHUNK))):
                    pending.append(pool.submit(lambda chunk: [function(item) for item in chunk], chunk))
                if not pending:
                    return
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def attempt(item: Item, config: DataConfig, random: np.random.Generator | None = None) -> np.ndarray | str:
    """`decode`, its error as text."""
    return attempt_file(item, config, random)[1]


def attempt_file(item: Item, config: DataConfig, random: np.random.Generator | None = None) -> Decoded:
    """`decode_file`, its error as text."""
    try:
        return item, *decode_file(item.data, config, random)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # whose text repeats the path
        return item, "not an image", False
    except Exception as error:  # a broken file raises OSError, SyntaxError, struct.error, …
        text = getattr(error, "strerror", None) or str(error)
        return item, (text.strip().splitlines() or [type(error).__name__])[0], False
