"""Statistics of a training set: mean and standard deviation of each channel, and where values were ever known."""

import hashlib
import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped

from pictures.pixel_format import PixelFormat
from pictures.units import TRANSFORMS, Units
from residual.names import amount
from storage.write import replace_file
from training.data.images import Images

CHUNK_VALUES = 1 << 24
"""values that are read at a time"""
SAMPLE = 256
"""images of a sample"""
FAR = 10.0
"""standard deviations; data that standardised values are farther from 0 than this, on average, belong to others"""


@dataclass(frozen=True)
class Statistics:
    """Statistics of the known values of each channel, after the transform."""

    mean: Float64[np.ndarray, "c"]
    std: Float64[np.ndarray, "c"]
    seen: Bool[np.ndarray, "c h w"]
    """where at least one image has a value"""


def measure(images: Images, transform: tuple[str, ...], numbers: Shaped[np.ndarray, "m"]) -> Statistics:
    """The statistics of the images with these numbers, in one pass over them; NaN is left out.

    The moments of parts are merged by the formula of Chan et al. 1979. Raises ValueError for a value that the transform
    of its channel does not allow.
    """
    channels = images.shape[0]
    count, mean, squares = (np.zeros(channels) for _ in range(3))
    seen = np.zeros(images.shape, bool)
    for stored in parts(images, numbers):
        seen |= ~np.isnan(stored).all(axis=0)
        check_values(stored, transform)
        for channel, name in enumerate(transform):
            values = torch.from_numpy(stored[:, channel]).double()
            values = values[~values.isnan()]
            if not len(values):
                continue
            values = TRANSFORMS[name][0](values)
            added, part = len(values), float(values.mean())
            total, delta = count[channel] + added, part - mean[channel]
            squares[channel] += float((values - part).square().sum()) + delta**2 * count[channel] * added / total
            mean[channel] += delta * added / total
            count[channel] = total
    for channel in np.flatnonzero(count == 0).tolist():
        raise ValueError(f"channel {channel} has no value in {amount(len(numbers), 'image')}; leave it out")
    return Statistics(mean, np.sqrt(squares / count), seen)


def parts(images: Images, numbers: Shaped[np.ndarray, "m"]) -> Iterator[Shaped[np.ndarray, "some c h w"]]:
    """The images with these numbers, as many at a time as `CHUNK_VALUES` allow."""
    step = max(1, CHUNK_VALUES // math.prod(images.shape))
    return (images.read(numbers[start : start + step]) for start in range(0, len(numbers), step))


def check_values(stored: Shaped[np.ndarray, "some c h w"], transform: tuple[str, ...]) -> None:
    """Raises ValueError for a value that the transform of its channel does not allow."""
    for channel, name in enumerate(transform):
        if name == "log1p" and (low := float(np.fmin.reduce(stored[:, channel], axis=None))) <= -1:
            raise ValueError(
                f"data.transform log1p of channel {channel} needs values above -1, but one is {low:g}; choose arcsinh"
            )


def check_transform(images: Images, transform: tuple[str, ...]) -> None:
    """As `check_values`, for all images."""
    if "log1p" in transform:
        for stored in parts(images, np.arange(len(images))):
            check_values(stored, transform)


def statistics_of(images: Images, transform: tuple[str, ...], folder: Path) -> Statistics:
    """The statistics of all images, kept in the folder of their cache if that can be written."""
    key = hashlib.sha256(json.dumps([images.fingerprint, transform]).encode()).hexdigest()
    path = folder / f"statistics-{key[:16]}.npz"
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(path, allow_pickle=False) as kept:
        return Statistics(kept["mean"], kept["std"], kept["seen"])
    found = measure(images, transform, np.arange(len(images)))

    def save(new: Path) -> None:
        with new.open("wb") as file:
            np.savez(file, mean=found.mean, std=found.std, seen=found.seen)

    with suppress(OSError):
        replace_file(path, save)
    return found


def sample_numbers(count: int) -> Int64[np.ndarray, "m"]:
    """The numbers of at most `SAMPLE` images, evenly spread over so many."""
    return np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))


def transform_of(transform: tuple[str, ...], channels: int) -> tuple[str, ...]:
    """One transform per channel. Raises ValueError for another number."""
    if len(transform) not in (1, channels):
        raise ValueError(
            f"data.transform has {len(transform)} entries, but the images have {amount(channels, 'channel')}; give one "
            "for all, or one for each"
        )
    return transform * channels if len(transform) == 1 else transform


def measured_units(found: Statistics, transform: tuple[str, ...], pixel_format: PixelFormat) -> Units:
    """The units that statistics define. Raises ValueError for a constant channel."""
    for channel, (mean, std) in enumerate(zip(found.mean, found.std, strict=True)):
        if std <= 1e-7 * abs(mean) or std == 0:  # below the precision of float32
            raise ValueError(
                f"channel {channel} is constant, {mean:g} after data.transform, so it cannot be standardised; leave it "
                "out"
            )
    rounded = [tuple(map(float, values.astype(np.float32))) for values in (found.mean, found.std)]
    return Units(mean=rounded[0], std=rounded[1], transform=transform, dtype=pixel_format.dtype)


def given_units(
    mean: tuple[float, ...], std: tuple[float, ...], transform: tuple[str, ...], channels: int, dtype: str
) -> Units:
    """The units that `data.mean` and `data.std` define. Raises ValueError for another number of channels."""
    if len(mean) != channels:
        raise ValueError(
            f"data.mean has {amount(len(mean), 'number')}, but the images have {amount(channels, 'channel')}; give one "
            "for each"
        )
    return Units(mean=mean, std=std, transform=transform, dtype=dtype)


def check_units(units: Units, images: Images) -> None:
    """Raises ValueError if the units are those of other data: if standardised values are far from mean 0 and standard
    deviation 1 in some channel of a sample of the images."""
    found = measure(images, units.transform, sample_numbers(len(images)))
    for channel, (mean, std) in enumerate(zip(units.mean, units.std, strict=True)):
        center, spread = (found.mean[channel] - mean) / std, found.std[channel] / std
        if abs(center) > FAR or not 1 / FAR < spread < FAR:
            raise ValueError(
                f"statistics of other data: channel {channel} has mean {found.mean[channel]:g} and standard deviation "
                f"{found.std[channel]:g} after data.transform, but data.mean is {mean:g} and data.std {std:g}; give "
                "images in the units of these, or correct them"
            )


def far_channels(units: Units, images: Images) -> list[tuple[int, float]]:
    """The channels of a sample of the images whose mean is far from that of `units`, which are those of their first
    channels, with the distance in standard deviations."""
    stored = torch.from_numpy(images.read(sample_numbers(len(images)))[:, : len(units.mean)])
    means = units.to_unit(stored).double().nanmean(dim=(0, 2, 3)).tolist()
    return [(channel, mean) for channel, mean in enumerate(means) if abs(mean) > FAR]
