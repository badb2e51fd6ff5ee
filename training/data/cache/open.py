"""The cache: a folder with every image decoded once, readable by numpy alone; docs/data.md describes its files.

The name of a folder is a hash of the source (paths, sizes, modification times, columns) and of the preprocessing; a
folder gets its name when it is complete (see `build`). It can be deleted at any time: it is built again when needed.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pictures.pixel_format import PixelFormat
from pictures.preprocessing import Preprocessing
from training.data.cache.build import FORMAT_VERSION, IMAGES, INFO, LABELS, build
from training.data.images import Images
from training.data.sources.records import Source


def find_cache(source: Source, preprocessing: Preprocessing, caches: Path, max_bad: int) -> Path:
    """The cache of a source in the folder `caches`, which is built if it does not exist.

    Raises ValueError as `build` does.
    """
    key = json.dumps([FORMAT_VERSION, source.key, asdict(preprocessing)])
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.name).strip("-")[:40] or "images"
    folder = caches / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.exists():
        build(source, preprocessing, folder, max_bad)
    return folder


def load_cache(folder: Path) -> Images:
    """Opens a cache folder. Raises ValueError if it is damaged."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        pixel_format = PixelFormat(**info["pixel_format"])
        found, wanted = (folder / IMAGES).stat().st_size, math.prod(info["shape"]) * pixel_format.stored.itemsize
        if info["format_version"] != FORMAT_VERSION or found != wanted:
            raise ValueError(f"format_version {info['format_version']}, {found} of {wanted} bytes")
        array = np.memmap(folder / IMAGES, pixel_format.stored, "r", shape=tuple(info["shape"]))
        labels = None if info["classes"] is None else np.load(folder / LABELS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the cache {folder} is damaged ({error}); delete it, and it is built again") from error
    return Images(
        array,
        labels,
        info["classes"],
        pixel_format=pixel_format,
        fingerprint=info["fingerprint"],
        bad=info["bad"],
        notes=info["notes"],
    )
