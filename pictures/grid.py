"""A grid of many images with the names of their classes, and its animation."""

import math
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
    tile = width * scale, height * scale
    by_row = names is not None and len(set(names)) <= MAX_ROW_NAMES
    below = names if not by_row else None
    groups: dict[str, list[int]] = {}
    for k in range(count):
        groups.setdefault(names[k] if names is not None and by_row else "", []).append(k)
    font = ImageFont.load_default(TEXT_PX)
    margin = max(int(font.getlength(name)) for name in groups) + 2 * GAP_PX if by_row else 0
    columns = min(max(map(len, groups.values())), max(math.ceil(math.sqrt(count)), 10 if len(groups) > 1 else 1))
    rows = {name: math.ceil(len(members) / columns) for name, members in groups.items()}
    step_x, step_y = tile[0] + GAP_PX, tile[1] + GAP_PX + (0 if below is None else TEXT_PX + 2)
    size = (margin + columns * step_x + GAP_PX, sum(rows.values()) * step_y + GAP_PX)
    picture = Image.new("L" if shown(channels) == 1 else "RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    top = GAP_PX
    for name, members in groups.items():
        pen.text((margin - GAP_PX, top + tile[1] // 2), name, fill="black", font=font, anchor="rm")
        for i, k in enumerate(members):
            x, y = margin + GAP_PX + i % columns * step_x, top + i // columns * step_y
            picture.paste(to_picture(images[k]).resize(tile, Image.Resampling.NEAREST), (x, y))
            if below is not None:
                pen.text((x, y + tile[1]), _fitting(below[k], font, tile[0]), fill="black", font=font)
        top += rows[name] * step_y
    return picture


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes an animated GIF that repeats and pauses on the last frame."""
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The longest beginning of `text` that fits."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text
