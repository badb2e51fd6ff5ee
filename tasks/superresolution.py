"""Training EDSR to enlarge pictures (Lim et al. 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pictures.pixel_format import BYTES
from pipelines.superresolution import EDSRUpscaler, shrunk
from residual.names import amount
from resnet import EDSR, EDSRConfig, build, list_models, model_info
from tasks.augment import random_crop, random_turn
from tasks.enlargement import EnlargementEvaluation, check_measurable
from tasks.inputs import require_pixels, require_plain
from training.data import ImageSet, open_validation
from training.processes import on_main
from training.random import GlobalRandom, seeded
from training.run import Run
from training.settings import variants
from training.task import Batch, Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig:
    """The parts of images that are trained on. The small image is made of them by Pillow's bicubic filter."""

    patch_px: int = 96
    """side of the square that is cut from an image at a random place, in pixels of the large image; a multiple of
    model.scale"""
    turn: bool = True
    """mirror, turn upside down and transpose each square with probability 1/2"""

    def __post_init__(self) -> None:
        if self.patch_px < 1:
            raise ValueError(f"patch_px={self.patch_px} is out of range; give at least 1")


class SuperResolutionTask(Task[Batch]):
    """Super-resolution as a task of the training loop."""

    def __init__(
        self, upscaler: EDSRUpscaler, config: SuperResolutionConfig, evaluations: tuple[Evaluation, ...] = ()
    ) -> None:
        super().__init__(upscaler.net, evaluations)
        self.upscaler, self.config = upscaler, config

    def prepare(self, batch: Batch, random: GlobalRandom) -> Batch:
        """A random part of each image, in a random orientation if so configured."""
        image = random_crop(batch.image, random, (self.config.patch_px, self.config.patch_px))
        return Batch(random_turn(image, random) if self.config.turn else image, batch.label)

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Float[Tensor, "b"]:
        """The mean absolute error of each enlarged image, whose values are in [-1, 1] (Lim et al. 2017, section 3)."""
        levels = 127.5 * (shrunk(batch.image, self.upscaler.scale) + 1)
        return (model(levels).float() / 127.5 - 1 - batch.image).abs().mean(dim=(1, 2, 3))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the model folder of `model`, the averaged network."""
        self.upscaler.with_network(model).save(folder)

    def example(self, image: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Small images of the parts that are trained on."""
        side = self.config.patch_px // self.upscaler.scale
        return (image.new_zeros(len(image), self.upscaler.channels, side, side),)


def _presets() -> Mapping[str, Any]:
    """The published networks, by name."""
    configs = ((name, model_info(name).config) for name in list_models("edsr*"))
    return {name: config for name, config in configs if isinstance(config, EDSRConfig)}


@dataclass(frozen=True, kw_only=True)
class SuperResolutionRun(Run[SuperResolutionTask]):
    """Trains EDSR to enlarge pictures."""

    model: EDSRConfig = variants({"edsr": EDSRConfig}, "edsr", presets=_presets)
    superresolution: SuperResolutionConfig = field(default_factory=SuperResolutionConfig)

    derived: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        require_pixels(self.data.autoencoder)
        if (side := self.superresolution.patch_px) % self.model.scale:
            raise ValueError(
                f"superresolution.patch_px={side} is no multiple of model.scale={self.model.scale}; give "
                f"{side + -side % self.model.scale}"
            )

    def outline(self) -> EDSR:
        """The network on the meta device."""
        with torch.device("meta"):
            return build(self.model)

    def build(self, images: ImageSet) -> SuperResolutionTask:
        """The task, with its freshly initialised network. Raises ValueError if run and images do not fit together."""
        require_plain(images, self.data.missing)
        channels = amount(images.shape[0], "channel")
        if images.pixel_format != BYTES or images.shape[0] != 3:
            raise ValueError(
                f"images of {self.data.source} have {channels} of {images.pixel_format.dtype}, but EDSR "
                "enlarges 8-bit pictures in RGB; give pictures, with data.channels=3 and data.bits=8"
            )
        if min(images.shape[1:]) < (side := self.superresolution.patch_px):
            raise ValueError(
                f"images of {self.data.source} have {images.shape[1]} x {images.shape[2]} px, less than the parts of "
                f"superresolution.patch_px={side}; give smaller parts, or larger images"
            )
        with seeded(self.train.seed, "model"):
            upscaler = EDSRUpscaler(build(self.model))
        evaluations: tuple[Evaluation, ...] = ()
        interval = self.train.eval_every_images
        if (held_out := open_validation(self.data, on_main=on_main)) is not None:
            check_measurable(held_out, upscaler.channels, upscaler.scale)
            evaluations = (EnlargementEvaluation(upscaler.with_network, self.model.scale, held_out, interval),)
        return SuperResolutionTask(upscaler, self.superresolution, evaluations)
