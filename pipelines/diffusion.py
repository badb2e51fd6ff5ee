"""A trained diffusion model: draws images, and is saved as a folder that is enough to sample.

The folder holds config.json and model.safetensors, which are the network's own, and diffusion.json. A regression and an
autoencoder are in folders of their own.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion import (
    DDPM,
    FORMULATIONS,
    Condition,
    Denoiser,
    Euler,
    Formulation,
    NetworkDenoiser,
    Observation,
    Sampler,
    choose_sampler,
    classifier_free,
    classifier_guided,
    differences,
    generators,
    guided,
    posterior,
    sample,
    unclipped,
)
from diffusion.edits import Projection, between_labels, invert, projected
from diffusion.options import ALL_LEVELS, STEPS
from diffusion.windows import Size, check_windows, windowed
from pictures.autoencoder import Autoencoder
from pictures.coordinates import Coordinates
from pictures.pixel_format import BYTES
from pictures.units import AnyFormat
from pipelines.card import list_labels, model_card, summary
from pipelines.classification import ImageClassifier
from pipelines.drawn import require_finite
from pipelines.formulation import describe_formulation
from pipelines.inputs import Inputs, Numbers
from pipelines.labels import NO_LABEL, TRAIN_WITHOUT_LABELS, find_label
from pipelines.regression import Base
from residual.names import amount, shorten
from residual.weights.pretrained import upload
from unet import EDM2UNet, UNet, UNetConfig

Network = UNet | EDM2UNet

FORMAT_VERSION = 3
DESCRIPTION_FILE = "diffusion.json"
REGRESSION, AUTOENCODER = "regression", "autoencoder"
"""folders of these networks in a model folder"""
MAX_GUIDANCE = 1_000
"""A larger value is almost certainly a typo."""
MAX_SIDE = 8192
MAX_RESAMPLE = 1_000
MAX_SCALE = 16
"""of images that are enlarged"""
GUIDANCE = ("guidance", "guidance_interval", "guidance_rescale")
"""options of `DiffusionModel.denoiser`, besides those of a classifier"""


@dataclass(frozen=True)
class DiffusionModel:
    """A denoising network with everything needed to use it."""

    net: Network
    formulation: Formulation
    classes: tuple[str, ...] | None = None
    """names of its classes; None: it takes no labels"""
    null_label: bool = False
    """whether it was also trained without labels and numbers"""
    pixel_format: AnyFormat = BYTES
    """how the values of the training data's files become those of the network, and the type of those files"""
    images_seen: int | None = None
    """images seen in training, where that is known"""
    class_counts: tuple[int, ...] | None = None
    """training images of each class, where that is known"""
    upscale: int | None = None
    """how many times as high and wide its images are as the small ones that it enlarges; None: it draws from noise"""
    inputs: Inputs | None = None
    """what the network takes besides noisy image, time and label"""
    base: Base | None = None
    """a regression, to whose prediction samples are added; None: samples are the images"""
    coordinates: Coordinates | None = None
    """names, values and units of channels (those of a condition last) and axes, if the training data have them"""
    guide: Network | None = None
    """a worse network for the same images, from which guidance moves away; see `guided_by`"""
    size: tuple[int, int] | None = None
    """height and width of the images that it draws, if another than that of its training; see `sized`"""
    overlap: Size | None = None
    """pixels in height and width that windows share at least, where `in_windows` sets them"""
    classifier: ImageClassifier | None = None
    """a classifier of noisy images, along whose gradient images are moved; see `classified_by`"""
    autoencoder: Autoencoder | None = None
    """decodes its images, which are latents of pictures; None: they are the pictures or arrays themselves"""

    def guided_by(self, other: "DiffusionModel") -> "DiffusionModel":
        """This model with a worse one as its guide: a smaller, less trained or earlier one (Karras et al. 2024,
        autoguidance).

        Raises ValueError if the other model differs in formulation, images, classes or inputs, or if only one draws a
        residual, or both do but at another scale.
        """
        for name in ("formulation", "shape", "windows", "classes", "null_label", "pixel_format", "upscale"):
            if (mine := getattr(self, name)) != (its := getattr(other, name)):
                raise ValueError(f"guide has {name}={its}, but the model has {mine}; give a model of the same kind")
        mine, its = (model.inputs and model.inputs.document() for model in (self, other))
        if mine != its:
            raise ValueError(f"guide has inputs={its}, but the model has {mine}; give a model of the same kind")
        mine, its = (model.autoencoder and model.autoencoder.fingerprint for model in (self, other))
        if mine != its:
            raise ValueError(f"guide has autoencoder={its}, but the model has {mine}; give a model of the same kind")
        mine, its = (model.base and model.base.std for model in (self, other))
        if mine != its:
            raise ValueError(f"guide has residual_std={its}, but the model has {mine}; give a model of the same kind")
        return replace(self, guide=other.net)

    def sized(self, height: int, width: int) -> "DiffusionModel":
        """This model, drawing images of another size than it was trained with.

        Raises ValueError, with the number that it must be a multiple of, for a size that its levels cannot halve, and
        for one that its config refuses, such as one that is too small for padding by reflection. If it draws in
        windows, it raises ValueError for a size that is smaller than a window.
        """
        trained = self._whole or self.net.config.size
        if self.inputs is not None and self.inputs.has_fields and (height, width) != trained:
            own = "x".join(map(str, trained))
            raise ValueError(f"size={height}x{width}: this model has fields of {own}; leave the size out")
        if not (min(height, width) >= 1 and max(height, width) <= MAX_SIDE):
            raise ValueError(f"size={height}x{width} is out of range; give 1 to {MAX_SIDE:,} pixels a side")
        if self.windows is not None:
            check_windows(*self.windows, (height, width))
        whole = self.networks if self.windows is None else () if self.base is None else (self.base.model.net,)
        for net in whole:
            if net.config.size_error(height, width):
                multiple = net.config.skeleton.stride
                padded = " without model.pad" if isinstance(net, UNet) else ""
                raise ValueError(
                    f"size={height}x{width}: the levels of this model{padded} need multiples of {multiple} pixels"
                )
            try:
                replace(net.config, size=(height, width))
            except ValueError as error:
                raise ValueError(
                    f"size={height}x{width} does not suit this model; give a larger one: {error}"
                ) from None
        return replace(self, size=(height, width))

    def in_windows(self, overlap_px: int | None = None) -> "DiffusionModel":
        """This model, drawing images that are larger than those that its network was trained on, in windows of that
        size that agree at every step: see `diffusion.windows`. Windows share `overlap_px` pixels, or half of their own.

        A model of patches with fields or conditions draws in windows of itself. Raises ValueError for an overlap that
        leaves no step from one window to the next, and for a model that enlarges images, which has tiles.
        """
        if self.upscale is not None:
            raise ValueError("this model enlarges images, tile by tile, and has no windows; leave the windows out")
        window = self.net.config.size
        overlap = _half(window) if overlap_px is None else (overlap_px, overlap_px)
        check_windows(window, overlap)
        return replace(self, overlap=overlap)

    @property
    def windows(self) -> tuple[Size, Size] | None:
        """Height and width of the windows in which it draws, and of what they share at least; None: the network takes
        the whole image at once."""
        if self.overlap is None and self._whole is None:
            return None
        window = self.net.config.size
        return window, self.overlap or _half(window)

    def classified_by(self, classifier: ImageClassifier) -> "DiffusionModel":
        """This model with a classifier of noisy images that guides it (Dhariwal & Nichol 2021, section 4).

        Raises ValueError if the classifier was not trained on noisy images, if noise, images or classes differ, and if
        this model draws a residual.
        """
        if self.base is not None:
            raise ValueError(
                "classifier guides images, but this model draws the residual of a regression; leave it out"
            )
        if classifier.formulation is None:
            raise ValueError(
                "classifier was trained on images without noise, and its gradient means nothing for noisy ones; train "
                "one with a noise.kind that is the model's objective.kind"
            )
        differing = differences(self.formulation, classifier.formulation, FORMULATIONS)
        differing.pop("prediction", None)  # noisy images do not depend on it
        for name in ("shape", "pixel_format"):
            if (mine := getattr(self, name)) != (its := getattr(classifier, name)):
                differing[name] = mine, its
        for name, (mine, its) in differing.items():
            raise ValueError(f"classifier has {name}={its}, but the model has {mine}; train one like the model")
        if self.classes is None:
            raise ValueError("classifier guides towards classes, but the model has none; give a model with classes")
        if unknown := [name for name in self.classes if name not in classifier.classes]:
            raise ValueError(
                f"classifier lacks classes of the model: {shorten(unknown)}; its own are {shorten(classifier.classes)}"
            )
        return replace(self, classifier=classifier)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of its images."""
        return (self.net.config.out_channels, *(self.size or self._whole or self.net.config.size))

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of what is written of its images: of pictures, where it draws latents."""
        if self.autoencoder is None:
            return self.shape
        height, width = (side * self.autoencoder.factor for side in self.shape[1:])
        return self.autoencoder.channels, height, width

    @property
    def output_format(self) -> AnyFormat:
        """The format of what is written of its images."""
        return self.pixel_format if self.autoencoder is None else BYTES

    def decoded(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d height width"]:
        """Drawn images as `output_format` takes them: latents are decoded, others returned."""
        if self.autoencoder is None:
            return x
        latents = torch.from_numpy(self.pixel_format.from_unit(x))
        return self.autoencoder.decode(latents.to(self._device)).to(x.device)

    def encoded(self, x: Float[Tensor, "b d height width"]) -> Float[Tensor, "b c h w"]:
        """The inverse of `decoded`: pictures become latents as the network takes them."""
        if self.autoencoder is None:
            return x
        return self.pixel_format.to_unit(self.autoencoder.encode(x.to(self._device))).to(x.device)

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def _whole(self) -> Size | None:
        return None if self.inputs is None else self.inputs.whole

    @property
    def networks(self) -> list[Network]:
        """All networks that take part in drawing, besides a classifier."""
        others = (self.guide, None if self.base is None else self.base.model.net)
        return [self.net, *(net for net in others if net is not None)]

    @property
    def _numbers(self) -> Numbers | None:
        return None if self.inputs is None else self.inputs.numbers

    @property
    def null(self) -> int | None:
        """The label that means “no label”; None if there are no classes, or it was never trained without labels."""
        return len(self.classes) if self.classes is not None and self.null_label else None

    @property
    def default_sampler(self) -> str:
        """ddim for the timesteps of DDPM, heun for continuous noise levels."""
        return "ddim" if isinstance(self.formulation, DDPM) else "heun"

    def hidden(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images with NaN where no training image had a value."""
        seen = None if self.inputs is None else self.inputs.seen
        return x if seen is None else x.where(seen.to(x.device), math.nan)

    def check(
        self,
        *,
        sampler: str | None = None,
        steps: int = STEPS,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] = ALL_LEVELS,
        guidance_rescale: float = 0.0,
        classifier_scale: float = 1.0,
        strength: float = 1.0,
        **options: float,
    ) -> Sampler:
        """The sampler (None: `default_sampler`), if all options suit this model. Raises ValueError otherwise."""
        name = self.default_sampler if sampler is None else sampler
        chosen = choose_sampler(name, self.formulation, steps, self.net.config.learned_variance, **options)
        chosen = chosen if self.pixel_format.limit == 1 else unclipped(chosen)
        low, high = guidance_interval
        if not 0 <= low < high:
            raise ValueError(f"guidance_interval={low:g},{high:g} is empty; give two noise levels, the lower one first")
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale={guidance_rescale:g} is out of range; give 0 (none) to 1")
        if self.classifier is None and classifier_scale != 1:
            raise ValueError(f"classifier_scale={classifier_scale:g} without a classifier; give one, or leave it out")
        if classifier_scale == 0 or not abs(classifier_scale) <= MAX_GUIDANCE:
            reason = "leaves the classifier without effect" if classifier_scale == 0 else "is out of range"
            raise ValueError(
                f"classifier_scale={classifier_scale:g} {reason}; give at most {MAX_GUIDANCE:,}, such as 1, or leave "
                "the classifier out"
            )
        if not 0 < strength <= 1:
            raise ValueError(f"strength={strength:g} is out of range; give a share of the steps above 0, at most 1")
        if guidance == 1:
            changed = {
                "guide": self.guide is not None,
                "guidance_interval": self.classifier is None and guidance_interval != ALL_LEVELS,
                "guidance_rescale": self.classifier is None and guidance_rescale != 0,
            }
            if unused := [name for name, is_changed in changed.items() if is_changed]:
                raise ValueError(f"{unused[0]} has no effect with guidance=1; give another guidance, or leave it out")
            return chosen
        if not abs(guidance) <= MAX_GUIDANCE:
            raise ValueError(f"guidance={guidance:g} is out of range; give at most {MAX_GUIDANCE:,}, such as 2")
        if self.guide is not None:
            return chosen
        if self.classes is None and self._numbers is None:
            raise ValueError(
                f"guidance={guidance:g} needs a model with classes, or a guide; this one has none, leave guidance at 1"
            )
        if not self.null_label:
            raise ValueError(
                f"guidance={guidance:g} needs a model that was also trained without labels; "
                f"leave guidance at 1, or {TRAIN_WITHOUT_LABELS}"
            )
        return chosen

    def check_inversion(self, *, steps: int = STEPS, **options: Any) -> Sampler:
        """As `check`, for `inverting`. Raises ValueError for another sampler than euler, too, and for a single step."""
        chosen = self.check(steps=steps, **options)
        if not isinstance(chosen.solver, Euler):
            raise ValueError(
                f"sampler={options.get('sampler')} cannot be inverted; choose euler, which ddim without noise equals"
            )
        if steps < 2:
            raise ValueError(f"steps={steps} cannot be inverted; give at least 2")
        return chosen

    def cycle(self, images: Sequence[int]) -> list[int] | None:
        """A label for each image number, the classes in turn; None for a model without classes.

        Classes that had no training image are left out.
        """
        return None if self.classes is None else [self._drawn[k % len(self._drawn)] for k in images]

    @cached_property
    def _drawn(self) -> list[int]:
        """The labels that had training images, or all where that is unknown."""
        return [k for k in range(len(self.classes or ())) if self.class_counts is None or self.class_counts[k]]

    def label(self, text: str) -> int:
        """The number of a class from its name; else that of the null label from “none”, or of a class from its number.

        If any name is a number, classes have to be named. Raises ValueError, with the nearest names, if there is no
        such class.
        """
        return find_label(text, self.classes, self.null)

    def names(self, labels: Sequence[int] | None) -> list[str] | None:
        """The names of labels, as `label` reads them."""
        if labels is None or self.classes is None:
            return None
        return [NO_LABEL if label == self.null else self.classes[label] for label in labels]

    def denoiser(
        self,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] = ALL_LEVELS,
        guidance_rescale: float = 0.0,
        classifier_scale: float = 1.0,
        learned_variance: bool = False,
    ) -> Denoiser:
        """The denoiser of the network, in the dtype of its weights. Guidance moves it away from that of the guide, or
        else from the network without labels; a classifier moves the result towards the labels. Images that guidance
        extrapolates are clipped to [-1, 1], if their values have a range."""
        limit = self.pixel_format.limit
        options: Any = {"interval": guidance_interval, "limit": limit, "rescale": guidance_rescale}
        denoise = self._guided(guidance, learned_variance, options)
        if self.classifier is None:
            return denoise
        return classifier_guided(denoise, self._log_probability, classifier_scale, self.formulation, **options)

    def _guided(self, guidance: float, learned_variance: bool, options: Mapping[str, Any]) -> Denoiser:
        dtype = next(self.net.parameters()).dtype
        denoise = self._whole_images(NetworkDenoiser(self.net, self.formulation, learned_variance, dtype))
        if self.guide is not None:
            worse = self._whole_images(NetworkDenoiser(self.guide, self.formulation, dtype=dtype))
            return guided(denoise, worse, guidance, self.formulation, **options)
        if guidance == 1 or not self.null_label or (self.classes is None and self._numbers is None):
            return denoise
        return classifier_free(denoise, guidance, self.null, self.formulation, **options)

    def _whole_images(self, denoise: Denoiser) -> Denoiser:
        """The denoiser of whole images, in windows if there are any, which are 0, as in training, where no training
        image had a value."""
        is_periodic = self.inputs is not None and self.inputs.periodic_width
        denoise = denoise if self.windows is None else windowed(denoise, *self.windows, is_periodic)
        if self.inputs is None or (seen := self.inputs.seen) is None:
            return denoise
        return lambda x, time, condition: denoise(x, time, condition).where(seen.to(x.device), 0)

    def _log_probability(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b"], label: Int[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """The log-probability of labels of this model, by the classifier."""
        assert self.classifier is not None, "the caller checks it"
        numbers = [self.classifier.classes.index(name) for name in self.classes or ()]
        return self.classifier.log_probability(x, time, torch.tensor(numbers, device=label.device)[label])

    def denoising(
        self,
        images: Sequence[int],
        labels: Sequence[int] | None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        steps: int = STEPS,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] = ALL_LEVELS,
        guidance_rescale: float = 0.0,
        classifier_scale: float = 1.0,
        origin: Float[Tensor, "b c h w"] | None = None,
        strength: float = 1.0,
        noise: Float[Tensor, "b c h w"] | None = None,
        project: Projection | None = None,
        resample: int = 1,
        toward: tuple[Sequence[int], Sequence[float]] | None = None,
        observation: Observation | None = None,
        image: Float[Tensor, "b k h w"] | None = None,
        vector: Sequence[Sequence[float]] | None = None,
        **options: Any,
    ) -> Iterator[Float[Tensor, "b c h w"]]:
        """Draws the images with these numbers under `seed`: yields their noise, then each step, last the images.

        `labels` has one label per image; without them a model with classes draws the null label. `guidance_interval`
        is in units of `sigma / alpha`. `options` are sampler, eta and churn. With `origin`, one image in [-1, 1] per
        number, the share `strength` of the steps changes these images; `noise` replaces that of the numbers; see
        `diffusion.sample`, also for `resample`. `project` keeps what is known of each image: `keep_pixels` or
        `keep_grey` of `diffusion.edits`. `toward` has another label per image, and how near to it the image is, from 0
        to 1: `between_labels`. `observation` is what is known of each image through an operator: `posterior`. `image`
        has the condition of each image, in the values of the network (`inputs.pixel_format`), and `vector` its numbers
        (`inputs.numbers`), in units of the data; without them a model that was also trained without draws for hidden
        numbers. Raises ValueError as `check` does, for labels that the model does not have, and for images and numbers
        that do not fit.
        """
        guiding: Any = {
            "guidance": guidance,
            "guidance_interval": guidance_interval,
            "guidance_rescale": guidance_rescale,
            "classifier_scale": classifier_scale,
        }
        chosen = self.check(steps=steps, strength=strength, **guiding, **options)
        self._check_labels(images, labels)
        if guidance != 1 and self.guide is None and self.classes is None and vector is None:
            raise ValueError(f"guidance={guidance:g} strengthens numbers (vector), but none are given; give them")
        if self.upscale is not None:
            raise ValueError("this model enlarges images and draws none; see pipelines/superresolution.py")
        for name, given in (("origin", origin), ("noise", noise)):
            if given is not None and given.shape != (len(images), *self.shape):
                raise ValueError(f"{name} has the shape {tuple(given.shape)}, not {(len(images), *self.shape)}")
        if not 1 <= resample <= MAX_RESAMPLE:
            raise ValueError(f"resample={resample} is out of range; give 1 (each step once) to {MAX_RESAMPLE}")
        denoise = self.denoiser(**guiding, learned_variance=chosen.learned_variance)
        if toward is not None:
            self._check_labels(images, toward[0])
            share = torch.tensor(toward[1], device=device)
            denoise = between_labels(denoise, torch.tensor(toward[0], device=device), share)
        if observation is not None:
            self._check_observation(observation, len(images))
            denoise = posterior(denoise, observation.to(device), self.formulation, self.pixel_format.limit)
        denoise = denoise if project is None else projected(denoise, project)
        condition = self._condition(len(images), labels, device, image, vector)
        sources = generators(seed, images)
        origin = None if origin is None else origin.to(device)
        drawn = sample(
            denoise,
            self.formulation,
            chosen,
            sources,
            self.shape,
            condition,
            steps=steps,
            device=device,
            origin=origin,
            strength=strength,
            noise=noise,
            resample=resample,
        )
        if self.base is None:
            return drawn
        if origin is not None or project is not None or observation is not None:
            raise ValueError(
                "this model draws the residual of a regression; it starts from no image, and none is kept or observed"
            )
        base, mean = self.base, self.base.model.predict(image, vector, len(images), self.shape[1:], device)
        return (base.added(mean, x) for x in drawn)

    def inverting(
        self,
        origin: Float[Tensor, "b c h w"],
        labels: Sequence[int] | None,
        *,
        device: torch.device | str = "cpu",
        steps: int = STEPS,
        image: Float[Tensor, "b k h w"] | None = None,
        vector: Sequence[Sequence[float]] | None = None,
        **options: Any,
    ) -> Iterator[Float[Tensor, "b c h w"]]:
        """Inverts images in [-1, 1]: the last yielded are the `noise` from which `denoising` reconstructs them with the
        same labels, conditions and options. See `diffusion.edits.invert`.

        Raises ValueError as `check_inversion` does.
        """
        chosen = self.check_inversion(steps=steps, **options)
        if self.base is not None:
            raise ValueError("this model draws the residual of a regression, and inverts no image")
        guiding = {name: value for name, value in options.items() if name in (*GUIDANCE, "classifier_scale")}
        self._check_labels(range(len(origin)), labels)
        condition = self._condition(len(origin), labels, device, image, vector)
        denoise, images = self.denoiser(**guiding), origin.to(device)
        return invert(denoise, self.formulation, chosen, images, condition, steps=steps)

    def draw(self, images: Sequence[int], labels: Sequence[int] | None, **options: Any) -> Float[Tensor, "b c h w"]:
        """The images at the end of `denoising`, in [-1, 1] or, in units, without a limit.

        Raises ValueError if they are not finite.
        """
        x = deque(self.denoising(images, labels, **options), maxlen=1).pop()
        require_finite(images, x, options.get("guidance", 1.0))
        return x.clamp(-self.pixel_format.limit, self.pixel_format.limit)

    def draw_share(
        self,
        count: int,
        labels: Callable[[Sequence[int]], list[int] | None],
        *,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        steps: int = STEPS,
        given: Callable[[Sequence[int]], Mapping[str, Any]] = lambda numbers: {},
        **options: Any,
    ) -> Iterator[tuple[Sequence[int], int, Float[Tensor, "b c h w"]]]:
        """One process's share of the images 0 to `count` - 1, `batch` at a time.

        Yields (numbers, step, images) for the noise (step 0) and after every step; at step `steps` the images are
        finished. All processes yield equally often, so that they can stop together. Numbers of `count` and more fill
        up the last share. `labels` gives the labels of image numbers, such as `cycle`, and `given` their conditions
        (`image` and `vector`); `options` as in `denoising`.
        """
        mine = range(rank, -(-count // ranks) * ranks, ranks)
        for start in range(0, len(mine), batch):
            numbers = mine[start : start + batch]
            for step, x in enumerate(
                self.denoising(numbers, labels(numbers), steps=steps, **given(numbers), **options)
            ):
                yield numbers, step, x

    def _condition(
        self,
        count: int,
        labels: Sequence[int] | None,
        device: torch.device | str,
        image: Float[Tensor, "b k h w"] | None,
        vector: Sequence[Sequence[float]] | None,
    ) -> Condition:
        """What `count` images are drawn under. Raises ValueError for what is missing, or does not fit."""
        label = None if labels is None else torch.tensor(labels, device=device)
        if self.inputs is None:
            if image is not None or vector is not None:
                name = "vector" if image is None else "image"
                raise ValueError(f"this model was trained without conditions, but {name} is given; leave it out")
            return Condition(label)
        if vector is None and self._numbers is not None and not self.null_label:
            names = shorten(self._numbers.names)
            raise ValueError(f"this model was not trained without its numbers; give vector: {names} of each image")
        numbers = self.inputs.label(vector, count, device)
        augment = None
        if numbers is not None and isinstance(config := self.net.config, UNetConfig):  # EDM2's takes no numbers
            augment = torch.zeros(count, (config.augment_channels or 0) - numbers.shape[1], device=device)
        return Condition(
            label=label,
            image=self.inputs.image(image, (count, *self.shape), device),
            augment=augment,
            numbers=numbers,
        )

    def _check_observation(self, observation: Observation, count: int) -> None:
        seen = observation.observe(torch.zeros(1, *self.shape)).shape[1:]
        if (found := tuple(observation.values.shape)) != (wanted := (count, *seen)):
            raise ValueError(
                f"observation has the shape {found}, but images are observed as {wanted}; give such values"
            )

    def _check_labels(self, images: Sequence[int], labels: Sequence[int] | None) -> None:
        if not len(images):
            raise ValueError("no image numbers were given; give at least one")
        if labels is None:
            if self.classes is not None and self.null is None:
                raise ValueError("this model was not trained without labels; give a label for each image")
            if self.classifier is not None:
                raise ValueError("a classifier guides towards labels; give a label for each image")
            return
        if self.classes is None:
            raise ValueError("this model has no classes; leave the labels out")
        if len(labels) != len(images):
            raise ValueError(f"{amount(len(labels), 'label')} for {amount(len(images), 'image')}; give one for each")
        last = len(self.classes) - (self.null is None)
        if wrong := [label for label in labels if label not in range(last + 1)]:
            raise ValueError(f"label {wrong[0]} is not a whole number from 0 to {last}")
        if self.classifier is not None and self.null in labels:
            raise ValueError(f"label {NO_LABEL!r} is no class towards which a classifier could guide; give a class")

    def save(self, folder: Path) -> None:
        """Writes the model folder: the network's files, and the rest as diffusion.json."""
        self.net.save_pretrained(folder)
        if self.inputs is not None:
            self.inputs.save(folder)
        if self.base is not None:
            (folder / REGRESSION).mkdir()
            self.base.model.save(folder / REGRESSION)
        if self.autoencoder is not None:
            self.autoencoder.save(folder / AUTOENCODER)
        self.write_description(folder)

    def write_description(self, folder: Path) -> None:
        """Writes diffusion.json: everything but the network."""
        document = {
            "format_version": FORMAT_VERSION,
            "formulation": describe_formulation(self.formulation),
            "classes": self.classes,
            "null_label": self.null_label,
            "class_counts": self.class_counts,
            "pixel_format": asdict(self.pixel_format),
            "upscale": self.upscale,
        }
        if self.inputs is not None:
            document["inputs"] = self.inputs.document()
        if self.coordinates is not None:
            document["coordinates"] = asdict(self.coordinates)
        if self.base is not None:
            document["residual_std"] = self.base.std
        if self.autoencoder is not None:
            document["autoencoder_sha256"] = self.autoencoder.fingerprint
        (folder / DESCRIPTION_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def push_to_hub(self, repo_id: str, *, private: bool = False, commit_message: str = "Upload model") -> str:
        """Uploads the model folder, with a model card, to the Hugging Face hub. Returns the URL.

        `load_model`, `sample.py` and `train.py --init` open it by its name, `repo_id`. Arguments and errors are those
        of `Pretrained.push_to_hub`.
        """
        card = self.model_card(repo_id)
        return upload(repo_id, self.save, card, private=private, commit_message=commit_message)

    def model_card(self, repo_id: str) -> str:
        """The README.md of the model folder in a repository: what the model draws, and code that draws with it."""
        about, labels = self.summary(), None if self.classes is None else self.list_labels()
        return model_card(repo_id, self.formulation, self.shape, self.pixel_format, self.inputs, about, labels, STEPS)

    def summary(self) -> str:
        """A few words on the images, the training and the formulation, as one line of Markdown."""
        return summary(self.formulation, self.output_shape, self.output_format, self.inputs, self.images_seen)

    def list_labels(self) -> str:
        """The labels and the names of their classes, as a list in Markdown."""
        return list_labels(self.classes or (), self.null)


def _half(size: Size) -> Size:
    return size[0] // 2, size[1] // 2
