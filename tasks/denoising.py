"""Denoising as a task: its settings, its batches and its loss."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion import (
    DDPM,
    WEIGHTINGS,
    Condition,
    Stratified,
    VariationalBound,
    denoising_loss,
    drop_labels,
)
from pipelines.diffusion import MAX_SCALE, DiffusionModel, Network
from pipelines.superresolution import blurred, shrunk
from residual.magnitude import normalize_weights
from tasks.augment import random_crop, random_flip
from tasks.nonleaky import non_leaky
from training.output_folder import weights_sha256
from training.random import GlobalRandom
from training.task import Batch, Evaluation, Task
from unet import EDM2UNet


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The loss, for every objective."""

    label_dropout: float = 0.1
    """share of images whose label and numbers are hidden from the network, which guidance needs; 0: none, and no
    guidance"""
    weighting: Literal["output", "noise", "x0", "v", "min_snr", "sigmoid", "edm"] = "output"
    """whose squared error counts: that of the network's output, of the noise, of the clean image, or of v; or the
    weighting of Hang et al. 2023 (min_snr, at most 5), of Kingma and Gao 2023 (sigmoid), of Karras et al. 2022 (edm)"""
    stratified: bool = False
    """spread the noise levels of each batch evenly over their distribution, instead of drawing them independently"""
    upscale: int | None = None
    """train to enlarge images so many times: the network also takes the small image, made by the bicubic filter and
    enlarged linearly (Saharia et al. 2021, SR3). The evaluation enlarges the first sample.num images of
    data.validation. null: it draws from noise"""
    regression: str | None = None
    """a trained regression model (run folder or model folder): the network learns the residual of its prediction, to
    which samples are added (Mardani et al. 2023, CorrDiff). null: it learns the images"""

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout={self.label_dropout} is not a share; give at least 0 and below 1")
        if self.upscale is not None and not 2 <= self.upscale <= MAX_SCALE:
            raise ValueError(f"upscale={self.upscale} is no scale; give 2 to {MAX_SCALE}, or null")


@dataclass(frozen=True, kw_only=True)
class DiffusionAugment:
    """Random changes of training images."""

    crop_px: int | None = None
    """train on squares of this side in pixels, which are cut from the images at random places; null: on whole images"""
    crop_positions: Literal["plane", "periodic_width"] | None = None
    """with crop_px: further inputs with the place of each pixel in the whole image. `plane`: y and x from -1 to 1;
    `periodic_width`: y, and sine and cosine of the longitude, with squares that go on across the left and right border.
    The model then draws whole images, in windows of that side. null: no input has the place"""
    flip: bool = False
    """mirror each image left to right with probability 1/2"""
    non_leaky: float = 0.0
    """probability of each of EDM's augmentations (mirror, scale, rotate, stretch, shift), which are also an input of
    the network, so that samples do not show them (Karras et al. 2022: 0.12 for CIFAR-10, 0.15 for faces). 0: none"""

    def __post_init__(self) -> None:
        if self.crop_px is not None and self.crop_px < 1:
            raise ValueError(f"augment.crop_px={self.crop_px} is out of range; give at least 1, or null")
        if self.crop_positions is not None and self.crop_px is None:
            raise ValueError(
                f"augment.crop_positions={self.crop_positions} is the place of squares; give augment.crop_px, too"
            )
        if self.crop_positions is not None and (self.flip or self.non_leaky > 0):
            name = "flip=true" if self.flip else f"non_leaky={self.non_leaky}"
            raise ValueError(
                f"augment.{name} moves what is at a place, which augment.crop_positions={self.crop_positions} gives "
                "to the network; leave one of them out"
            )
        if not 0 <= self.non_leaky <= 1:
            raise ValueError(f"augment.non_leaky={self.non_leaky} is not a probability; give 0 to 1")
        if self.non_leaky > 0 and self.flip:
            raise ValueError(
                f"augment.flip=true, but augment.non_leaky={self.non_leaky} mirrors images, too; drop one of them"
            )


@dataclass(frozen=True)
class DiffusionBatch(Batch):
    """Augmented images."""

    augment: Float[Tensor, "b 9"] | None = None
    """how each image was changed, if the augmentation is non-leaky: an input of the network"""


