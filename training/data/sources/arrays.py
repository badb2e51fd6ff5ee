"""Arrays as images: of one shape and dtype, with values in a given range; .npy files are memory-mapped."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped

from pictures.formats import MAX_PIXELS
from pictures.pixel_format import DTYPES, FULL_RANGE, PixelFormat
from pictures.preprocessing import Preprocessing
from residual.names import amount
from storage.read import open_regular

MAX_VALUES = 3 * MAX_PIXELS
"""an array with more values is an error: as many as the largest picture has"""
MAX_HEADER = 1 << 16
"""bytes at the start of an array that its header may take"""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Axes = Literal["chw", "hwc"] | None
"""the order of channels, height and width; None: chw, unless the shape suggests hwc, which is an error then"""


@dataclass(frozen=True)
class ArrayImage:
    """One array, or the file of one, and the properties that all arrays of its set share with the array `first`."""

    data: Path | np.ndarray | Callable[[], np.ndarray]
    """a file, values, or what reads them"""
    pixel_format: PixelFormat
    shape: tuple[int, int, int]
    first: str
    axes: Axes
    bounded: bool = True
    """whether values outside the range of the pixel format are errors"""
    missing: bool = False
    """whether values may be NaN"""
    order: tuple[int, ...] = ()
    """numbers of the channels in the order of the image, if that is another than in the file"""

    def of(self, data: Path | np.ndarray | Callable[[], np.ndarray]) -> "ArrayImage":
        """Another image of the same set."""
        return replace(self, data=data)

    @property
    def values(self) -> Shaped[np.ndarray, "..."]:
        """The array as its source has it, memory-mapped if it is a file."""
        if isinstance(self.data, Path):
            return map_array(self.data)
        return self.data if isinstance(self.data, np.ndarray) else self.data()

    def read(self) -> Shaped[np.ndarray, "c h w"]:
        """The array in the dtype of the cache (`PixelFormat.stored`).

        Raises ValueError for another shape or dtype, before values are read, and for a value that is not finite, or
        outside the range: values are never clipped.
        """
        array = to_chw(self.values, self.axes or "chw")
        for what, found, wanted in (
            ("shape", array.shape, self.shape),
            ("dtype", array.dtype.name, self.pixel_format.dtype),
        ):
            if found != wanted:
                raise ValueError(f"{what} {found}, but {self.first} has {wanted}")
        low, high = self.pixel_format.low, self.pixel_format.high
        if self.bounded:
            inside, rule = in_range(array, low, high), f"outside data.range {low:g} to {high:g}"
        else:
            with np.errstate(over="ignore"):
                inside, rule = np.isfinite(array.astype(self.pixel_format.stored)), "no finite float32 numbers"
        if self.missing:
            inside |= np.isnan(array)
        elif not self.bounded and np.isnan(array).any():
            rule += " (data.missing: true takes NaN for missing values)"
        if not inside.all():
            where = tuple(map(int, np.unravel_index(np.argmin(inside), inside.shape)))
            count = f"{inside.size - np.count_nonzero(inside)} of {array.size} values"
            raise ValueError(f"{count} are {rule}, such as {array[where]:g} at {where}")
        return np.ascontiguousarray(array[list(self.order)] if self.order else array, self.pixel_format.stored)


@dataclass(frozen=True)
class ArrayOptions:
    """The settings of a set of arrays."""

    range: tuple[float, float] | None
    """values that become -1 and 1; None: the full range of the dtype"""
    axes: Axes
    preprocessing: Preprocessing
    """its size and channels must be None or those of the arrays, which are never changed"""
    max_bad: int
    """number of arrays that may be unreadable"""
    bounded: bool = True
    """whether values outside the range are errors"""
    missing: bool = False
    """whether NaN is a missing value"""
    condition: tuple[int, ...] = ()
    """numbers of the channels that are a condition, in their order"""

    @property
    def key(self) -> list:
        """What the key of a source needs besides range and axes; empty by default."""
        return [] if self.bounded and not self.missing else [["unbounded", not self.bounded, "missing", self.missing]]


def read_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether the order is Fortran's, dtype, and size of the header in bytes, from the start of a .npy file.

    Raises ValueError for other files.
    """
    head = BytesIO(start)
    try:
        version = np.lib.format.read_magic(head)
        if version not in HEADERS:
            raise ValueError(f"version {version} of the format is unknown")
        return *HEADERS[version](head), head.tell()
    except Exception as error:  # numpy parses the header as an expression of Python, which fails in many ways
        raise ValueError(f"not an array of numpy.save ({str(error)[:200]})") from None


def map_array(path: Path) -> Shaped[np.ndarray, "..."]:
    """The array in a .npy file, memory-mapped: no value is read, and a pickle is never opened.

    Raises ValueError or OSError for a file that is not regular, not of this kind, of another dtype, or truncated.
    """
    with open_regular(path) as file:
        shape, fortran, dtype, offset = read_header(file.read(MAX_HEADER))
        check_dtype(dtype)
        check_size(shape, dtype, file.seek(0, 2) - offset)
        return np.memmap(file, dtype, "r", offset, shape, "F" if fortran else "C")


