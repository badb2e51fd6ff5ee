"""The cache: every image decoded once, to a folder that numpy alone can read.

    import json, numpy as np
    info = json.load(open("cache.json"))
    images = np.memmap("images.bin", info["dtype"], "r", shape=tuple(info["shape"]))  # (n, c, h, w), C order
    labels = np.load("labels.npy")                                                    # int64 (n,), if info["classes"]

`cache.json` also holds `format_version`, `pixels` (see `PixelFormat`), `classes` (names, or null),
`bad` (name and reason of each image left out), `notes`, `fingerprint` (SHA-256 of the content, see
`Images.fingerprint`), `source` and `settings` (what was asked for). A folder is named by a hash of the source's content
(paths, sizes, times of change) and of the settings, and has its name from when it is complete (see `build`). Deleting
it is safe: it is made again when needed.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from training.data.cache.build import FORMAT_VERSION, IMAGES, INFO, LABELS, build, check_bad, settings
from training.data.config import DataConfig
from training.data.images import Images
from training.data.order import permutation
from training.data.pixel_format import PixelFormat
from training.data.sources.records import Source
from training.data.sources.source import find_source
from training.data.stream.stream import ImageSet, stream_images


def open_images(config: DataConfig, *, on_main: Callable[[Callable[[], Path]], Path] = lambda find: find()) -> ImageSet:
    """The images that a run is trained on: decoded into the cache if need be and mapped from it; or streamed.

    Under several processes pass `training.processes.on_main`: the main process decodes, the others wait, and an error
    is raised on all. Raises ValueError, in one line, for whatever is wrong with the source, its labels or its images.
    """
    if config.stream:
        return stream_images(config)
    folder = on_main(lambda: find_cache(config))
    if not folder.exists():  # on another machine, with a disk of its own
        folder = find_cache(config)
    images = load(folder)
    check_bad(images.bad, config.max_bad)
    return images.part(divided(len(images), config.validation)[0]) if isinstance(config.validation, float) else images


def open_validation(
    config: DataConfig, *, on_main: Callable[[Callable[[], Path]], Path] = lambda find: find()
) -> ImageSet | None:
    """The images that evaluations look at, if `config.validation` says so; else like `open_images`."""
    if config.validation is None:
        return None
    crop: Literal["center", "stretch"] = "stretch" if config.crop == "stretch" else "center"
    whole = replace(config, validation=None, crop=crop)
    if isinstance(config.validation, str):
        return open_images(replace(whole, split=config.validation), on_main=on_main)
    images = open_images(whole, on_main=on_main)
    assert isinstance(images, Images), "a share of a streamed set is refused by its config"
    return images.part(divided(len(images), config.validation)[1])


def divided(count: int, share: float) -> tuple[Int64[np.ndarray, "rest"], Int64[np.ndarray, "part"]]:
    """The numbers 0 to `count` - 1 in two parts, the second with a `share` of them, drawn at random, once for all."""
    drawn = permutation(0, 0, count)
    part = round(count * share)
    return np.sort(drawn[part:]), np.sort(drawn[:part])


def find_cache(config: DataConfig) -> Path:
    """The cache folder of a config, which is built if it is not there."""
    source = find_source(config)
    folder = config.cache_folder / cache_name(source, config)
    if not folder.exists():
        build(source, config, folder)
    return folder


def cache_name(source: Source, config: DataConfig) -> str:
    """Name of the cache folder: the source's name, and a hash of its content and of the settings."""
    key = json.dumps([FORMAT_VERSION, source.key, settings(config)])
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.name).strip("-")[:40] or "images"
    return f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def load(folder: Path) -> Images:
    """Open a cache folder. Raises ValueError if it is not complete."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        pixels = PixelFormat(**info["pixels"])
        found, wanted = (folder / IMAGES).stat().st_size, math.prod(info["shape"]) * pixels.stored.itemsize
        if info["format_version"] != FORMAT_VERSION or found != wanted:
            raise ValueError(f"format {info['format_version']}, {found} of {wanted} bytes")
        array = np.memmap(folder / IMAGES, pixels.stored, "r", shape=tuple(info["shape"]))
        labels = None if info["classes"] is None else np.load(folder / LABELS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the cache {folder} is damaged ({error}); delete it, it will be made again") from error
    return Images(
        array,
        labels,
        info["classes"],
        pixel_format=pixels,
        fingerprint=info["fingerprint"],
        bad=info["bad"],
        notes=info["notes"],
    )
