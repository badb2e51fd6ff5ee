"""Opens the images of a run and those of its evaluations: from the cache, or streamed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from training.data.cache.files import load_cache
from training.data.cache.open import find_cache
from training.data.config import DataConfig
from training.data.images import Images, check_bad, check_parts
from training.data.order import permutation
from training.data.sources.records import Records, Source
from training.data.sources.source import find_source
from training.data.sources.static_fields import read_static
from training.data.stream import ImageSet, StreamedImages


def open_images(
    config: DataConfig, *, on_main: Callable[[Callable[[], Path]], Path] = lambda find: find(), training: bool = True
) -> ImageSet:
    """The images that a run is trained on: memory-mapped from the cache, which is built if needed; or streamed.

    Only streamed images for `training` are cropped at random.

    With several processes pass `training.processes.on_main`: the main process decodes, the others wait, and an error
    is raised on all. Raises ValueError, in one line, for errors in the source, its labels or its images.
    """
    static = None if config.static is None else read_static(config.static)
    if config.stream:
        source, shards = find_source(config, training=training), config.stream_shards
        return StreamedImages(source, config.preprocessing, shards, config.max_bad, static=static, training=training)

    notes: list[str] = []

    def find() -> Path:
        source = find_source(config, training=training)
        if static is not None:
            source = replace(source, open=partial(open_fitting, source, config.preprocessing.size, static))
        notes.extend(source.notes)
        return find_cache(source, config.preprocessing, config.cache, config.max_bad)

    folder = on_main(find)
    if not folder.exists():  # the main process is on another machine, with its own disk
        folder = find()
    images = load_cache(folder, static)
    images.notes = (*notes, *images.notes)
    check_bad(images.bad, config.max_bad)
    return images.part(divided(len(images), config.validation)[0]) if isinstance(config.validation, float) else images


def open_validation(
    config: DataConfig, *, on_main: Callable[[Callable[[], Path]], Path] = lambda find: find()
) -> ImageSet | None:
    """The images of `config.validation`, which evaluations use, without random crops; None if it is None.

    See `open_images`.
    """
    if config.validation is None:
        return None
    whole = replace(config, validation=None, crop=config.preprocessing.deterministic().crop)
    if isinstance(config.validation, str):
        return open_images(replace(whole, split=config.validation), on_main=on_main, training=False)
    images = open_images(whole, on_main=on_main)
    assert isinstance(images, Images), "DataConfig refuses a share of a streamed set"
    return images.part(divided(len(images), config.validation)[1])


def open_fitting(
    source: Source, size: tuple[int, int] | None, static: Float32[np.ndarray, "k rows columns"]
) -> Records:
    """Opens a source. Raises ValueError if its images, as far as their size is known, do not have that of `static`."""
    records = source.open()
    if known := records.shape or (size and (1, *size)):
        check_parts(known, 0, static)
    return records


def divided(count: int, share: float) -> tuple[Int64[np.ndarray, "rest"], Int64[np.ndarray, "part"]]:
    """The numbers 0 to `count` - 1 in two parts, the second with a random `share` of them, the same in every run."""
    drawn = permutation(0, 0, count)
    part = round(count * share)
    return np.sort(drawn[part:]), np.sort(drawn[:part])
