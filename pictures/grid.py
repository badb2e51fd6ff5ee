"""A grid of many images with the names of their classes, and its animation.

Pictures are shown as they are. Other arrays (fields) are shown channel by channel in colours, with the values of the
colours below.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from pictures.files import are_pictures, picture_bytes, to_picture
from pictures.units import AnyFormat
from storage.show import printable

MIN_TILE_PX, MIN_FIELD_PX, MAX_FIELD_PX = 64, 96, 512
GAP_PX, TEXT_PX, BAR_PX = 4, 14, 12
MAX_PX = 2**26
"""about the most pixels of a grid"""
MAX_CHANNELS = 16
MAX_ROW_NAMES = 20
MAX_NAME_PX = 240
FRAME_MS, LAST_FRAME_MS = 60, 2000
COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
"""of equally spaced values of a field, from the lowest to the highest: five of the colours of viridis"""


def draw_samples(
    values: Shaped[np.ndarray, "n c h w"],
    pixel_format: AnyFormat,
    names: Sequence[str] | None = None,
    ranges: Float[np.ndarray, "c 2"] | None = None,
    columns: int | None = None,
) -> Image.Image:
    """A grid of the first `grid_size` images, of values in their pixel format, with one name per image.

    `columns` is as in `draw_grid`. The colours of fields show each channel from its lowest to its highest value, or
    those of `ranges`.
    """
    count = grid_size(len(values), values.shape[1:], pixel_format)
    values, names = values[:count], None if names is None else names[:count]
    if are_pictures(values.shape[1], pixel_format):
        return draw_grid(np.stack([picture_bytes(image) for image in values]), names, columns)
    values = finite(values[:, :MAX_CHANNELS])
    ranges = value_ranges(values) if ranges is None else ranges[:MAX_CHANNELS]
    strips = _strips(values, ranges)
    return _with_bars(draw_grid(strips, names, columns=1 if len(ranges) > 1 else columns), strips.shape[2], ranges)


def grid_size(count: int, shape: Sequence[int], pixel_format: AnyFormat) -> int:
    """Number of images, of `count` with `shape` (c, h, w), that a grid shows: as many as fit into `MAX_PX`."""
    channels, height, width = shape
    panel = height * width
    if not are_pictures(channels, pixel_format):
        scale, step = _zoom(height, width)
        panel = min(channels, MAX_CHANNELS) * (height * scale // step + GAP_PX) * (width * scale // step + GAP_PX)
    return min(count, max(1, MAX_PX // panel))


def hidden_note(count: int, shape: Sequence[int], pixel_format: AnyFormat, most: int | None = None) -> str | None:
    """A note about images and channels that a grid of `count` images, or of the first `most`, does not show; None if it
    shows all."""
    hidden = []
    if (fitting := grid_size(count if most is None else min(count, most), shape, pixel_format)) < count:
        hidden.append(f"{fitting} of {count} images")
    if shape[0] > MAX_CHANNELS:
        hidden.append(f"{MAX_CHANNELS} of {shape[0]} channels")
    return f"grids show the first {' and the first '.join(hidden)}" if hidden else None


def finite(values: Shaped[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """The values with NaN for infinite ones."""
    values = values.astype(float)
    return np.where(np.isinf(values), np.nan, values)


def value_ranges(values: Shaped[np.ndarray, "n c h w"]) -> Float[np.ndarray, "c 2"]:
    """The lowest and the highest finite value of each channel; 0 if there is none."""
    values = finite(values)
    return np.nan_to_num(np.stack([np.fmin.reduce(values, (0, 2, 3)), np.fmax.reduce(values, (0, 2, 3))], axis=1))


def draw_grid(
    images: UInt8[np.ndarray, "n h w c"], names: Sequence[str] | None = None, columns: int | None = None
) -> Image.Image:
    """All images, grey (c = 1) or colour (c = 3), in one picture. Small images are enlarged without smoothing.

    `names` has one name per image. Images with the same name share rows, with the name to the left. With too many
    names for readable rows, the images keep their order and each has its name below. Without `columns` the grid is
    about square.
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
    labels = {name: fitting(name, font, MAX_NAME_PX) for name in groups}
    margin = max(int(font.getlength(label)) for label in labels.values()) + 2 * GAP_PX if by_row else 0
    if columns is None:
        columns = min(max(map(len, groups.values())), max(math.ceil(math.sqrt(count)), 10 if len(groups) > 1 else 1))
    rows = {name: math.ceil(len(members) / columns) for name, members in groups.items()}
    step_x, step_y = tile[0] + GAP_PX, tile[1] + GAP_PX + (0 if below is None else TEXT_PX + 2)
    size = (margin + columns * step_x + GAP_PX, sum(rows.values()) * step_y + GAP_PX)
    picture = Image.new("L" if channels == 1 else "RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    top = GAP_PX
    for name, members in groups.items():
        pen.text((margin - GAP_PX, top + tile[1] // 2), labels[name], fill="black", font=font, anchor="rm")
        for i, k in enumerate(members):
            x, y = margin + GAP_PX + i % columns * step_x, top + i // columns * step_y
            picture.paste(to_picture(images[k]).resize(tile, Image.Resampling.NEAREST), (x, y))
            if below is not None:
                pen.text((x, y + tile[1]), fitting(below[k], font, tile[0]), fill="black", font=font)
        top += rows[name] * step_y
    return picture


def save_animation(frames: Sequence[Image.Image], path: Path, frame_ms: int = FRAME_MS) -> None:
    """Writes an animated GIF that repeats and pauses on the last frame."""
    durations = [frame_ms] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _zoom(height: int, width: int) -> tuple[int, int]:
    """How often a pixel of a field is repeated, and the distance of the pixels that are shown; one of them is 1."""
    enlarged = min(math.ceil(MIN_FIELD_PX / min(height, width)), MAX_FIELD_PX // max(height, width))
    return max(1, enlarged), math.ceil(max(height, width) / MAX_FIELD_PX)


def _strips(
    values: Float[np.ndarray, "n c h w"], ranges: Float[np.ndarray, "c 2"]
) -> UInt8[np.ndarray, "n height width 3"]:
    """The channels of each image side by side, in colours."""
    scale, step = _zoom(*values.shape[2:])
    low, high = ranges[:, 0, None, None], ranges[:, 1, None, None]
    level = np.clip((values[..., ::step, ::step] - low) / np.where(high > low, high - low, 1), 0, 1)
    panels = _coloured(level.repeat(scale, axis=2).repeat(scale, axis=3))
    panels = np.pad(panels, [(0, 0), (0, 0), (0, 0), (0, GAP_PX), (0, 0)], constant_values=255)
    return np.concatenate(list(panels.swapaxes(0, 1)), axis=2)[:, :, :-GAP_PX]


def _coloured(level: Float[np.ndarray, "*any"]) -> UInt8[np.ndarray, "*any 3"]:
    """The colours of levels from 0 to 1; NaN is white."""
    spaced = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(level, spaced, column) for column in COLOURS.T], axis=-1)
    return np.nan_to_num(colours, nan=255).round().astype(np.uint8)


def _with_bars(picture: Image.Image, width: int, ranges: Float[np.ndarray, "c 2"]) -> Image.Image:
    """A grid of strips of this width, with a colour bar per channel and its lowest and highest value below the last."""
    panel = (width + GAP_PX) // len(ranges) - GAP_PX
    whole = Image.new("RGB", (picture.width, picture.height + BAR_PX + 3 * TEXT_PX + 2 * GAP_PX), "white")
    whole.paste(picture, (0, 0))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(TEXT_PX)
    bar = to_picture(_coloured(np.tile(np.linspace(0, 1, panel), (BAR_PX, 1))))
    for k, (low, high) in enumerate(ranges):
        left, top = picture.width - GAP_PX - width + k * (panel + GAP_PX), picture.height
        whole.paste(bar, (left, top))
        below = top + BAR_PX
        pen.text((left, below), f"channel {k}", fill="black", font=font)
        pen.text((left, below + TEXT_PX), f"{low:.4g}", fill="black", font=font)
        pen.text((left + panel, below + 2 * TEXT_PX), f"{high:.4g}", fill="black", font=font, anchor="ra")
    return whole


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The longest beginning of `text` that fits, in one line."""
    text = printable(text[:width])  # no character is narrower than a pixel
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text
