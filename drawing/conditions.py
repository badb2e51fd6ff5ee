"""The conditions that images are drawn under: those of --condition, several members for each, and --vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drawing.given import open_option, require_units, shape_settings, split_column
from pipelines.diffusion import DiffusionModel
from residual.names import amount, require_known, shorten
from training.data import Images
from training.data.decode import enlarge
from training.data.sources.grids import SUFFIXES
from training.data.sources.source import holds_arrays, image_columns


@dataclass(frozen=True)
class Conditions:
    """A condition per column of a series: `members` columns in a row have the same one. And numbers for all images."""

    images: Images | None = None
    size: tuple[int, int] = (1, 1)
    """height and width of the images that are drawn, to which coarser conditions are interpolated"""
    members: int = 1
    vector: tuple[float, ...] | None = None

    @property
    def count(self) -> int | None:
        """The number of columns that have different conditions or noise; None without conditions."""
        return None if self.images is None else len(self.images) * self.members

    def number(self, column: int) -> int:
        """The condition of a column; the first one follows the last one."""
        assert self.images is not None, "the caller checks it"
        return column // self.members % len(self.images)

    def options(self, columns: Sequence[int]) -> dict[str, Any]:
        """`image` and `vector` of `DiffusionModel.denoising` for these columns."""
        options: dict[str, Any] = {}
        if self.images is not None:
            stored = self.images.read(np.array([self.number(column) for column in columns]))
            enlarged = np.stack([enlarge(each, self.size) for each in stored])
            options["image"] = self.images.pixel_format.to_unit(torch.from_numpy(enlarged))
        if self.vector is not None:
            options["vector"] = [self.vector] * len(columns)
        return options


def open_conditions(
    source: str | None, members: int, vector: Sequence[str] | None, model: DiffusionModel
) -> Conditions:
    """What --condition, --members and --vector give. Raises ValueError for what the model does not take or lacks."""
    channels = 0 if model.inputs is None else model.inputs.channels
    if source is None:
        if channels:
            raise ValueError(
                f"condition is missing: this model draws images for a condition of {amount(channels, 'channel')}; give "
                "--condition FILES"
            )
        return Conditions(vector=_vector(vector, model))
    if not channels:
        raise ValueError(f"condition={source}: this model takes no condition; leave it out")
    return Conditions(_open(source, model), model.shape[1:], members, _vector(vector, model))


def _open(source: str, model: DiffusionModel) -> Images:
    """The conditions in the format of the training; arrays may be coarser than the images of the model."""
    inputs, (_, height, width) = model.inputs, model.shape
    assert inputs is not None, "the caller checks it"
    settings: dict[str, Any] = {"missing": inputs.seen is not None}
    _require_kind(source, inputs.pixel_format.file)
    if inputs.pixel_format.file == "png":
        settings = shape_settings((inputs.channels, height, width))
    if model.coordinates is not None and Path(source).suffix.lower() in SUFFIXES:
        names = model.coordinates.channels[model.shape[0] :]  # such as "t2m level=500"
        settings["variables"] = tuple(dict.fromkeys(name.partition(" ")[0] for name in names))
    images = open_option("condition", source, inputs.pixel_format, max_bad=0, **settings)
    channels, rows, columns = images.shape
    if channels != inputs.channels or rows > height or columns > width:
        raise ValueError(
            f"condition {source!r}: images of shape {images.shape}, but the model takes {inputs.channels} channels of "
            f"at most {height} x {width} (height x width); give others"
        )
    require_units("condition", source, images, images.pixel_format)
    return images


def _require_kind(source: str, file: str) -> None:
    """Raises ValueError for pictures in the place of arrays, arrays in that of pictures, and a table or .npz file in
    which several columns or arrays may be the conditions, if none is named."""
    path, column = split_column(source)
    try:
        arrays, columns = holds_arrays(path), image_columns(path) if column is None else []
    except ValueError as error:
        raise ValueError(f"condition {source!r}: {error}") from None
    if arrays != (file == "npy"):
        found, wanted = ("arrays", "pictures") if arrays else ("pictures", "arrays (.npy)")
        raise ValueError(f"condition {source!r} has {found}, but the model was trained with {wanted}; give such files")
    if len(columns) > 1:
        raise ValueError(f"condition {source!r} has the images {shorten(columns)}; add the name of one: {source}:NAME")


def _vector(words: Sequence[str] | None, model: DiffusionModel) -> tuple[float, ...] | None:
    """The numbers in words such as strain=0.3, in the order of the model. Raises ValueError for others."""
    numbers = None if model.inputs is None else model.inputs.numbers
    if words is None:
        if numbers is not None and (model.base is not None or not model.null_label):
            raise ValueError(
                f"vector is missing: this model was not trained without {shorten(numbers.names)}; give --vector "
                f"{' '.join(f'{name}=VALUE' for name in numbers.names[:3])}"
            )
        return None
    if numbers is None:
        raise ValueError(f"vector={' '.join(words)}: this model takes no numbers; leave it out")
    found = dict[str, float]()
    for word in words:
        name, _, text = word.partition("=")
        require_known("vector", name, numbers.names)
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not abs(value) <= float(np.finfo(np.float32).max):
            raise ValueError(f"vector {word!r}: {text!r} is not a finite number of float32; give {name}=VALUE")
        if name in found:
            raise ValueError(f"vector {name} is given twice; give it once")
        found[name] = value
    if missing := [name for name in numbers.names if name not in found]:
        raise ValueError(f"vector lacks {shorten(missing)}; give all of {shorten(numbers.names)}")
    return tuple(found[name] for name in numbers.names)
