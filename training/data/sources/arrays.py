"""Arrays as images: .npy files of one shape and dtype, whose values have a stated range."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped

from training.data.config import DataConfig
from training.data.pixel_format import DTYPES, FULL_RANGE, PixelFormat


@dataclass(frozen=True)
class ArrayFile:
    """The file of one array, and what all arrays of its set must be, as the file `first` is."""

    path: Path
    pixel_format: PixelFormat
    shape: tuple[int, int, int]
    first: str

    def read(self) -> Shaped[np.ndarray, "c h w"]:
        """The array as it is stored in the cache (`PixelFormat.stored`).

        Raises ValueError for another shape or dtype, of which the header tells before values are read, and for a
        value outside the range: nothing is clipped.
        """
        array = open_array(self.path)
        for what, found, wanted in (
            ("shape", array.shape, self.shape),
            ("dtype", array.dtype.name, self.pixel_format.dtype),
        ):
            if found != wanted:
                raise ValueError(f"{what} {found}, but {self.first} has {wanted}")
        outside = array[~in_range(array, self.pixel_format.low, self.pixel_format.high)]
        if len(outside):
            rule = f"outside data.range {self.pixel_format.low:g} to {self.pixel_format.high:g}"
            raise ValueError(f"{len(outside)} of {array.size} values are {rule}, such as {outside[0]:g}")
        return np.ascontiguousarray(array, self.pixel_format.stored)


def open_array(path: Path) -> Shaped[np.ndarray, "c h w"]:
    """The array in a .npy file, mapped: no value is read yet, and no pickle ever. (h, w) is one channel.

    Raises ValueError or OSError for what is no such file, is cut short, or holds no image.
    """
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"shape {array.shape} is neither (channels, height, width) nor (height, width)")
    if array.dtype.name not in DTYPES:
        raise ValueError(f"dtype {array.dtype} is not one of {', '.join(DTYPES)}")
    return array[None] if array.ndim == 2 else array


def in_range(array: Shaped[np.ndarray, "..."], low: float, high: float) -> Bool[np.ndarray, "..."]:
    """Where values are finite and from `low` to `high`, both rounded as the values were."""
    kind = array.dtype if np.issubdtype(array.dtype, np.floating) else np.dtype(np.float64)
    with np.errstate(over="ignore"):
        bottom, top = np.array([low, high]).astype(kind)
    return np.isfinite(array) & (array >= bottom) & (array <= top)


def example(config: DataConfig, files: Sequence[Path], names: Sequence[str]) -> ArrayFile:
    """The first readable array, which all others must be like.

    Raises ValueError if there is none among those that may be bad, if it is not what the config says, and if it needs
    a range.
    """
    array, bad, most = None, "", config.max_bad + 1
    for file, name in zip(files[:most], names[:most], strict=True):
        try:
            array = open_array(file)
            break
        except (OSError, ValueError) as error:
            bad = bad or f"{name}: {error}"
    if array is None:
        tried = len(files[:most])
        raise ValueError(f"data.source {config.source!r}: none of its first {tried} arrays can be read ({bad})")
    check_fields(config, array.shape, name)
    dtype = array.dtype.name
    span = config.range or FULL_RANGE.get(dtype)
    if span is None:
        raise ValueError(
            f"data.range is missing: {name} holds {dtype}; say which values are to become -1 and 1, as in [-1, 1]"
        )
    return ArrayFile(file, PixelFormat(dtype=dtype, low=span[0], high=span[1], file="npy"), array.shape, name)


def check_fields(config: DataConfig, shape: tuple[int, int, int], name: str) -> None:
    """Raises ValueError for fields that say something else than the arrays, or would have no effect on them."""
    channels, *hw = shape
    if config.channels not in (None, channels):
        raise ValueError(f"data.channels is {config.channels} but {name} has {channels}; leave it out")
    if config.hw not in (None, tuple(hw)):
        rule = f"{name} has {hw[0]} x {hw[1]} (height x width), and arrays are not resized"
        raise ValueError(f"data.size is {config.size} but {rule}; leave it out")
    if config.bits != 8:
        raise ValueError(f"data.bits is {config.bits} but arrays keep their numbers; leave it out")