class DiffusionTask(Task[DiffusionBatch]):
    """Denoising as a task of the training loop."""

    def __init__(
        self,
        model: DiffusionModel,
        config: DiffusionConfig,
        augment: DiffusionAugment,
        evaluations: tuple[Evaluation, ...] = (),
    ) -> None:
        super().__init__(model.net, evaluations)
        self.diffusion, self.config, self.augment = model, config, augment
        self.shape = (model.shape[0], *model.net.config.size)
        """of the images that are trained on, which may be patches of those that the model draws"""
        self.foundation = "" if model.base is None else weights_sha256(model.base.model.net)
        self.bound = None
        if model.net.config.learned_variance:
            assert isinstance(model.formulation, DDPM), "DiffusionRun checks it"
            self.bound = VariationalBound(model.formulation, model.pixel_format.spacing)

    def prepare(self, batch: Batch, random: GlobalRandom) -> DiffusionBatch:
        """The batch with the static fields behind the channels of its images, which are cropped, flipped or changed by
        EDM's augmentations together. Of images with a regression it has the residual, as that predicts whole images."""
        image, label = batch.image, None
        if self.diffusion.inputs is not None:
            image = self.diffusion.inputs.with_static(image)
        if self.diffusion.base is not None:
            x0, fields = image.tensor_split([self.shape[0]], dim=1)
            image = torch.cat([self.diffusion.base.residual(x0, fields, batch.vector), fields], dim=1)
        if (side := self.augment.crop_px) is not None:
            is_periodic = self.augment.crop_positions == "periodic_width"
            image = random_crop(image, random, (side, side), is_periodic)
        if self.augment.flip:
            image = random_flip(image, random)
        if self.augment.non_leaky > 0:
            image, label = non_leaky(image, random, self.augment.non_leaky)
        return DiffusionBatch(image, batch.label, label, vector=batch.vector)

    def loss(self, model: nn.Module, batch: DiffusionBatch, random: GlobalRandom) -> Float[Tensor, "b"]:
        """The denoising loss of each image at a random noise level; some labels and numbers are dropped."""
        trained, x0, known, image, numbers, label = self.diffusion, batch.image, None, None, None, None
        if trained.inputs is not None:
            x0, known, image = trained.inputs.split(x0, self.shape[0])
            if trained.inputs.numbers is not None and batch.vector is not None:
                numbers = trained.inputs.numbers.label(batch.vector)
        source = Stratified(random.stratified) if self.config.stratified else random
        time, noise = trained.formulation.draw_time(source), random.normal(*self.shape)
        if trained.classes is not None or numbers is not None:
            uniform, share = random.uniform(), self.config.label_dropout
            if trained.classes is not None:
                assert batch.label is not None, "the images were checked when the task was built"
                label = drop_labels(batch.label, uniform, share, null=len(trained.classes))
            if numbers is not None:
                numbers = numbers * (uniform >= share)[:, None]
        net = model if trained.net.config.logvar_channels is None else partial(model, return_logvar=True)
        if trained.upscale is not None:
            image = blurred(shrunk(x0, trained.upscale), trained.upscale)
        condition = Condition(label=label, image=image, augment=batch.augment, numbers=numbers)
        weighting = WEIGHTINGS[self.config.weighting]
        return denoising_loss(net, trained.formulation, x0, noise, time, condition, weighting, self.bound, known)

    def after_update(self, model: nn.Module) -> None:
        """Weights of EDM2's network go back to unit magnitude, unless they are frozen (Karras et al. 2024, eq. 66)."""
        if isinstance(model, EDM2UNet):
            normalize_weights(model)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the model folder of `model`, the averaged network."""
        assert isinstance(model, Network), "the averaged model is a copy of self.model"
        replace(self.diffusion, net=model).save(folder)

    def example(self, image: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Noisy images, noise levels and (if the network takes them) labels."""
        c_noise = torch.zeros(len(image), device=image.device)
        image = image.new_zeros(len(image), self.diffusion.net.config.in_channels, *self.shape[1:])
        return (image, c_noise) if self.diffusion.classes is None else (image, c_noise, c_noise.long())
