"""From the bytes of one image file to uint8 pixels of the asked size and channels."""

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from training.data.config import DataConfig
from training.data.records import Item

MAX_PIXELS = 89_478_485
"""an image with more pixels is refused, as a few kB can unpack to gigabytes (from here on Pillow itself warns)"""
CHUNK = 32
QUICK_SECONDS = 5e-4
WHITE = 255


def decode(data: Path | bytes | np.ndarray, config: DataConfig) -> UInt8[np.ndarray, "c h w"]:
    """Pixels of one image, upright (EXIF orientation applied), of `config.hw`, `config.channels` and `config.crop`.

    Transparent images are laid on white; 16-bit greys are scaled (v / 257, rounded), not clipped; palettes, CMYK and
    other colour spaces become RGB; of an animation the first frame is taken. Scaling is Pillow's bicubic filter, which
    widens when it shrinks an image, so nothing aliases. Raises whatever tells that the image cannot be read.
    """
    with Image.fromarray(data) if isinstance(data, np.ndarray) else open_image(data) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} px is more than {MAX_PIXELS:,} pixels")
        plain = to_8_bit(ImageOps.exif_transpose(image), image.format)
    if config.channels is not None:
        plain = plain.convert("L" if config.channels == 1 else "RGB")
    if config.hw is not None and (plain.height, plain.width) != config.hw:
        width_height = config.hw[::-1]
        if config.crop == "center":
            plain = ImageOps.fit(plain, width_height, Image.Resampling.BICUBIC)
        else:
            plain = plain.resize(width_height, Image.Resampling.BICUBIC)
    pixels = np.asarray(plain)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def open_image(data: Path | bytes) -> Image.Image:
    """An image file, or its bytes, opened."""
    if isinstance(data, bytes) and not data:
        raise ValueError("no image")
    return Image.open(BytesIO(data) if isinstance(data, bytes) else data)


def to_8_bit(image: Image.Image, kind: str | None) -> Image.Image:
    """Any image as mode L (grey) or RGB, see `decode`. A palette counts as colour."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):  # a deep PGM comes as 0..65535
        return Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no agreed range; save it with 8 or 16 bits")
    grey = image.mode in ("1", "L", "LA", "La")
    mode = "L" if grey else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("LA" if grey else "RGBA")
    laid = Image.new(mode, image.size, WHITE if grey else (WHITE,) * 3)
    laid.paste(image.convert(mode), mask=image.getchannel("A"))
    return laid


Decoded = tuple[Item, np.ndarray | str]


def decode_all(items: Iterable[Item], config: DataConfig) -> Generator[Decoded, None, None]:
    """Each item in order with its pixels (c, h, w), or with the reason why it cannot be read.

    Pillow decodes and scales outside Python's lock, so threads help where an image takes long; where it is small they
    only take the lock from each other, so the time of the first chunk decides. A stream is not read far ahead.
    """
    todo = iter(items)
    start = time.perf_counter()
    first = [(item, attempt(item, config)) for item in islice(todo, CHUNK)]
    quick = time.perf_counter() - start < QUICK_SECONDS * len(first)
    yield from first
    if quick:
        yield from ((item, attempt(item, config)) for item in todo)
    else:
        yield from decode_in_threads(todo, config, min(16, os.cpu_count() or 1))


def decode_in_threads(items: Iterator[Item], config: DataConfig, workers: int) -> Generator[Decoded, None, None]:
    """`decode_all` by several threads, the order kept, at most 2 * workers chunks in flight."""
    pending: deque[Future[list[Decoded]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(pending) < 2 * workers and (chunk := list(islice(items, CHUNK))):
                    pending.append(pool.submit(lambda chunk: [(item, attempt(item, config)) for item in chunk], chunk))
                if not pending:
                    return
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def attempt(item: Item, config: DataConfig) -> np.ndarray | str:
    """`decode`, its error as text."""
    try:
        return decode(item.data, config)
    except MemoryError:
        raise
    except Exception as error:  # a broken file raises OSError, SyntaxError, struct.error, …
        text = (str(error).strip().splitlines() or [""])[0]
        if isinstance(item.data, bytes) and "cannot identify image file" in text:
            text = "not an image"
        return text or type(error).__name__
