"""Grids: netCDF files and zarr stores, whose variables become channels; read through xarray, image by image."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from pictures.coordinates import Coordinates
from residual.names import amount, require_known, shorten
from storage.extra import require_extra
from training.data.sources.arrays import ArrayOptions, describe_array
from training.data.sources.records import Item, Records, Source, choose_split, stamp
from training.data.sources.table_files import first_line
from training.data.sources.tables import Columns

SUFFIXES = (".nc", ".nc4", ".zarr")
SAMPLES = "time"
"""usual name of the dimension along which there is one image after the other"""
MAX_BLOCK_BYTES = 256 << 20
"""bytes that are read at once from a file whose chunks hold several images"""


@dataclass(frozen=True)
class Grid:
    """Variables of an open file: one image for each entry of the dimension `samples`."""

    dataset: Any
    names: tuple[str, ...]
    """the variables that become channels, in this order"""
    samples: str
    axes: tuple[str, str]
    """dimensions from top to bottom and from left to right"""

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.dataset.sizes[self.samples])

    def read(self, chosen: int | slice) -> Shaped[np.ndarray, "*n c h w"]:
        """The image of this number, or those of a slice. Further dimensions of a variable, such as levels, are channels
        one after the other."""
        parts = []
        for name in self.names:
            part = self.dataset[name].isel({self.samples: chosen})
            leading = [self.samples] if isinstance(chosen, slice) else []
            values = part.transpose(*leading, ..., *self.axes).values
            parts.append(values.reshape(*values.shape[: len(leading)], -1, *values.shape[-2:]))
        return np.concatenate(parts, axis=-3)

    @property
    def block(self) -> int:
        """How many images are read at once: those of the largest chunk of the file, if they fit into memory."""
        sizes, image_bytes = [1], 0
        for variable in self.dataset.data_vars.values():
            if self.samples in variable.dims:
                chunks = variable.encoding.get("chunksizes") or variable.encoding.get("chunks")
                sizes.append(chunks[variable.dims.index(self.samples)] if chunks else 1)
                image_bytes += variable.nbytes // self.count
        return min(max(sizes), max(1, MAX_BLOCK_BYTES // max(1, image_bytes)))

    @property
    def coordinates(self) -> Coordinates:
        """Names and units of channels, and the coordinates of the axes, or the numbers of rows and columns."""
        channels, channel_units = [], []
        for name in self.names:
            variable = self.dataset[name]
            levels = [each for each in variable.dims if each not in (self.samples, *self.axes)]
            for place in np.ndindex(*(variable.sizes[level] for level in levels)):
                at = [f"{level}={variable[level].values[i]}" for level, i in zip(levels, place, strict=True)]
                channels.append(" ".join([name, *at]))
                channel_units.append(str(variable.attrs.get("units", "")))
        (rows, row_unit), (columns, column_unit) = map(self._axis, self.axes)
        return Coordinates(
            channels=tuple(channels),
            channel_units=tuple(channel_units),
            names=self.axes,
            values=(rows, columns),
            units=(row_unit, column_unit),
        )

    def _axis(self, name: str) -> tuple[tuple[float, ...], str]:
        """The values of an axis, and their unit."""
        found = self.dataset[name]
        if not np.issubdtype(found.dtype, np.number):
            return tuple(map(float, range(found.size))), ""
        return tuple(map(float, found.values)), str(found.attrs.get("units", ""))


def grid_file(
    path: Path, setting: str, split: str, variables: Sequence[str], columns: Columns, options: ArrayOptions
) -> Source:
    """The images of a netCDF file or zarr store, of which `variables` are the channels; none finds the only possible.

    `setting` is the value of data.source. Raises ValueError for an unknown split, and if labels are required.
    """
    choose_split(split, ["train"], setting)
    if columns.labels:
        raise ValueError(f"data.labels is true but data.source {setting!r} has none; leave it out")
    key = ["grid", list(variables), options.range, stamp_of(path), *options.key]
    return Source(setting, path.stem, key, partial(read_grid, path, tuple(variables), columns, options))


def read_grid(path: Path, variables: tuple[str, ...], columns: Columns, options: ArrayOptions) -> Records:
    """The images of a file, not read yet. Raises ValueError for all that is wrong."""
    try:
        grid = find_grid(open_dataset(path), variables)
        first = describe_array(image := grid.read(0), image, "each image", replace(options, axes="chw"))
        numbers = {name: numbers_of(grid, name) for name in columns.vectors.names}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    count, block = grid.count, grid.block

    def load(shard: int) -> list[Item]:
        if block == 1:
            return [Item(f"image {i}", first.of(partial(grid.read, i))) for i in range(count)]
        start = shard * block
        return [
            Item(f"image {i}", first.of(image))
            for i, image in enumerate(grid.read(slice(start, min(start + block, count))), start)
        ]

    sizes = [count] if block == 1 else [min(block, count - start) for start in range(0, count, block)]
    return Records(
        sizes=sizes,
        load=load,
        labels=None,
        classes=None,
        pixel_format=first.pixel_format,
        stamp=lambda: [path.name, list(grid.names), *stamp_of(path)[1:2], count, list(first.shape)],
        bytes=[0 if block == 1 else size * image.nbytes for size in sizes],
        shape=first.shape,
        vectors=columns.vectors.stack(numbers, path.name),
        vector_columns=columns.vectors.names,
        coordinates=grid.coordinates,
    )


def open_dataset(path: Path) -> Any:
    """The file as a data set of xarray, of which no value is read. Raises ValueError, in one line, if it cannot be
    opened."""
    is_zarr = path.suffix.lower() == ".zarr"
    kind = "zarr store" if is_zarr else "netCDF file"
    for package in ("xarray", "zarr" if is_zarr else "netCDF4"):
        require_extra(package, "science", f"a {kind}")
    import xarray

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as about metadata that are not consolidated
            engine = "zarr" if is_zarr else "netcdf4"
            return xarray.open_dataset(path, engine=engine, chunks=None, decode_times=False)
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(f"not a readable {kind} ({type(error).__name__}: {first_line(error)})") from error


def find_grid(dataset: Any, variables: tuple[str, ...]) -> Grid:
    """The variables, with the dimension of the images and the axes, which are the last two others.

    Raises ValueError, with the names to choose from, for an unknown variable or none, and for variables that have other
    dimensions.
    """
    dims_of = {str(name): tuple(map(str, found.dims)) for name, found in dataset.data_vars.items()}
    fields = [name for name, dims in dims_of.items() if len(dims) >= 3]
    if not variables and len(fields) != 1:
        listed = shorten(fields) if fields else "none has three dimensions"
        raise ValueError(
            f"{amount(len(fields), 'variable')} may be the channels; set data.variables to some of: {listed}"
        )
    for name in variables:
        require_known("data.variables", name, dims_of)
    names = variables or tuple(fields)
    dims = dims_of[names[0]]
    if len(dims) < 3:
        rule = "not those of images, rows and columns; fields that all images share are data.static"
        raise ValueError(f"variable {names[0]!r} has the dimensions {dims}, {rule}")
    samples = SAMPLES if SAMPLES in dims else dims[0]
    y, x = [dim for dim in dims if dim != samples][-2:]
    for name in names:
        if missing := [dim for dim in (samples, y, x) if dim not in dims_of[name]]:
            raise ValueError(f"variable {name!r} has no dimension {missing[0]!r}, as {names[0]!r} has; leave it out")
    if not dataset.sizes[samples]:
        raise ValueError(f"dimension {samples!r} has no entry; give a file with at least one")
    return Grid(dataset, names, samples, (y, x))


def numbers_of(grid: Grid, name: str) -> Shaped[np.ndarray, "n"]:
    """A number of each image: the variable or coordinate of this name. Raises ValueError if there is none."""
    known = [str(each) for each, found in grid.dataset.variables.items() if found.dims == (grid.samples,)]
    require_known(f"data.vector_columns with the dimension {grid.samples!r}", name, known)
    return grid.dataset[name].values


def stamp_of(path: Path) -> list:
    """A signature of a file (`stamp`), or of all files of a store: its path, size in bytes, and a hash of theirs."""
    if not path.is_dir():
        return stamp(path)
    files = sorted(Path(root, name) for root, _, names in os.walk(path) for name in names)
    stamps = [stamp(file) for file in files]
    size = sum(each[1] for each in stamps if len(each) > 1)
    return [os.path.realpath(path), size, hashlib.sha256(json.dumps(stamps).encode()).hexdigest()]
