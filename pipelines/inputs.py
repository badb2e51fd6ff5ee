"""What a denoising network takes besides the noisy image, its time and its label: fields, masks and numbers."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pictures.pixel_format import BYTES
from pictures.units import AnyFormat, Units
from pipelines.folder import read_format
from residual.names import amount, shorten
from residual.weights.config import read_config
from storage.read import is_regular

FILE = "inputs.safetensors"
"""the fields of a model folder that are the same for every image"""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers that each image comes with: their names, and the mean and deviation that standardise them.

    Raises ValueError for lists of different lengths, and for a deviation that is not positive.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (self.names and len(self.names) == len(self.mean) == len(self.std)):
            raise ValueError(f"names={self.names}, mean={self.mean}, std={self.std} differ in length; give one of each")
        if not all(0 < std < math.inf for std in self.std):
            raise ValueError(f"std={self.std} has a deviation that is not positive; leave constant columns out")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean={self.mean} has a number that is not finite; give that of the training images")

    @property
    def width(self) -> int:
        """How many numbers the network receives."""
        return len(self.names) + 1

    def label(self, values: Float[Tensor, "b v"]) -> Float[Tensor, "b w"]:
        """What the network receives: the standardised numbers, and 1 for their presence. All are 0 where numbers are
        hidden."""
        values = values.float()
        mean, std = (values.new_tensor(each) for each in (self.mean, self.std))
        return torch.cat([(values - mean) / std, torch.ones_like(values[:, :1])], dim=1)


@dataclass(frozen=True, kw_only=True)
class _Plain:
    channels: int
    whole: tuple[int, int] | None
    periodic_width: bool


@dataclass(frozen=True, eq=False)
class Inputs:
    """The image that is concatenated to the noisy one, and the numbers that are added to the features of the time.

    The image is, in this order: a condition, fields that are the same for every image, and, with missing values, the
    masks of what is known of the image and of its condition (1: known, 0: missing).
    """

    channels: int = 0
    """channels of the condition"""
    pixel_format: AnyFormat = BYTES
    """how stored values of the condition become those of the network"""
    static: Float[Tensor, "k h w"] | None = None
    """fields that are the same for every image, standardised"""
    seen: Bool[Tensor, "c h w"] | None = None
    """where the training images ever had a value; None: their values were never missing"""
    numbers: Numbers | None = None
    """the numbers of each image; None: it has none"""
    whole: tuple[int, int] | None = None
    """height and width of the training images, if the network takes patches of them, with fields or conditions"""
    periodic_width: bool = False
    """whether patches go on across the left and right border of these images"""

    @property
    def has_fields(self) -> bool:
        """Whether it has fields, which have the size of the training images."""
        return self.static is not None or self.seen is not None

    def count(self, channels: int) -> int:
        """Input channels besides those of a noisy image with so many channels."""
        masks = 0 if self.seen is None else channels + self.channels
        return self.channels + (0 if self.static is None else len(self.static)) + masks

    def split(
        self, image: Float[Tensor, "b d h w"], channels: int
    ) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b c h w"] | None, Tensor | None]:
        """The first `channels` of training images, with 0 for missing values; the mask of what is known, if values may
        be missing; and the image that is concatenated, from the other channels."""
        x0, fields = image.tensor_split([channels], dim=1)
        if self.seen is None:
            return x0, None, self.beside(fields, None)
        known = ~x0.isnan()
        return x0.nan_to_num(nan=0.0), known, self.beside(fields, known)

    def beside(self, fields: Float[Tensor, "b d h w"], known: Bool[Tensor, "b c h w"] | None) -> Tensor | None:
        """The image that is concatenated: `fields` are the condition, which may have NaN, and then the static fields;
        `known` is the mask of the image itself, if values may be missing. None if there is nothing to concatenate."""
        if known is not None:
            masks = known, ~fields[:, : self.channels].isnan()
            fields = torch.cat([fields.nan_to_num(nan=0.0), *(mask.to(fields.dtype) for mask in masks)], dim=1)
        return fields if fields.shape[1] else None

    def image(
        self, condition: Float[Tensor, "b k h w"] | None, shape: Sequence[int], device: torch.device | str
    ) -> Tensor | None:
        """As `beside`, for images of `shape` (b, c, h, w) that are to be drawn wherever training images had values.

        `condition` has the values of the network. Raises ValueError if it is missing, or does not fit.
        """
        count, channels, height, width = shape
        wanted = (count, self.channels, height, width)
        if condition is None:
            if self.channels:
                raise ValueError(
                    f"this model needs a condition of {amount(self.channels, 'channel')} for each image; give image"
                )
            condition = torch.zeros(wanted)
        if not self.channels and condition.shape[1]:
            raise ValueError("this model takes no condition; leave image out")
        if condition.shape != wanted:
            raise ValueError(f"image has the shape {tuple(condition.shape)}, but the conditions of {wanted} are needed")
        if self.seen is None and condition.isnan().any():
            raise ValueError("image has NaN, but this model was trained without missing values; give other conditions")
        known = None if self.seen is None else self.seen.to(device).expand(count, channels, height, width)
        return self.beside(self.with_static(condition.to(device)), known)

    def with_static(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Images with the static fields behind their channels."""
        if self.static is None:
            return image
        static = self.static.to(image.device, image.dtype).expand(len(image), -1, -1, -1)
        return torch.cat([image, static], dim=1)

    def label(
        self, values: Sequence[Sequence[float]] | None, count: int, device: torch.device | str
    ) -> Float[Tensor, "b w"] | None:
        """The numbers of `count` images as the network takes them. Without `values` they are hidden.

        Raises ValueError for values of another shape, and for those that the model does not take.
        """
        if self.numbers is None:
            if values is not None:
                raise ValueError("this model takes no numbers (vector); leave them out")
            return None
        if values is None:
            return torch.zeros(count, self.numbers.width, device=device)
        given = torch.tensor(values, dtype=torch.float64)
        if given.shape != (count, len(self.numbers.names)):
            raise ValueError(
                f"vector has the shape {tuple(given.shape)}; give {shorten(self.numbers.names)} of each of "
                f"{amount(count, 'image')}"
            )
        return self.numbers.label(given).to(device)

    def document(self) -> dict[str, Any]:
        """The plain values of a model folder, with a hash of its fields."""
        return {
            "channels": self.channels,
            "pixel_format": asdict(self.pixel_format),
            "missing": self.seen is not None,
            "numbers": None if self.numbers is None else asdict(self.numbers),
            "whole": self.whole,
            "periodic_width": self.periodic_width,
            "fields_sha256": {name: _sha256(values) for name, values in self._fields().items()},
        }

    def save(self, folder: Path) -> None:
        """Writes the fields into a model folder."""
        if fields := self._fields():
            save_file(fields, folder / FILE)

    def _fields(self) -> dict[str, Tensor]:
        fields = {"static": self.static, "seen": self.seen}
        return {name: values.contiguous().cpu() for name, values in fields.items() if values is not None}