def check_size(shape: tuple[int, ...], dtype: np.dtype, found: int) -> None:
    """Raises ValueError for a shape without values, and if a file has fewer bytes for them than it should."""
    if any(side < 1 for side in shape):
        raise ValueError(f"shape {shape} has no values")
    if found < (needed := math.prod(shape) * dtype.itemsize):
        raise ValueError(f"shape {shape} of {dtype} takes {needed:,} bytes, but there are {found:,}; write it again")


def check_dtype(dtype: np.dtype) -> None:
    """Raises ValueError for a dtype that is not in `DTYPES`."""
    if dtype.name not in DTYPES:
        raise ValueError(f"dtype {dtype} is not one of {', '.join(DTYPES)}; convert it by numpy.astype")


def to_chw(array: Shaped[np.ndarray, "..."], axes: Axes) -> Shaped[np.ndarray, "c h w"]:
    """One image with its channels first, without a copy; (h, w) is one channel.

    Raises ValueError for another number of axes, too many values, and if `axes` is None but the shape suggests that the
    channels are last: that the width is less than the number of channels, or height and channels are equal, while width
    and height differ.
    """
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"shape {array.shape} is neither (channels, height, width) nor (height, width); a file of"
            " many images is a data.source itself"
        )
    if array.size > MAX_VALUES:
        raise ValueError(f"shape {array.shape} has more than {MAX_VALUES:,} values, the most that an image may have")
    if array.ndim == 2:
        return array[None]
    first, second, last = array.shape
    if axes is None and last != second and (last < first or 4 < first == second):
        raise ValueError(
            f"shape {array.shape} may be (channels, height, width) or (height, width, channels); set data.axes to chw"
            " or hwc"
        )
    return array.transpose(2, 0, 1) if axes == "hwc" else array


def in_range(array: Shaped[np.ndarray, "..."], low: float, high: float) -> Bool[np.ndarray, "..."]:
    """Where values are finite and from `low` to `high`, both rounded to the dtype of the values."""
    kind = array.dtype if np.issubdtype(array.dtype, np.floating) else np.dtype(np.float64)
    with np.errstate(over="ignore"):
        bottom, top = np.array([low, high]).astype(kind)
    return np.isfinite(array) & (array >= bottom) & (array <= top)


def first_array(files: Sequence[Path], names: Sequence[str], options: ArrayOptions, source: str) -> ArrayImage:
    """The first readable array, which all others must match.

    Raises ValueError if none of the first `max_bad` + 1 files is readable, and as `to_chw` (if that concerns data.axes)
    and `describe_array` do. `source` is the value of data.source, for messages.
    """
    bad, limit = "", options.max_bad + 1
    for file, name in zip(files[:limit], names[:limit], strict=True):
        try:
            array = map_array(file)
            to_chw(array, options.axes or "chw")
            break
        except (OSError, ValueError) as error:
            bad = bad or f"{name}: {error}"
    else:
        raise ValueError(
            f"data.source {source!r}: none of its first {amount(len(files[:limit]), 'array')} can be read ({bad})"
        )
    return describe_array(file, array, name, options)


def describe_array(
    data: Path | np.ndarray, array: Shaped[np.ndarray, "..."], name: str, options: ArrayOptions
) -> ArrayImage:
    """The properties of the image `array`, which has the name `name` and is in `data`.

    Raises ValueError if the array contradicts the options, and if its dtype requires a range.
    """
    try:
        channels, height, width = to_chw(array, options.axes).shape
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    size = options.preprocessing.size
    if options.preprocessing.channels not in (None, channels):
        raise ValueError(f"data.channels is {options.preprocessing.channels} but {name} has {channels}; leave it out")
    if size not in (None, (height, width)):
        rule = f"{name} has {height} x {width} (height x width), and arrays are not resized"
        raise ValueError(f"data.size is {size} but {rule}; leave it out")
    dtype = array.dtype.name
    span = options.range or FULL_RANGE.get(dtype) or (None if options.bounded else (-1, 1))
    if span is None:
        raise ValueError(
            f"data.range is missing: {name} holds {dtype}; give the values that become -1 and 1, such as [-1, 1], or "
            "set data.normalisation to mean_std"
        )
    pixel_format = PixelFormat(dtype=dtype, low=span[0], high=span[1], file="npy")
    order = condition_last(channels, options.condition, name)
    shape = channels, height, width
    return ArrayImage(data, pixel_format, shape, name, options.axes, options.bounded, options.missing, order)


def condition_last(channels: int, condition: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The numbers of the channels with those of a condition last; empty without one.

    Raises ValueError, with the `name` of the array, for a number that is no channel or is repeated, and if no channel
    is left as a target.
    """
    if not condition:
        return ()
    target = [number for number in range(channels) if number not in condition]
    if not target or len(target) + len(condition) != channels:
        raise ValueError(
            f"data.condition {list(condition)} must be different channels of {name}, which has 0 to {channels - 1}, and"
            " leave one as a target"
        )
    return (*target, *condition)
