"""Training a U-Net to predict an image from its condition: the mean, to which a diffusion model adds the residual."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from diffusion.denoiser import Images
from pipelines.regression import RegressionModel, regress
from tasks.inputs import PREDICTED, inputs_of, require_pixels
from training.data import ImageSet, open_validation
from training.processes import gather, on_main, process_state
from training.random import GlobalRandom, seeded
from training.run import Run
from training.settings import variants
from training.task import Batch, Evaluation, EvaluationContext, Figure, Task
from unet import UNet, UNetConfig

AXIS = "error of the prediction (standardised values)"
_DERIVED = (
    *("model.in_channels", "model.out_channels", "model.size", "model.classes", "model.null_label"),
    *("model.augment_channels", "model.learned_variance", "model.logvar_channels"),
)


class RegressionTask(Task[Batch]):
    """Prediction as a task of the training loop."""

    def __init__(self, model: RegressionModel, evaluations: tuple[Evaluation, ...] = ()) -> None:
        super().__init__(model.net, evaluations)
        self.regression = model

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Float[Tensor, "b"]:
        """The mean squared error of each image; missing values have none."""
        return squared_error(self.regression, model, batch).mean(dim=(1, 2, 3))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the model folder of `model`, the averaged network."""
        assert isinstance(model, UNet), "the averaged model is a copy of self.model"
        replace(self.regression, net=model).save(folder)

    def example(self, image: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Conditions and times."""
        net = self.regression.net
        return image.new_zeros(len(image), net.config.in_channels, *net.config.size), image.new_zeros(len(image))


def squared_error(trained: RegressionModel, net: nn.Module, batch: Batch) -> Images:
    """The squared error of each value; 0 where it is missing."""
    target, fields = batch.image.tensor_split([trained.shape[0]], dim=1)
    beside, numbers = trained.training(trained.inputs.with_static(fields), batch.vector)
    error = regress(net, beside, numbers) - target
    if trained.inputs.seen is not None:
        error = error.where(~target.isnan(), 0)  # before the square, whose gradient would be NaN
    return error.square()


@dataclass(frozen=True)
class ErrorEvaluation(Evaluation):
    """Error of the prediction of held-out images."""

    model: RegressionModel
    """everything but the weights"""
    images: ImageSet
    every_images: int
    name: ClassVar[str] = "error"
    figures: ClassVar[Mapping[str, Figure]] = {"rmse": Figure(AXIS, best="lowest")}

    @property
    def conditions(self) -> dict[str, Any]:
        """The images."""
        return {"data": self.images.fingerprint}

    def run(self, model: nn.Module, context: EvaluationContext) -> dict[str, float] | None:
        """See `prediction_error`."""
        assert isinstance(model, UNet), "the averaged model is a copy of the trained one"
        return prediction_error(replace(self.model, net=model), self.images, context.interrupted)


def in_units_of(model: RegressionModel, stored: Shaped[Tensor, "b c h w"]) -> Images:
    """Stored images and conditions in the values of the network, whatever the statistics of their own set are."""
    target, condition = stored.tensor_split([model.shape[0]], dim=1)
    return torch.cat([model.pixel_format.to_unit(target), model.inputs.pixel_format.to_unit(condition)], dim=1)


@torch.no_grad()
def prediction_error(
    model: RegressionModel, images: ImageSet, interrupted: Callable[[], object] = lambda: False
) -> dict[str, float] | None:
    """The root of the mean squared error over all known values of the images, standardised or in [-1, 1].

    Call it on every process; all call `interrupted()` equally often. None if it was true.
    """
    state, sums = process_state(), list[tuple[float, int]]()
    for start in range(0, len(images), PREDICTED * state.num_processes):
        if interrupted():
            return None
        numbers = np.arange(start + state.process_index, len(images), state.num_processes)[:PREDICTED]
        if not len(numbers):
            continue
        stored = np.empty((len(numbers), *images.shape), images.pixel_format.stored)
        images.read(numbers, stored)
        image = in_units_of(model, torch.from_numpy(stored).to(state.device))
        vector = None if images.vectors is None else torch.from_numpy(images.vectors[numbers]).to(state.device)
        error = squared_error(model, model.net, Batch(image, None, vector=vector))
        known = (~image[:, : model.shape[0]].isnan()).sum()
        sums.append((float(error.double().sum()), int(known)))
    total, count = map(sum, zip(*gather(sums), strict=True))
    return {"rmse": (total / count) ** 0.5}


@dataclass(frozen=True, kw_only=True)
class RegressionRun(Run[RegressionTask]):
    """Trains a U-Net to predict an image from its condition, by the mean squared error."""

    model: UNetConfig = variants({"unet": UNetConfig}, "unet")

    derived: ClassVar[dict[str, str]] = dict.fromkeys(_DERIVED, "it follows from the images; see data.condition")

    def __post_init__(self) -> None:
        require_pixels(self.data.autoencoder)
        if self.model.time_embedding == "log_fourier":
            raise ValueError(
                "model.time_embedding=log_fourier takes the logarithm of the time, which is 0 for a regression; give "
                "fourier"
            )

    def outline(self) -> UNet:
        """The network on the meta device, as far as it is known without the images."""
        side = 2 * self.model.skeleton.stride
        with torch.device("meta"):
            return UNet(replace(self.model, size=(side, side)))

    def build(self, images: ImageSet) -> RegressionTask:
        """The task, with its freshly initialised network. Raises ValueError if run and images do not fit together."""
        channels, size = images.shape[0] - images.conditions, images.shape[1:]
        inputs = inputs_of(images, self.data.missing)
        if inputs is None or not inputs.channels:
            raise ValueError(
                f"images of {self.data.source} have no condition from which they could be predicted; give "
                "data.condition"
            )
        if inputs.seen is not None:
            inputs = replace(inputs, seen=inputs.seen[:0])
        if reason := self.model.size_error(*size):
            raise ValueError(f"images of {self.data.source}: {reason}")
        config = replace(
            self.model,
            in_channels=inputs.count(0),
            out_channels=channels,
            size=size,
            augment_channels=None if inputs.numbers is None else inputs.numbers.width,
        )
        with seeded(self.train.seed, "model"):
            net = UNet(config)
        model = RegressionModel(net, images.pixel_format.channels(0, channels), inputs)
        held_out = open_validation(self.data, on_main=on_main)
        if held_out is None:
            return RegressionTask(model)
        return RegressionTask(model, (ErrorEvaluation(model, held_out, self.train.eval_every_images),))