def standardised(fields: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
    """Fields with mean 0 and standard deviation 1 each, as float32."""
    fields = fields.double()
    mean, std = fields.mean(dim=(1, 2), keepdim=True), fields.std(dim=(1, 2), keepdim=True, correction=0)
    return ((fields - mean) / std).float()


def positions(height: int, width: int, periodic_width: bool = False) -> Float[Tensor, "k h w"]:
    """The place of each pixel as fields: y and x from -1 to 1; of a periodic width, sine and cosine of the angle in
    place of x."""
    y, x = ((2 * torch.arange(side) + 1) / side - 1 for side in (height, width))
    across = [(math.pi * x).sin(), (math.pi * x).cos()] if periodic_width else [x]
    return torch.stack([y[:, None].expand(height, width), *(each.expand(height, width) for each in across)])


def numbers_of(names: Sequence[str], values: Float32[np.ndarray, "n v"]) -> Numbers:
    """The numbers of training images, with their means and deviations."""
    values = values.astype(np.float64)
    return Numbers(names=tuple(names), mean=tuple(values.mean(0).tolist()), std=tuple(values.std(0).tolist()))


def read_inputs(document: Mapping[str, Any], folder: Path) -> Inputs | None:
    """The inputs in a file diffusion.json, with the fields in its folder; None if there are none.

    Raises ValueError for what is incomplete, unknown or damaged.
    """
    found = document.get("inputs")
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ValueError(f"inputs={found!r} should be an object")
    try:
        hashes = found["fields_sha256"]
        fields = _read_fields(folder / FILE) if hashes and is_regular(folder / FILE) else {}
        if {name: _sha256(values) for name, values in fields.items()} != hashes:
            raise ValueError(f"{folder / FILE} is missing, or its fields are not those of the model; copy it again")
        numbers = None if found["numbers"] is None else read_config(Numbers, found["numbers"])
        static, seen = fields.get("static"), fields.get("seen")
        plain = read_config(_Plain, {name: found[name] for name in ("channels", "whole", "periodic_width")})
        if isinstance(units := read_format(found), Units) and len(units.mean) != plain.channels:
            raise ValueError(f"pixel_format has {len(units.mean)} channels, but inputs have {plain.channels}")
        return Inputs(pixel_format=units, static=static, seen=seen, numbers=numbers, **asdict(plain))
    except KeyError as error:
        raise ValueError(f"inputs have no {error}; they are incomplete") from None


def _read_fields(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}); copy it again") from None


def _sha256(values: Tensor) -> str:
    return hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).hexdigest()
