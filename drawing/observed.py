"""The observations of --observe: their files, the operator and the noise, opened and checked against the model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from diffusion.posterior import Blur, Downsample, Observation, Operator
from drawing.given import open_option, split_column
from pictures.pixel_format import PixelFormat
from pictures.units import AnyFormat, Units
from pipelines.diffusion import DiffusionModel
from residual.block import Padding
from residual.names import amount, require_known
from training.data import Images
from training.data.sources.source import holds_arrays

OPERATORS: dict[str, tuple[type[int] | type[float], Callable[[Any, Padding], Operator]]] = {
    "blur": (float, Blur),
    "downsample": (int, lambda factor, borders: Downsample(factor)),
}
"""name of an operator, the type of its number, and what makes it from that and the borders of images"""
WIDEST = PixelFormat(dtype="float32", low=-1e38, high=1e38, file="npy")
"""the values that arrays of observations may have"""


@dataclass(frozen=True)
class Observations:
    """Observations in the units of the data, one per column of a series: `members` columns in a row have the same one.
    The first one follows the last one."""

    images: Images
    """NaN where nothing is known"""
    pixel_format: AnyFormat
    """that of the model"""
    size: tuple[int, int]
    """height and width of the images that are observed"""
    operators: tuple[Operator, ...]
    noise: Float[Tensor, "c 1 1"]
    """standard deviation, in the values of the network"""
    members: int = 1

    @property
    def count(self) -> int:
        """The number of columns that have different observations or noise."""
        return len(self.images) * self.members

    def of(self, columns: Sequence[int]) -> Observation:
        """What is known of the images in these columns."""
        stored = self.images.read(np.array(columns) // self.members % len(self.images))
        return Observation(self.pixel_format.to_unit(torch.from_numpy(stored)), self.noise, self.operators)

    def shown(self, columns: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """The observations as images of the model's size: grey, or the mean, where nothing is known."""
        return F.interpolate(self.of(columns).values.nan_to_num(nan=0.0), self.size)

    def misfit(self, column: int, values: Shaped[np.ndarray, "c h w"]) -> float:
        """The root mean square of the difference between the observation of a column and that of an image, in units of
        the noise: about 1 for the true image."""
        observation = self.of([column])
        unit = self.pixel_format.to_unit(torch.from_numpy(values.copy())[None])
        error = observation.error(unit.nan_to_num(nan=0.0))  # NaN where no training image had a value
        return error[~observation.values.isnan()].square().mean().sqrt().item()


def open_observations(
    source: str, words: Sequence[str], noise: Sequence[float], members: int, model: DiffusionModel
) -> Observations:
    """The observations that a command names, through the operators of `words`, with standard deviations of the noise.

    Raises ValueError if anything does not fit the model.
    """
    pixels, (channels, *size) = model.pixel_format, model.shape
    if model.base is not None:
        raise ValueError(f"observe {source!r}: this model draws the residual of a regression; give a model of images")
    if isinstance(pixels, Units) and (changed := set(pixels.transform) - {"none"}):
        raise ValueError(
            f"observe {source!r}: this model transforms values by {changed.pop()}, after which operators are not "
            "linear and noise is not normal; give a model without data.transform"
        )
    padding: Padding = getattr(model.net.config, "padding", "zeros")
    operators = tuple(read_operator(word, "reflect" if padding == "zeros" else padding) for word in words)
    height, width = size
    for word, operator in zip(words, operators, strict=True):
        try:
            height, width = operator.size(height, width)
        except ValueError as error:
            raise ValueError(f"operator={word}: {error}") from None
    if wrong := [value for value in noise if not 0 < value < math.inf]:
        raise ValueError(f"observe_noise={wrong[0]:g} is out of range; give a positive standard deviation")
    if len(noise) not in (1, channels):
        raise ValueError(
            f"observe_noise has {len(noise)} values, but images have {amount(channels, 'channel')}; give one for all, "
            "or one for each"
        )
    images = _open(source, model, (channels, height, width))
    scale = torch.tensor(pixels.std if isinstance(pixels, Units) else [(pixels.high - pixels.low) / 2])
    unit = (torch.tensor(noise) / scale).expand(channels)[:, None, None]
    return Observations(images, pixels, (size[0], size[1]), operators, unit, members)


def read_operator(word: str, borders: Padding) -> Operator:
    """An operator from its name and number, such as blur:1.5. Raises ValueError for anything else."""
    name, _, text = word.partition(":")
    kind, make = OPERATORS[require_known("operator", name, OPERATORS)]
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(f"operator={word} has no number; give one behind it, such as {name}:2") from None
    try:
        return make(number, borders)
    except ValueError as error:
        raise ValueError(f"operator={word}: {error}") from None


def _open(source: str, model: DiffusionModel, shape: tuple[int, int, int]) -> Images:
    """The observations in a source. Raises ValueError for those of another shape, and if one has no value."""
    pixels = model.pixel_format
    try:
        arrays = holds_arrays(split_column(source)[0])
    except ValueError as error:
        raise ValueError(f"observe {source!r}: {error}") from None
    if not arrays and pixels.file != "png":
        raise ValueError(f"observe {source!r}: pictures have no values of {pixels.about}; give arrays (.npy)")
    images = open_option("observe", source, WIDEST if arrays else pixels, max_bad=0, missing=arrays)
    if images.shape != shape:
        raise ValueError(
            f"observe {source!r}: observations of shape {images.shape}, but those of this model through the operator "
            f"are {shape}; give others, or another --operator"
        )
    for number in range(len(images)):
        if np.isnan(images.read(np.array([number]))).all():
            raise ValueError(f"observe {source!r}: number {number} has no value, all are NaN; leave it out")
    return images
