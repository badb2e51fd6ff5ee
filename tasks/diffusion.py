"""Training a U-Net to denoise (Ho et al. 2020)."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion import Schedule, drop_labels, squared_error
from diffusion.sampler import check
from pipelines.diffusion import DiffusionModel, describe
from pipelines.pictures import hidden_note
from tasks.augment import random_flip
from tasks.grid_evaluation import GridEvaluation, SampleConfig
from tasks.nonleaky import non_leaky
from tasks.start import read_start, start_config
from training.data import ImageSet
from training.random import GlobalRandom, seeded
from training.run import Run
from training.settings import section
from training.task import Batch, Evaluation, Task
from unet import UNet, UNetConfig, list_presets, preset


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What the network learns: how images are noised, and what of that it predicts."""

    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """how the noise grows with the timestep: linear (Ho et al. 2020), scaled_linear (Rombach et al. 2022), cosine
    (Nichol and Dhariwal 2021)"""
    timesteps: int = 1000
    """number of noise levels"""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """noise added by each step of the DDPM sampler: beta (large) or the posterior's (small)"""
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """what the network answers: the noise, the clean image, or their mixture v (Salimans and Ho 2022)"""
    label_dropout: float = 0.1
    """share of images that are shown without their label, which guidance needs; 0: none, and no guidance"""

    def __post_init__(self) -> None:
        _ = self.noise
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout={self.label_dropout} is not a share; give at least 0 and below 1")

    @property
    def noise(self) -> Schedule:
        """The noise schedule that the fields describe."""
        return Schedule(name=self.schedule, timesteps=self.timesteps, variance=self.variance)


