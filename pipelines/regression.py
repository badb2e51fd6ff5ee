"""A trained regression model: the expected image for a condition, by a U-Net without noise.

The folder holds config.json and model.safetensors, which are the network's own, regression.json, and the fields of the
inputs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.denoiser import Condition, run_network
from pictures.units import AnyFormat
from pipelines.folder import check_finite, find_model, read_format, replace_weights
from pipelines.inputs import Inputs, read_inputs
from residual.names import shorten
from residual.weights.config import read_json, require_version
from unet import EDM2UNet, UNet, from_pretrained

FORMAT_VERSION = 1
DESCRIPTION_FILE = "regression.json"


@dataclass(frozen=True)
class RegressionModel:
    """A U-Net that predicts an image from a condition, at the constant time 0."""

    net: UNet | EDM2UNet
    pixel_format: AnyFormat
    """of the images that it predicts"""
    inputs: Inputs
    images_seen: int | None = None
    """images seen in training, where that is known"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of its images."""
        return (self.net.config.out_channels, *self.net.config.size)

    def predict(
        self,
        image: Float[Tensor, "b k h w"] | None,
        vector: Sequence[Sequence[float]] | None,
        count: int,
        size: tuple[int, int],
        device: torch.device | str,
    ) -> Float[Tensor, "b c h w"]:
        """The expected images for `count` conditions, in the values of the network.

        `image` and `vector` are as in `DiffusionModel.denoising`, `size` is the height and width of the images. Raises
        ValueError if they do not fit, and for numbers that are missing.
        """
        if vector is None and self.inputs.numbers is not None:
            names = shorten(self.inputs.numbers.names)
            raise ValueError(f"vector is missing: the regression needs {names} of each image; give them")
        beside = self.inputs.image(image, (count, 0, *size), device)
        with torch.no_grad():
            return self(beside, self.inputs.label(vector, count, device))

    def training(
        self, fields: Float[Tensor, "b d h w"], vector: Float[Tensor, "b v"] | None
    ) -> tuple[Tensor | None, Float[Tensor, "b n"] | None]:
        """The arguments of `regress` for training images: `fields` are their condition and the static fields, behind
        which there may be others."""
        static = 0 if self.inputs.static is None else len(self.inputs.static)
        _, _, beside = self.inputs.split(fields[:, : self.inputs.channels + static], 0)
        numbers = None if self.inputs.numbers is None or vector is None else self.inputs.numbers.label(vector)
        return beside, numbers

    def __call__(self, beside: Tensor | None, numbers: Float[Tensor, "b n"] | None) -> Float[Tensor, "b c h w"]:
        """See `regress`; in the dtype of the network's weights."""
        return regress(self.net, beside, numbers, next(self.net.parameters()).dtype)

    def save(self, folder: Path) -> None:
        """Writes the model folder."""
        self.net.save_pretrained(folder)
        self.inputs.save(folder)
        document = {
            "format_version": FORMAT_VERSION,
            "pixel_format": asdict(self.pixel_format),
            "inputs": self.inputs.document(),
        }
        (folder / DESCRIPTION_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def regress(
    net: Callable[..., Tensor],
    beside: Tensor | None,
    numbers: Float[Tensor, "b n"] | None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "b c h w"]:
    """The float32 output of a network without noise, for the image that would be concatenated to a noisy one.

    `dtype` is that of the network's input; None: of the image.
    """
    assert beside is not None, "a regression has a condition"
    time = torch.zeros(len(beside), device=beside.device)
    return run_network(net, beside[:, :0], time, Condition(image=beside, numbers=numbers), dtype).float()


def load_regression(path: str | Path, weights: Mapping[str, Tensor] | None = None) -> RegressionModel:
    """The model of a run folder (its newest) or of a model folder, on the CPU, in float32 and in eval mode.

    `weights` replace those of the network, such as by another average of its run. Raises ValueError, with the reason,
    if there is none, if it is incomplete, and for weights that do not fit.
    """
    folder, images_seen = find_model(path, DESCRIPTION_FILE)
    document = read_json(folder / DESCRIPTION_FILE)
    try:
        require_version(document["format_version"], FORMAT_VERSION)
        pixel_format, inputs = read_format(document), read_inputs(document, folder)
        if inputs is None:
            raise ValueError("it has no inputs, but a regression has a condition")
    except KeyError as error:
        raise ValueError(f"{folder / DESCRIPTION_FILE} has no {error}; it is incomplete") from None
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION_FILE} cannot be used: {error}") from None
    net = from_pretrained(folder).float()
    if weights is not None:
        replace_weights(net, weights)
    check_finite(net, folder)
    if net.config.in_channels != inputs.count(0):
        raise ValueError(f"{folder}: the network takes {net.config.in_channels} channels, not {inputs.count(0)}")
    return RegressionModel(net, pixel_format, inputs, images_seen)


@dataclass(frozen=True)
class Base:
    """A regression whose residual a diffusion model draws: an image is the prediction plus `std` times a sample."""

    model: RegressionModel
    std: tuple[float, ...]
    """standard deviation of the residual per channel, in the values of the network"""

    def residual(
        self, x0: Float[Tensor, "b c h w"], fields: Float[Tensor, "b d h w"], vector: Float[Tensor, "b v"] | None
    ) -> Float[Tensor, "b c h w"]:
        """The scaled residual of training images; `fields` are as in `RegressionModel.training`."""
        with torch.no_grad():
            return (x0 - self.model(*self.model.training(fields, vector))) / self._scale(x0.device)

    def added(self, mean: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The images of drawn residuals, given the predictions."""
        return mean + self._scale(x.device) * x

    def _scale(self, device: torch.device) -> Float[Tensor, "c 1 1"]:
        return torch.tensor(self.std, device=device)[:, None, None]
