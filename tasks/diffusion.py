"""Training a U-Net to denoise (Ho et al. 2020; Karras et al. 2022; Lipman et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion import (
    DDPM,
    FORMULATIONS,
    Formulation,
)
from pictures.grid import hidden_note
from pictures.pixel_format import BYTES
from pipelines.diffusion import DiffusionModel, Network
from pipelines.inputs import Inputs, Numbers
from pipelines.regression import Base, load_regression
from pipelines.superresolution import diffusion_upscaler
from residual.model_info import ConfigClasses
from tasks.comparison import QualityConfig
from tasks.denoising import DiffusionAugment, DiffusionConfig, DiffusionTask
from tasks.enlargement import EnlargementEvaluation, check_measurable
from tasks.ensemble import Ensemble, EnsembleConfig
from tasks.grid_evaluation import GridEvaluation, SampleConfig
from tasks.init import init_config, read_init
from tasks.inputs import check_predicts, given_of, inputs_of, residual_std
from tasks.quality import Quality, open_quality, require_validation
from training.data import ImageSet, open_validation
from training.lora import LoraConfig, adapt
from training.precision import place
from training.processes import on_main, process_state
from training.random import seeded
from training.run import Run
from training.settings import variants
from training.task import Evaluation
from unet import NETWORKS, EDM2Config, UNetConfig, build, list_presets, preset
from unet.layout_names import EDM2LayoutName, UNetLayoutName

MODELS = ConfigClasses(NETWORKS)


_FROM_IMAGES = "it follows from the images; see data.channels, data.size and data.labels"


def _presets() -> Mapping[str, Any]:
    """The published networks, by name."""
    return {name: preset(name) for name in list_presets()}


@dataclass(frozen=True, kw_only=True)
class DiffusionRun(Run[DiffusionTask]):
    """Trains a U-Net to denoise."""

    init: str | None = None
    """a trained network to start from: a run folder, a model folder (ours or diffusers'), an id on the hub, all of
    which also give the defaults of the section model, or a safetensors file with another library's names"""
    init_layout: UNetLayoutName | EDM2LayoutName | None = None
    """layout of the names in a safetensors file; null: found by the names, which do not distinguish the two of adm"""
    lora: LoraConfig = field(default_factory=LoraConfig)
    model: UNetConfig | EDM2Config = variants(MODELS, "unet", presets=_presets)
    objective: Formulation = variants(FORMULATIONS, "ddpm")
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    augment: DiffusionAugment = field(default_factory=DiffusionAugment)
    sample: SampleConfig = field(default_factory=SampleConfig, metadata={"may_change": True})
    quality: QualityConfig = field(default_factory=QualityConfig, metadata={"may_change": True})
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig, metadata={"may_change": True})

    derived: ClassVar[dict[str, str]] = {
        "model.in_channels": _FROM_IMAGES,
        "model.out_channels": _FROM_IMAGES,
        "model.size": _FROM_IMAGES,
        "model.classes": _FROM_IMAGES,
        "model.null_label": "it follows from diffusion.label_dropout",
        "model.augment_channels": "it follows from augment.non_leaky and data.vector_columns",
    }

    def __post_init__(self) -> None:
        if self.init_layout is not None and self.init is None:
            raise ValueError(f"init_layout={self.init_layout} without init; give the file with --init")
        if self.model.learned_variance and not isinstance(self.objective, DDPM):
            kind = next(name for name, cls in FORMULATIONS.items() if cls is type(self.objective))
            raise ValueError(
                f"model.learned_variance=true is the variance of the ddpm sampler's steps, but objective.kind={kind}; "
                "give model.learned_variance=false, or objective.kind=ddpm"
            )
        if self.quality.judge is not None and self.diffusion.upscale is not None:
            raise ValueError(
                f"quality.judge={self.quality.judge} compares drawn images, but diffusion.upscale="
                f"{self.diffusion.upscale} enlarges them; leave one of them out"
            )
        padding = getattr(self.model, "padding", "zeros")
        if self.augment.crop_positions is not None and padding in ("periodic", "periodic_width"):
            raise ValueError(
                f"model.padding={padding} closes each square of augment.crop_px on itself, where the image goes on; "
                "give model.padding=zeros, with augment.crop_positions=periodic_width for images that are periodic"
            )
        require_validation(self.quality, self.data)
        self._check_ensemble()
        if self.data.autoencoder is not None:
            self._check_latents(self.data.autoencoder)
        self._check_lora()

    def _check_latents(self, autoencoder: str) -> None:
        """Raises ValueError for what changes or compares pixels, which latents are not: those of a mirrored picture are
        not the mirrored latents."""
        settings = {
            "augment.flip": self.augment.flip,
            "augment.non_leaky": self.augment.non_leaky,
            "augment.crop_px": self.augment.crop_px,
            "diffusion.upscale": self.diffusion.upscale,
            "diffusion.regression": self.diffusion.regression,
            "ensemble.members": self.ensemble.members,
        }
        for name, value in settings.items():
            if value:
                raise ValueError(
                    f"{name}={value} is for pixels, but the run is trained on latents of data.autoencoder="
                    f"{autoencoder}; leave one of them out"
                )

    def _check_lora(self) -> None:
        if (rank := self.lora.rank) is None:
            return
        if self.init is None:
            raise ValueError(f"lora.rank={rank} adds to trained weights, but init is null; give them with --init")
        if self.freeze:
            raise ValueError(
                f"freeze={','.join(self.freeze)}, but lora.rank={rank} freezes all weights; leave one of them out"
            )
        for name in ("more_halflife_images", "power_widths"):
            if given := getattr(self.ema, name):
                raise ValueError(
                    f"ema.{name}={','.join(map(str, given))} is not for lora.rank={rank}, which has the main average "
                    "alone; leave one of them out"
                )

    def _check_ensemble(self) -> None:
        if (members := self.ensemble.members) is None:
            return
        others = {
            "quality.judge": self.quality.judge is not None,
            "diffusion.upscale": self.diffusion.upscale is not None,
        }
        if given := [name for name, is_given in others.items() if is_given]:
            raise ValueError(f"ensemble.members={members} is another evaluation than that of {given[0]}; give only one")
        if self.data.validation is None:
            raise ValueError(
                f"ensemble.members={members} are drawn for held-out pairs, but data.validation is null; give a share, "
                "such as 0.1, or the name of a split"
            )

    @classmethod
    def init_config(cls, init: str) -> UNetConfig | EDM2Config | None:
        """The config of the network in the folder `init`; None for a file of weights."""
        return init_config(init)

    def outline(self) -> Network:
        """The network on the meta device, as far as it is known without the images. Raises ValueError as it does."""
        net = self._network_outline()
        adapt(net, replace(self.lora, also=()), self.train.seed)  # the images decide whether there are labels
        return net

    def _network_outline(self) -> Network:
        """The network without LoRA."""
        side = 2 * self.model.skeleton.stride  # the least that every padding takes
        with torch.device("meta"):
            return build(replace(self.model, size=(side, side)))

    def check_init(self) -> None:
        """Raises ValueError as `load_init` does, as far as that is known without the images.

        A U-Net is adapted to the channels and classes of the images. EDM2's network must have those of `init`, so they
        are assumed here; the names in a file of its weights depend on the size, so it is checked by `load_init` only.
        """
        if self.init is None:
            return
        run, trained = self, init_config(self.init)
        if isinstance(self.model, EDM2Config):
            if trained is None:
                return
            inputs = {name: getattr(trained, name) for name in ("in_channels", "out_channels", "classes")}
            run = replace(self, model=replace(self.model, **inputs))
        read_init(run._network_outline(), self.init, self.init_layout, self.objective)

    def load_init(self, task: DiffusionTask) -> list[str]:
        """Loads the weights of `init` into the network of `task`; returns messages to print.

        Raises ValueError if they do not fit, or were trained under another formulation.
        """
        note = hidden_note(self.sample.num, task.diffusion.output_shape, task.diffusion.output_format)
        messages = [] if note is None else [f"samples: {note}"]
        if self.init is None:
            return messages
        trained = task.diffusion
        weights, adapted = read_init(trained.net, self.init, self.init_layout, self.objective, trained.classes)
        task.model.load_state_dict(weights)
        return messages + adapted

    def freeze_weights(self, model: nn.Module) -> list[str]:
        """Freezes what is not trained, and adds LoRA. Returns messages to print."""
        return super().freeze_weights(model) + adapt(model, self.lora, self.train.seed)

    def build(self, images: ImageSet) -> DiffusionTask:
        """The task, with its freshly initialised network. Raises ValueError if run and images do not fit together."""
        channels, height, width = self._trained_shape(images)
        if reason := self.model.size_error(height, width):
            arrays = "arrays are read as (channels, height, width) and are not resized"
            resizes = images.pixel_format.file == "png" or images.autoencoder is not None
            what = "images" if images.autoencoder is None else "latents of the images"
            way_out = "data.size resizes them" if resizes else arrays
            raise ValueError(f"{what} of {self.data.source}: {reason}; {way_out}")
        classes = None if images.classes is None else len(images.classes)
        inputs = inputs_of(images, self.data.missing, self.augment.crop_px, self.augment.crop_positions)
        count = channels if self.diffusion.upscale is None else 2 * channels
        if inputs is not None:
            self._check_inputs(inputs)
        base = None if self.diffusion.regression is None else self._base(images, self.diffusion.regression)
        if inputs is not None:
            count += inputs.count(channels)
        config = replace(self.model, in_channels=count, out_channels=channels, size=(height, width), classes=classes)
        with seeded(self.train.seed, "model"):
            net = build(self._with_inputs(config, None if inputs is None else inputs.numbers))
        null_label = self.diffusion.label_dropout > 0
        pixel_format, counts = images.pixel_format.channels(0, channels), images.class_counts
        model = DiffusionModel(
            net,
            self.objective,
            images.classes,
            null_label,
            pixel_format,
            class_counts=counts,
            upscale=self.diffusion.upscale,
            inputs=inputs,
            base=base,
            coordinates=images.coordinates,
            autoencoder=images.autoencoder,
        )
        try:
            model.check(sampler=self.sample.sampler, steps=self.sample.steps, guidance=self.sample.guidance)
        except ValueError as error:
            raise ValueError(f"sample: {error}") from None
        if model.upscale is not None:
            return DiffusionTask(model, self.diffusion, self.augment, self._enlargements(model))
        needed = inputs is not None or self.ensemble.members is not None
        held_out = open_validation(self.data, on_main=on_main) if needed else None
        examples = partial(given_of, inputs, images if held_out is None else held_out)
        evaluations: list[Evaluation] = [GridEvaluation(model, self.sample, self.train.eval_every_images, examples)]
        if (quality := self.open_quality(model, images)) is not None:
            evaluations.append(quality)
        if self.ensemble.members is not None:
            assert held_out is not None, "it was opened above"
            evaluations.append(Ensemble(model, self.ensemble, held_out, self.train.eval_every_images))
        return DiffusionTask(model, self.diffusion, self.augment, tuple(evaluations))

    def open_quality(self, model: DiffusionModel, training: ImageSet) -> Quality | None:
        """The metrics of `model`; None without a judge. Raises ValueError for images that it cannot compare."""
        return open_quality(model, self.quality, self.data, training, self.train.eval_every_images)

    def _trained_shape(self, images: ImageSet) -> tuple[int, int, int]:
        """Channels, height and width of what is trained on. Raises ValueError for crops that do not fit the images."""
        channels, height, width = images.shape
        channels -= images.conditions
        if (side := self.augment.crop_px) is not None:
            if side > min(height, width):
                raise ValueError(
                    f"augment.crop_px={side} is more than the {height} x {width} px of {self.data.source}; give "
                    f"at most {min(height, width)}"
                )
            height = width = side
        if (scale := self.diffusion.upscale) is None:
            return channels, height, width
        if images.pixel_format != BYTES:
            raise ValueError(
                f"diffusion.upscale={scale} is for pictures of 8 bits, but {self.data.source} has "
                f"{images.pixel_format.dtype}; give data.bits=8, or other images"
            )
        if height % scale or width % scale:
            raise ValueError(
                f"diffusion.upscale={scale} does not divide the {height} x {width} px that are trained on; give "
                "another data.size or augment.crop_px"
            )
        return channels, height, width

    def _enlargements(self, model: DiffusionModel) -> tuple[Evaluation, ...]:
        """The evaluation of a model that enlarges."""
        held_out = open_validation(self.data, on_main=on_main)
        upscaler = diffusion_upscaler(model, options=self.sample.options)
        upscaler = upscaler.with_tiles(replace(upscaler.tiles, batch=self.sample.batch))
        if held_out is None or self.sample.num == 0:
            return ()
        upscaler.check()
        check_measurable(held_out, upscaler.channels, upscaler.scale)
        interval, count = self.train.eval_every_images, self.sample.num
        return (EnlargementEvaluation(upscaler.with_network, upscaler.scale, held_out, interval, count),)

    def _base(self, images: ImageSet, path: str) -> Base:
        """The regression whose residual is learned. Raises ValueError if it predicts from other data."""
        try:
            model = load_regression(path)
            check_predicts(model, images, self.data.missing)
        except ValueError as error:
            raise ValueError(f"diffusion.regression={path}: {error}") from None
        place(model.net.requires_grad_(False), process_state().device)
        return Base(model, on_main(lambda: residual_std(model, images)))

    def _check_inputs(self, inputs: Inputs) -> None:
        """Raises ValueError for settings that do not suit conditions, numbers or missing values."""
        if self.diffusion.upscale is not None:
            raise ValueError(
                f"diffusion.upscale={self.diffusion.upscale} has images alone, but there are conditions, static "
                "fields, positions, vectors or missing values; leave one of them out"
            )
        if self.quality.judge is not None and inputs.channels:
            raise ValueError(
                f"quality.judge={self.quality.judge} compares images that have no condition, but data.condition gives "
                "one to each; leave one of them out"
            )
        if inputs.seen is not None and (self.augment.non_leaky > 0 or self.model.learned_variance):
            name = "augment.non_leaky" if self.augment.non_leaky > 0 else "model.learned_variance"
            raise ValueError(f"{name} does not suit missing values, but data.missing is true; leave one of them out")

    def _with_inputs(self, config: UNetConfig | EDM2Config, numbers: Numbers | None) -> UNetConfig | EDM2Config:
        """The config with the inputs that the run's settings need. Raises ValueError for what cannot be trained."""
        if isinstance(config, EDM2Config):
            if numbers is not None:
                raise ValueError(
                    f"data.vector_columns {list(numbers.names)} need a network that takes numbers, which "
                    "model.kind=edm2 is not; give model.kind=unet"
                )
            if self.augment.non_leaky > 0:
                raise ValueError(
                    f"augment.non_leaky={self.augment.non_leaky} needs a network with an augmentation label, which "
                    "model.kind=edm2 is not; give 0, or model.kind=unet"
                )
            return config
        if config.time_embedding == "log_fourier":
            raise ValueError(
                "model.time_embedding=log_fourier takes the logarithm of c_noise, which may be 0 or less; give fourier"
            )
        width = (0 if numbers is None else numbers.width) + (9 if self.augment.non_leaky > 0 else 0)
        return replace(config, null_label=self.diffusion.label_dropout > 0, augment_channels=width or None)
