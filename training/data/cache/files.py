"""The files of a cache: reads them, and compares them with their checksums."""

import math
import os
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from jaxtyping import Float32, Shaped

from pictures.coordinates import Coordinates
from pictures.pixel_format import PixelFormat
from residual.weights.config import convert
from storage.read import read_json, require_regular
from training.data.cache.checksums import BLOCK_BYTES, verify
from training.data.cache.journal import crc32
from training.data.images import Images, MappedFile

FORMAT_VERSION = 3
IMAGES, LABELS, VECTORS, INFO = "images.bin", "labels.npy", "vectors.npy", "cache.json"
MAX_INFO = 1 << 30
"""bytes of the largest description, such as one with the reasons of many unreadable images"""
SECONDS = 5.0
"""how long images are verified; blocks that were not compared until then are left out"""
_KNOWN: dict[tuple, str] = {}
"""what `damage` has found, by the folder and the state of its files"""


class NoChecksums(ValueError):
    """A cache was built by an earlier version that made no checksums."""


def read_info(folder: Path) -> dict[str, Any]:
    """The description of a cache; `pixel_format` is a `PixelFormat`, `shape` a tuple.

    `coordinates` are `Coordinates`. Where it lacks `conditions` (0), `vector_columns` (none) or `coordinates` (None),
    they are added. Raises ValueError if it is damaged or does not fit to the size of the images, and OSError if it
    cannot be read.
    """
    info = read_json(folder / INFO, MAX_INFO)
    if "format_version" in info and not {"crc32", "blocks"} & info.keys():
        raise NoChecksums
    try:
        if info.pop("crc32", None) != crc32(info):
            raise ValueError(f"{INFO} differs from its checksum")
        shape, pixel_format = tuple(info["shape"]), PixelFormat(**info["pixel_format"])
        if info["format_version"] != FORMAT_VERSION or info["block_bytes"] != BLOCK_BYTES:
            raise ValueError(f"format_version {info['format_version']}, block_bytes {info['block_bytes']}")
        if len(shape) != 4 or not all(type(side) is int and side > 0 for side in shape):
            raise ValueError(f"shape {shape}")
        found, wanted = require_regular(folder / IMAGES).st_size, math.prod(shape) * pixel_format.stored.itemsize
        if found != wanted or len(info["blocks"][IMAGES]) != -(-wanted // BLOCK_BYTES):
            raise ValueError(f"{IMAGES} has {found:,} of {wanted:,} bytes")
        if not all(isinstance(text, str) for text in (*info["bad"], *info["notes"], info["fingerprint"])):
            raise ValueError("bad, notes or fingerprint are no texts")
        if (info["classes"] is None) != (LABELS not in info["blocks"]):
            raise ValueError("it has classes without labels, or labels without classes")
        conditions, columns = info.setdefault("conditions", 0), info.setdefault("vector_columns", [])
        if type(conditions) is not int or not 0 <= conditions < shape[1]:
            raise ValueError(f"conditions {conditions} of {shape[1]} channels")
        places = info.get("coordinates")
        hints = get_type_hints(Coordinates)
        coordinates = None if places is None else Coordinates(**{k: convert(v, hints[k]) for k, v in places.items()})
        if not all(isinstance(name, str) for name in columns) or bool(columns) != (VECTORS in info["blocks"]):
            raise ValueError("it has vector_columns without vectors, or vectors without vector_columns")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{INFO} is damaged: {type(error).__name__} {error}") from None
    return info | {"shape": shape, "pixel_format": pixel_format, "coordinates": coordinates}


def load_cache(folder: Path, static: Float32[np.ndarray, "k h w"] | None = None) -> Images:
    """Opens a cache folder, which `find_cache` has verified, with the `static` fields of its images.

    Raises ValueError or OSError if it is damaged.
    """
    info = read_info(folder)
    columns = info["vector_columns"]
    array = np.memmap(folder / IMAGES, info["pixel_format"].stored, "r", shape=info["shape"])
    return Images(
        array,
        None if info["classes"] is None else load_numbers(folder / LABELS, (len(array),), np.int64),
        info["classes"],
        pixel_format=info["pixel_format"],
        conditions=info["conditions"],
        static=static,
        vectors=load_numbers(folder / VECTORS, (len(array), len(columns)), np.float32) if columns else None,
        vector_columns=columns,
        coordinates=info["coordinates"],
        fingerprint=info["fingerprint"],
        bad=info["bad"],
        notes=info["notes"],
        file=MappedFile(folder / IMAGES),
    )


def load_numbers(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> Shaped[np.ndarray, "n ..."]:
    """An array of this shape and dtype. Raises ValueError for anything else; pickles are never opened."""
    require_regular(path)
    found = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a size that is stated wrongly needs no memory
    if not isinstance(found, np.ndarray) or found.dtype != dtype or found.shape != shape:
        raise ValueError(f"{path.name} does not hold {dtype.__name__} of shape {shape}")
    return np.array(found)


def damage(folder: Path) -> str:
    """Why a cache cannot be used; an empty text if it can. Prints the share that was verified if that is not all.

    Files that were found damaged are not verified again, because another sample might miss it. Raises PermissionError
    if they may not be read.
    """
    state = (folder, *(file_state(folder / name) for name in (INFO, IMAGES, LABELS, VECTORS)))
    if state not in _KNOWN:
        if not (reason := find_damage(folder)):
            return ""
        _KNOWN[state] = reason
    return _KNOWN[state]


def file_state(path: Path) -> tuple[int, ...]:
    """What changes with the content of a file; empty if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null character in the path
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def find_damage(folder: Path) -> str:
    """See `damage`."""
    try:
        blocks = read_info(folder)["blocks"]
        for name in {LABELS, VECTORS} & blocks.keys():
            verify(folder / name, blocks[name], math.inf)
        share = verify(folder / IMAGES, blocks[IMAGES], SECONDS)
        load_cache(folder)
    except PermissionError:
        raise
    except NoChecksums:
        return "has no checksums, as it was built by an earlier version"
    except (OSError, ValueError) as error:
        return f"is damaged ({error})"
    if share < 1:
        print(f"cache: {share:.1%} of {folder / IMAGES} compared with its checksums, drawn at random", file=sys.stderr)
    return ""