@dataclass(frozen=True, kw_only=True)
class DiffusionAugment:
    """Random changes of training images."""

    flip: bool = False
    """mirror each image left to right with probability 1/2"""
    non_leaky: float = 0.0
    """probability of each of EDM's augmentations (mirror, scale, rotate, stretch, shift), which are also an input of
    the network, so that samples do not show them (Karras et al. 2022: 0.12 for CIFAR-10, 0.15 for faces). 0: none"""

    def __post_init__(self) -> None:
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
        label_dropout: float,
        augment: DiffusionAugment,
        evaluations: tuple[Evaluation, ...] = (),
    ) -> None:
        self.diffusion, self.label_dropout, self.augment, self.evaluations = model, label_dropout, augment, evaluations
        self.model = model.net

    def prepare(self, batch: Batch, random: GlobalRandom) -> DiffusionBatch:
        """The batch with its images flipped or changed by EDM's augmentations."""
        image, label = batch.image, None
        if self.augment.flip:
            image = random_flip(image, random)
        if self.augment.non_leaky > 0:
            image, label = non_leaky(image, random, self.augment.non_leaky)
        return DiffusionBatch(image, batch.label, label)

    def loss(self, model: nn.Module, batch: DiffusionBatch, random: GlobalRandom) -> Float[Tensor, "b"]:
        """Squared error of each image's prediction at a random timestep; some labels are dropped."""
        about, label = self.diffusion, None
        t, noise = random.integers(about.schedule.timesteps), random.normal(*about.shape)
        if about.classes is not None:
            assert batch.label is not None, "the images were checked when the task was built"
            label = drop_labels(batch.label, random.uniform(), self.label_dropout, null=len(about.classes))
        net = model if batch.augment is None else partial(model, augment=batch.augment)
        return squared_error(net, batch.image, t, noise, label, schedule=about.schedule, prediction=about.prediction)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the model folder of `model`, the averaged network."""
        self._with(model).save(folder)

    def example(self, batch: int, device: torch.device | str) -> tuple[Tensor, ...]:
        """Noisy images, timesteps and (where the network takes them) labels."""
        x = torch.zeros(batch, *self.diffusion.shape, device=device)
        t = torch.zeros(batch, dtype=torch.long, device=device)
        return (x, t) if self.diffusion.classes is None else (x, t, t)

    def _with(self, model: nn.Module) -> DiffusionModel:
        assert isinstance(model, UNet), "the averaged model is a copy of self.model"
        return replace(self.diffusion, net=model)


_FROM_IMAGES = "it follows from the images; see data.channels, data.size and data.labels"


def _presets() -> dict[str, UNetConfig]:
    """The published networks that can be trained; those of EDM2 need their own preconditioning."""
    return {name: config for name in list_presets() if isinstance(config := preset(name), UNetConfig)}


@dataclass(frozen=True, kw_only=True)
class DiffusionRun(Run[DiffusionTask]):
    """Trains a U-Net to denoise."""

    init: str | None = None
    """a trained network to start from: a run folder, a model folder (ours or diffusers'), an id on the hub, all of
    which also give the defaults of the section model, or a safetensors file with another library's names"""
    init_layout: Literal["diffusers", "adm", "adm-new-order", "edm"] | None = None
    """of a safetensors file: whose names it has; null: found by the names, which cannot tell the two of adm apart"""
    model: UNetConfig = section(UNetConfig, presets=_presets)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    augment: DiffusionAugment = field(default_factory=DiffusionAugment)
    sample: SampleConfig = field(default_factory=SampleConfig)

    derived: ClassVar[dict[str, str]] = {
        "model.in_channels": _FROM_IMAGES,
        "model.out_channels": _FROM_IMAGES,
        "model.size": _FROM_IMAGES,
        "model.classes": _FROM_IMAGES,
        "model.null_label": "it follows from diffusion.label_dropout",
        "model.augment_channels": "it follows from augment.non_leaky",
        "data.validation": "only classifiers are evaluated on images",
    }

    def __post_init__(self) -> None:
        if self.init_layout is not None and self.init is None:
            raise ValueError(f"init_layout={self.init_layout} without init; give the file with --init")
        try:
            check(self.sample.sampler, self.sample.steps, self.diffusion.noise)
        except ValueError as error:
            raise ValueError(f"sample: {error}") from None

    @classmethod
    def init_config(cls, init: str) -> UNetConfig | None:
        """The config of the network in the folder `init`; None for a file of weights."""
        return start_config(init)

    def outline(self) -> UNet:
        """The network on the meta device, as far as it is known before the images are: enough to say how large it is.

        Raises ValueError as `UNet` does.
        """
        side = 2 ** (self.model.skeleton.depth - 1)
        with torch.device("meta"):
            return UNet(replace(self.model, size=(side, side)))

    def check_init(self) -> None:
        """Raises ValueError as `load_init` does. The shape of the images does not matter, so none are needed."""
        if self.init is not None:
            read_start(self.outline(), self.init, self.init_layout, self.diffusion.noise, self.diffusion.prediction)

    def load_init(self, task: DiffusionTask) -> list[str]:
        """Gives the network of `task` the weights of `init`; returns lines to print. Raises ValueError if they do not
        fit, or were trained for something else."""
        about, note = task.diffusion, hidden_note(task.diffusion.shape[0])
        said = [] if note is None else [f"samples: {note}"]
        if self.init is None:
            return said
        weights, adapted = read_start(about.net, self.init, self.init_layout, about.schedule, about.prediction)
        about.net.load_state_dict(weights)
        return said + adapted

    def build(self, images: ImageSet) -> DiffusionTask:
        """The task, with its freshly initialised network. Raises ValueError if run and images do not fit together."""
        if self.model.learned_variance:
            raise ValueError("model.learned_variance=true cannot be trained yet (it needs the hybrid loss); give false")
        if self.model.time_embedding == "log_fourier":
            raise ValueError("model.time_embedding=log_fourier cannot be trained on timesteps, the first of which is 0")
        channels, height, width = images.shape
        if reason := self.model.skeleton.size_error(height, width):
            arrays = "arrays are read as (channels, height, width), and stay as they are"
            way_out = "data.size resizes them" if images.pixel_format.file == "png" else arrays
            raise ValueError(f"images of {self.data.source}: {reason}; {way_out}")
        config = replace(
            self.model,
            in_channels=channels,
            out_channels=channels,
            size=(height, width),
            classes=None if images.classes is None else len(images.classes),
            null_label=self.diffusion.label_dropout > 0,
            augment_channels=9 if self.augment.non_leaky > 0 else None,
        )
        with seeded(self.train.seed, "model"):
            net = UNet(config)
        model = describe(net, self.diffusion.noise, self.diffusion.prediction, images.classes, images.pixel_format)
        try:
            model.check(sampler=self.sample.sampler, steps=self.sample.steps, guidance=self.sample.guidance)
        except ValueError as error:
            raise ValueError(f"sample: {error}") from None
        grid = GridEvaluation(model, self.sample, self.train.eval_every_images)
        return DiffusionTask(model, self.diffusion.label_dropout, self.augment, (grid,))
