"""Files that hold the arrays of many images: .npy, memory-mapped, and .npz, with labels beside the images."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Shaped

from residual.names import require_known
from storage.read import open_regular
from training.data.sources.arrays import (
    MAX_HEADER,
    ArrayOptions,
    check_dtype,
    check_size,
    describe_array,
    map_array,
    read_header,
)
from training.data.sources.labels import Label, normalize_labels
from training.data.sources.records import Item, Records, Source, choose_split, stamp
from training.data.sources.tables import Columns
from training.memory import total_bytes
from training.units import show_size

ITEMS = 1000
"""images of a shard"""
NOT_READABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
Header = tuple[tuple[int, ...], bool, np.dtype, int]
"""of an array: shape, whether it is in Fortran order, dtype, and where its values begin"""


def array_file(path: Path, setting: str, split: str, columns: Columns, options: ArrayOptions) -> Source:
    """The images of a .npy or .npz file, of shape (n, c, h, w), (n, h, w, c) with `options.axes`, or (n, h, w).

    Of an .npz, `columns` name the arrays of images and of labels; without a name it is the only possible one.
    `setting` is the value of data.source. Raises ValueError for an unknown split.
    """
    choose_split(split, ["train"], setting)
    key = ["array file", columns.image, columns.label, columns.labels, options.range, options.axes, stamp(path)]
    key += options.key
    return Source(setting, path.stem, key, partial(read_array_file, path, columns, options))


def read_array_file(path: Path, columns: Columns, options: ArrayOptions) -> Records:
    """The images of a file, not read yet if it is .npy, and their labels. Raises ValueError for all that is wrong."""
    try:
        if path.suffix.lower() == ".npz":
            images, labels, vectors = read_npz(path, columns)
        else:
            images, labels, vectors = map_array(path), None, None
        if images.ndim not in (3, 4):
            raise ValueError(
                f"shape {images.shape} is neither (images, channels, height, width) nor (images, height, width); give"
                " the folder of files of one image each"
            )
        if images.ndim == 3 and images.shape[-1] <= 4 < images.shape[0]:
            raise ValueError(f"shape {images.shape} is rather one image than (images, height, width); give its folder")
        first = describe_array(images[0], images[0], "each image", options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    count = len(images)
    starts = range(0, count, ITEMS)

    def load(shard: int) -> list[Item]:
        start = starts[shard]
        return [
            Item(f"image {start + row}", first.of(image)) for row, image in enumerate(images[start : start + ITEMS])
        ]

    return Records(
        sizes=[min(ITEMS, count - start) for start in starts],
        load=load,
        labels=labels,
        classes=None,
        pixel_format=first.pixel_format,
        stamp=lambda: [path.name, path.stat().st_size, list(images.shape)],
        shape=first.shape,
        conditions=len(options.condition),
        vectors=vectors,
        vector_columns=columns.vectors.names,
        shard_files=[path] * len(starts),
    )


def read_npz(
    path: Path, columns: Columns
) -> tuple[Shaped[np.ndarray, "n ..."], list[Label] | None, Float32[np.ndarray, "n v"] | None]:
    """The images in an .npz file, and their labels and vectors if any.

    Raises ValueError, which lists the arrays, if it cannot.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            headers = read_headers(archive)
            shapes = {name: shape for name, (shape, *_) in headers.items()}
            images_of = [name for name in holding_images(shapes) if name != columns.condition]
            image = choose("image", columns.image, shapes, images_of)
            images = read_member(archive, image, headers[image])
            count = len(images)
            single = [name for name, shape in shapes.items() if shape in ((count,), (count, 1))]
            for name in columns.vectors.names:
                require_known(f"data.vector_columns of {count:,} numbers", name, single)
            numbers = {name: read_member(archive, name, headers[name]).ravel() for name in columns.vectors.names}
            vectors = columns.vectors.stack(numbers, path.name)
            possible = [name for name in single if name not in numbers]
            if columns.labels is False or not (columns.label or columns.labels or len(possible) == 1):
                return images, None, vectors
            label = choose("label", columns.label, shapes, possible)
            check_labels(label, headers[label], count)
            return images, to_labels(label, read_member(archive, label, headers[label])), vectors
    except NOT_READABLE as error:
        raise ValueError(unreadable(error)) from None


def image_arrays(path: Path) -> list[str]:
    """The arrays of an .npz file that may hold images. Raises ValueError if it cannot be read."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return holding_images({name: shape for name, (shape, *_) in read_headers(archive).items()})
    except NOT_READABLE as error:
        raise ValueError(f"{path}: {unreadable(error)}") from None


def unreadable(error: Exception) -> str:
    """Why an .npz file cannot be read, and the way out."""
    return f"not a readable .npz file ({error}); write it again by numpy.savez"


def read_headers(archive: zipfile.ZipFile) -> dict[str, Header]:
    """The headers of the arrays of an .npz file, by their names."""
    headers = {}
    for name in archive.namelist():
        with archive.open(name) as member:
            headers[name.removesuffix(".npy")] = read_header(member.read(MAX_HEADER))
    return headers


def holding_images(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The arrays whose shapes may be those of images."""
    return [name for name, shape in shapes.items() if len(shape) in (3, 4)]


def choose(kind: str, named: str | None, shapes: dict[str, tuple[int, ...]], possible: list[str]) -> str:
    """The named array, else the only possible one. Raises ValueError with all names if there is none, or several."""
    if named is not None:
        require_known(f"data.{kind}_column", named, shapes)
        return named
    if len(possible) != 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:20])
        found = f"{len(possible)} arrays may hold the {kind}s"
        raise ValueError(f"{found}; set data.{kind}_column to one of the arrays: {listed}")
    return possible[0]


def read_member(archive: zipfile.ZipFile, name: str, header: Header) -> Shaped[np.ndarray, "..."]:
    """An array of an .npz file, in memory. Raises ValueError for one that takes half of the memory or more."""
    shape, fortran, dtype, offset = header
    if dtype.kind not in "US":
        check_dtype(dtype if dtype.kind not in "iu" else np.dtype(np.uint8))
    check_size(shape, dtype, archive.getinfo(f"{name}.npy").file_size - offset)
    size = math.prod(shape) * dtype.itemsize
    available = total_bytes(torch.device("cpu"))
    if available is not None and size > available / 2:
        raise ValueError(
            f"array {name} has {show_size(size)}, more than half of the memory ({show_size(available)}); save it as"
            " .npy, which is not read into memory"
        )
    with archive.open(f"{name}.npy") as member:
        member.read(offset)
        data = member.read(size)
    check_size(shape, dtype, len(data))
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def check_labels(name: str, header: Header, count: int) -> None:
    """Raises ValueError unless an array, whose header is given, has one number or text for each image."""
    shape, _, dtype, _ = header
    if math.prod(shape) != count or shape[:1] != (count,) or dtype.kind not in "iuUS":
        raise ValueError(
            f"label array {name} of shape {shape} and {dtype} has not one whole number or name for each of"
            f" {count:,} images; set data.label_column to another array, or data.labels to false"
        )


def to_labels(name: str, array: Shaped[np.ndarray, "n ..."]) -> list[Label]:
    """An array of numbers or texts as a list. Raises ValueError for bytes that are not UTF-8."""
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"label array {name} is not UTF-8 ({error}); save it as text") from None
    return normalize_labels(array.ravel().tolist())
