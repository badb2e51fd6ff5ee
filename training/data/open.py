"""Opens the images of a run and those of its evaluations: from the cache, or streamed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from pictures.pixel_format import PixelFormat
from pictures.units import AnyFormat, Units
from training.data.cache.files import load_cache
from training.data.cache.open import find_cache
from training.data.config import DataConfig
from training.data.images import Images, check_bad, check_parts
from training.data.latents import open_autoencoder
from training.data.order import permutation
from training.data.sources.records import Records, Source
from training.data.sources.source import find_source
from training.data.sources.static_fields import read_static
from training.data.statistics import (
    check_transform,
    check_units,
    given_units,
    measured_units,
    statistics_of,
    transform_of,
)
from training.data.stream import ImageSet, StreamedImages

T = TypeVar("T")


@runtime_checkable
class OnMain(Protocol):
    """Calls a function on the main process only, and returns its result on all: `training.processes.on_main`."""

    def __call__(self, function: Callable[[], T], /) -> T: ...


def directly(function: Callable[[], T], /) -> T:
    """As `OnMain`, for a single process."""
    return function()


def open_images(
    config: DataConfig,
    *,
    on_main: OnMain = directly,
    training: bool = True,
    units: Units | None = None,
    batch: int | None = None,
) -> ImageSet:
    """The images that a run is trained on: memory-mapped from the cache, which is built if needed; or streamed.

    Only streamed images for `training` are cropped at random, and `Images.seen` is found for it alone. They are read in
    the parts of `data.stream_parts` if the `batch` is given that these divide: the images of an update. With
    `data.normalisation` mean_std their units follow from their own statistics, unless `units` are given, as for images
    that a trained model is compared with; these have the dtype of the images, if that is stored otherwise.

    With several processes pass `training.processes.on_main`: the main process decodes, the others wait, and an error
    is raised on all. Raises ValueError, in one line, for errors in the source, its labels or its images.
    """
    static = None if config.static is None else read_static(config.static)
    autoencoder = None if config.autoencoder is None else open_autoencoder(config.autoencoder, config.preprocessing)
    if config.stream:
        source, shards = find_source(config, training=training), config.stream_shards
        parts, batch = (1, 1) if batch is None else (config.stream_parts, batch)
        streamed = StreamedImages(
            source,
            config.preprocessing,
            shards,
            config.max_bad,
            static=static,
            training=training,
            parts=parts,
            batch=batch,
        )
        if config.normalisation == "mean_std":
            stated = config.mean, config.std, config.transform
            streamed.pixel_format = as_stored(units, streamed) if units else stated_units(*stated, streamed)
        return streamed

    notes: list[str] = []

    def find() -> Path:
        source = find_source(config, training=training)
        if static is not None:
            source = replace(source, open=partial(open_fitting, source, config.preprocessing.size, static))
        if autoencoder is not None:
            source = replace(source, autoencoder=autoencoder)
        notes.extend(source.notes)
        return find_cache(source, config.preprocessing, config.cache, config.max_bad)

    folder = on_main(find)
    if not folder.exists():  # the main process is on another machine, with its own disk
        folder = find()
    images = load_cache(folder, static)
    images.notes = (*notes, *images.notes)
    check_bad(images.bad, config.max_bad)
    if autoencoder is not None:
        images.autoencoder, images.pixel_format = autoencoder, autoencoder.units
    if isinstance(config.validation, float):
        images = images.part(divided(len(images), config.validation)[0])
    whole = images
    if config.normalisation == "mean_std":
        stated = config.mean, config.std, config.transform
        if units is None:
            units = on_main(lambda: find_units(*stated, whole, folder, config.source))
        elif images.shape[0] == len(units.transform):
            on_main(partial(check_transform, whole, units.transform))
        images.pixel_format = as_stored(units, images)
    if config.missing and training:
        images.seen = on_main(lambda: statistics_of(whole, ("none",) * whole.shape[0], folder)).seen
    return images


def open_as_trained(values: AnyFormat, *, on_main: OnMain = directly, **settings: Any) -> ImageSet:
    """Images of these settings of `DataConfig`, in the values of a trained model.

    Arrays have its range or its units, whatever their own statistics are. Raises ValueError as `open_images` does.
    """
    if isinstance(values, Units):
        config = DataConfig(normalisation="mean_std", **settings)
        return open_images(config, on_main=on_main, training=False, units=values)
    if values.file == "npy":
        settings["range"] = (values.low, values.high)
    return open_images(DataConfig(**settings), on_main=on_main, training=False)


def open_validation(config: DataConfig, *, on_main: OnMain = directly) -> ImageSet | None:
    """The images of `config.validation`, which evaluations use, without random crops; None if it is None.

    See `open_images`.
    """
    if config.validation is None:
        return None
    whole = replace(config, validation=None, crop=config.preprocessing.deterministic().crop)
    units = None
    if config.normalisation == "mean_std":
        trained = open_images(config, on_main=on_main, training=False).pixel_format
        assert isinstance(trained, Units), "they are standardised"
        units = trained
    if isinstance(config.validation, str):
        return open_images(replace(whole, split=config.validation), on_main=on_main, training=False, units=units)
    images = open_images(whole, on_main=on_main, training=False, units=units)
    assert isinstance(images, Images), "DataConfig refuses a share of a streamed set"
    return images.part(divided(len(images), config.validation)[1])


def stated_units(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, transform: tuple[str, ...], images: ImageSet
) -> Units:
    """The units that `data.mean` and `data.std` define. Raises ValueError if they do not fit the images."""
    assert mean is not None, "DataConfig requires it while streaming"
    assert std is not None, "DataConfig requires both"
    channels = images.shape[0]
    return given_units(mean, std, transform_of(transform, channels), channels, images.pixel_format.dtype)


def as_stored(units: Units, images: ImageSet) -> Units:
    """The units with the dtype of the images, if theirs is stored as another one."""
    found = images.pixel_format
    return units if units.stored == found.stored else replace(units, dtype=found.dtype)


def find_units(
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    transform: tuple[str, ...],
    images: Images,
    folder: Path,
    source: str,
) -> Units:
    """The units of training images: those that are stated, or those of their statistics, kept in the cache `folder`.

    `source` is the value of data.source. Raises ValueError for a constant channel, and for stated ones that belong to
    other data.
    """
    try:
        if mean is not None:
            units = stated_units(mean, std, transform, images)
            check_units(units, images)
            check_transform(images, units.transform)
            return units
        transform = transform_of(transform, images.shape[0])
        assert isinstance(images.pixel_format, PixelFormat), "it is that of the cache"
        return measured_units(statistics_of(images, transform, folder), transform, images.pixel_format)
    except ValueError as error:
        first = images.shape[0] - images.conditions
        hint = f" (channels from {first} on are those of data.condition)" if images.conditions else ""
        raise ValueError(f"data.source {source!r}: {error}{hint}") from None


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
