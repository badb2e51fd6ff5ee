"""A grid of many images with the names of their classes, and its animation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from pictures.files import shown, to_picture

MIN_TILE_PX = 64
GAP_PX = 4
TEXT_PX = 14
MAX_ROW_NAMES = 20
FRAME_MS, LAST_FRAME_MS = 60, 2000


def draw_grid(images: UInt8[np.ndarray, "n h w c"], names: Sequence[str] | None = None) -> Image.Image:
    """All images in one picture. Small images are enlarged without smoothing.

    `names` has one name per image. Images with the same name share rows, with the name to the left. With too many
    names for readable rows, the images keep their order and each has its name below.
    """
    count, height, width, channels = images.shape
    scale = max(1, MIN_TILE_PX // max(height, width))
    tile_w, tile_h = width * scale, height * scale
    by_row = names is not None and len(set(names)) <= MAX_ROW_NAMES
    below = TEXT_PX + 2 if names is not None and not by_row else 0
    font = ImageFont.load_default(TEXT_PX)
    margin = max(int(font.getlength(name)) for name in set(names)) + 2 * GAP_PX if names is not None and by_row else 0

    places, columns, rows = _places(count, names if by_row else None)
    size = (margin + columns * (tile_w + GAP_PX) + GAP_PX, rows * (tile_h + GAP_PX + below) + GAP_PX)
    picture = Image.new("L" if shown(channels) == 1 else "RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    named_rows: dict[str, int] = {}
    for k, (row, column) in enumerate(places):
        x, y = margin + GAP_PX + column * (tile_w + GAP_PX), GAP_PX + row * (tile_h + GAP_PX + below)
        picture.paste(to_picture(images[k]).resize((tile_w, tile_h), Image.Resampling.NEAREST), (x, y))
        if names is None:
            continue
        if below:
            pen.text((x, y + tile_h), _fitting(names[k], font, tile_w), fill="black", font=font)
        elif names[k] not in named_rows:
            named_rows[names[k]] = row
            pen.text((margin - GAP_PX, y + tile_h // 2), names[k], fill="black", font=font, anchor="rm")
    return picture


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes an animated GIF that repeats and pauses on the last frame."""
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _places(count: int, names: Sequence[str] | None) -> tuple[list[tuple[int, int]], int, int]:
    """(row, column) of each image, and the numbers of columns and rows."""
    square = int(np.ceil(np.sqrt(count)))
    groups: dict[str, list[int]] = {}
    for k in range(count):
        groups.setdefault(names[k] if names is not None else "", []).append(k)
    columns = min(max(map(len, groups.values())), max(square, 10 if len(groups) > 1 else 1))
    places, row = [(0, 0)] * count, 0
    for members in groups.values():
        for i, k in enumerate(members):
            places[k] = (row + i // columns, i % columns)
        row += -(-len(members) // columns)
    return places, columns, row


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The longest beginning of `text` that fits."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text
