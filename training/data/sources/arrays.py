"""Arrays as images: .npy files of one shape and dtype, with values in a given range."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped

from pictures.pixel_format import DTYPES, FULL_RANGE, PixelFormat
from pictures.preprocessing import Preprocessing


@dataclass(frozen=True)
class ArrayFile:
    """The file of one array, and the properties that all arrays of its set share with the file `first`."""

    path: Path
    pixel_format: PixelFormat
    shape: tuple[int, int, int]
    first: str

    def read(self) -> Shaped[np.ndarray, "c h w"]:
        """The array in the dtype of the cache (`PixelFormat.stored`).

        Raises ValueError for another shape or dtype, before values are read, and for a value outside the range: values
        are never clipped.
        """
        array = open_array(self.path)
        for what, found, wanted in (
            ("shape", array.shape, self.shape),
            ("dtype", array.dtype.name, self.pixel_format.dtype),
        ):
            if found != wanted:
                raise ValueError(f"{what} {found}, but {self.first} has {wanted}")
        low, high = self.pixel_format.low, self.pixel_format.high
        outside = array[~in_range(array, low, high)]
        if len(outside):
            rule = f"outside data.range {low:g} to {high:g}"
            raise ValueError(f"{len(outside)} of {array.size} values are {rule}, such as {outside[0]:g}")
        return np.ascontiguousarray(array, self.pixel_format.stored)


@dataclass(frozen=True)
class ArrayOptions:
    """The settings of a folder of arrays."""

    range: tuple[float, float] | None
    """values that become -1 and 1; None: the full range of the dtype"""
    preprocessing: Preprocessing
    """its size and channels must be None or those of the arrays, which are never changed"""
    max_bad: int
    """number of arrays that may be unreadable"""


def open_array(path: Path) -> Shaped[np.ndarray, "c h w"]:
    """The array in a .npy file, memory-mapped: no value is read, and a pickle is never opened. (h, w) is one channel.

    Raises ValueError or OSError for a file that is not of this kind, is truncated, or holds no image.
    """
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"shape {array.shape} is neither (channels, height, width) nor (height, width)")
    if array.dtype.name not in DTYPES:
        raise ValueError(f"dtype {array.dtype} is not one of {', '.join(DTYPES)}")
    return array[None] if array.ndim == 2 else array


def in_range(array: Shaped[np.ndarray, "..."], low: float, high: float) -> Bool[np.ndarray, "..."]:
    """Where values are finite and from `low` to `high`, both rounded to the dtype of the values."""
    kind = array.dtype if np.issubdtype(array.dtype, np.floating) else np.dtype(np.float64)
    with np.errstate(over="ignore"):
        bottom, top = np.array([low, high]).astype(kind)
    return np.isfinite(array) & (array >= bottom) & (array <= top)


def first_array(files: Sequence[Path], names: Sequence[str], options: ArrayOptions, source: str) -> ArrayFile:
    """The first readable array, which all others must match.

    Raises ValueError if none of the first `max_bad` + 1 files is readable, if the array contradicts the options, and if
    its dtype requires a range. `source` is the value of data.source, for messages.
    """
    bad, limit = "", options.max_bad + 1
    for file, name in zip(files[:limit], names[:limit], strict=True):
        try:
            array = open_array(file)
            break
        except (OSError, ValueError) as error:
            bad = bad or f"{name}: {error}"
    else:
        raise ValueError(f"data.source {source!r}: none of its first {len(files[:limit])} arrays can be read ({bad})")
    channels, height, width = array.shape
    size = options.preprocessing.size
    if options.preprocessing.channels not in (None, channels):
        raise ValueError(f"data.channels is {options.preprocessing.channels} but {name} has {channels}; leave it out")
    if size not in (None, (height, width)):
        rule = f"{name} has {height} x {width} (height x width), and arrays are not resized"
        raise ValueError(f"data.size is {size} but {rule}; leave it out")
    dtype = array.dtype.name
    span = options.range or FULL_RANGE.get(dtype)
    if span is None:
        raise ValueError(
            f"data.range is missing: {name} holds {dtype}; give the values that become -1 and 1, such as [-1, 1]"
        )
    return ArrayFile(file, PixelFormat(dtype=dtype, low=span[0], high=span[1], file="npy"), array.shape, name)
