"""The cache: every image decoded once, to a folder that numpy alone can read.

    import json, numpy as np
    info = json.load(open("cache.json"))
    images = np.memmap("images.bin", np.uint8, "r", shape=tuple(info["shape"]))  # (n, c, h, w), C order
    labels = np.load("labels.npy")                                               # int64 (n,), if info["classes"]

`cache.json` also holds `format_version`, `classes` (names, or null), `bad` (name and reason of each image left out),
`fingerprint` (SHA-256 of the content, see `Images.fingerprint`), `source` and `settings` (what was asked for).
A folder is named by a hash of the source's content (paths, sizes, times of change) and of the settings, is written
under a temporary name and renamed when complete. Deleting it is safe: it is made again when needed.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
from tqdm import tqdm

from training.data.config import DataConfig
from training.data.images import Images, fingerprint, listing
from training.data.labels import Label, check_label, number_labels
from training.data.records import Records, Source
from training.data.source import find_source

FORMAT_VERSION = 1
IMAGES, LABELS, INFO = "images.bin", "labels.npy", "cache.json"


def open_images(config: DataConfig, *, on_main: Callable[[Callable[[], Path]], Path] = lambda find: find()) -> Images:
    """The images of a run: decoded into the cache when they are not there yet, then mapped from it.

    Under several processes pass `training.accelerator.on_main`: the main process decodes, the others wait, and an error
    is raised on all. Raises ValueError, in one line, for whatever is wrong with the source, its labels or its images.
    """
    folder = on_main(lambda: find_cache(config))
    if not folder.exists():  # on another machine, with a disk of its own
        folder = find_cache(config)
    images = load(folder)
    check_bad(images.bad, config.max_bad)
    return images


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


def settings(config: DataConfig) -> dict:
    """The fields of a config that change what is stored."""
    names = ("split", "channels", "crop", "image_column", "label_column", "labels")
    return {"size": config.hw} | {name: getattr(config, name) for name in names}


def load(folder: Path) -> Images:
    """Open a cache folder. Raises ValueError if it is not complete."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        found, wanted = (folder / IMAGES).stat().st_size, int(np.prod(info["shape"]))
        if info["format_version"] != FORMAT_VERSION or found != wanted:
            raise ValueError(f"format {info['format_version']}, {found} of {wanted} bytes")
        array = np.memmap(folder / IMAGES, np.uint8, "r", shape=tuple(info["shape"]))
        labels = None if info["classes"] is None else np.load(folder / LABELS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the cache {folder} is damaged ({error}); delete it, it will be made again") from error
    return Images(array, labels, info["classes"], fingerprint=info["fingerprint"], bad=info["bad"])


def build(source: Source, config: DataConfig, folder: Path) -> None:
    """Decode a source into `folder`, all or nothing."""
    records = source.open()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        write(records, config, temporary)
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.exists():  # else another run was faster, and its copy is as good
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(records: Records, config: DataConfig, folder: Path) -> None:
    """Decode records into the files of a cache folder."""
    from training.data.decode import decode_all

    labels: list[Label] = []
    bad: list[str] = []
    limit = None if records.classes is None else len(records.classes)
    with (
        open(folder / IMAGES, "w+b") as file,
        tqdm(total=records.count, desc="decoding images", unit="image", unit_scale=True, disable=None) as bar,
        closing(records.items),  # an error must not leave a half-read table to the end of the program
        closing(decode_all(records.items, config)) as stream,
    ):
        pixels = PixelFile(file)
        for item, decoded in stream:
            bar.update()
            if isinstance(decoded, str):
                bad.append(f"{item.name}: {decoded}")
                bar.write(f"skipped {bad[-1]}", file=sys.stderr)
                check_bad(bad, config.max_bad)
                continue
            if records.labelled:
                check_label(item.label, len(labels), limit, item.name)
                labels.append(item.label)
            pixels.append(decoded, item.name)
        if pixels.shape is None:
            raise ValueError(f"data.source {config.source!r} holds no image that can be read" + listing(bad))
        file.flush()
        os.fsync(file.fileno())
    array = np.memmap(folder / IMAGES, np.uint8, "r", shape=(pixels.count, *pixels.shape))
    numbers, classes = number_labels(labels, records.classes) if records.labelled else (None, None)
    if numbers is not None:
        np.save(folder / LABELS, numbers)
    info = {
        "format_version": FORMAT_VERSION,
        "shape": array.shape,
        "classes": classes,
        "bad": bad,
        "fingerprint": fingerprint(array, numbers, classes),
        "source": config.source,
        "settings": settings(config),
    }
    (folder / INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")


def check_bad(bad: Sequence[str], most: int) -> None:
    """Raises ValueError if more images were unreadable than may be skipped."""
    if len(bad) > most:
        rule = f"more than data.max_bad {most} images cannot be read"
        raise ValueError(f"{rule}{listing(bad)}; repair or remove them, or raise data.max_bad")


class PixelFile:
    """Images appended to a raw file: the first decides the size; the first in colour makes all of them RGB."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.count = 0
        self.shape: tuple[int, int, int] | None = None
        self.first = ""

    def append(self, image: np.ndarray, name: str) -> None:
        """Write one image (c, h, w). Raises ValueError if its size is not that of the others."""
        if self.shape is None:
            self.shape, self.first = image.shape, name
        channels, height, width = self.shape
        if image.shape[1:] != (height, width):
            raise ValueError(
                f"images differ in size: {self.first} has {height} x {width} px (height x width), {name} has"
                f" {image.shape[1]} x {image.shape[2]}; set data.size to bring all of them to one size"
            )
        if len(image) > channels:
            self._widen(len(image))
        elif len(image) < channels:
            image = np.repeat(image, channels, axis=0)
        self.file.write(image.tobytes())
        self.count += 1

    def _widen(self, channels: int) -> None:
        """Turn the grey images written so far into `channels` equal channels, the last first, in place."""
        assert self.shape is not None
        grey_bytes = self.shape[1] * self.shape[2]
        for number in reversed(range(self.count)):
            self.file.seek(number * grey_bytes)
            grey = self.file.read(grey_bytes)
            self.file.seek(number * grey_bytes * channels)
            self.file.write(grey * channels)
        self.file.seek(self.count * grey_bytes * channels)
        self.shape = (channels, *self.shape[1:])
