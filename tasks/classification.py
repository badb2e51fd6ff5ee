"""Training a network of the zoo to classify images, with or without noise."""

from collections import ChainMap
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusion import FORMULATIONS, Formulation
from pictures.units import AnyFormat
from pipelines.classification import ImageClassifier
from residual.model_info import ConfigClasses
from resnet import NETWORKS, Classifier, ClassifierConfig, ResNetConfig, build, list_models, model_info
from tasks.accuracy import AccuracyEvaluation
from tasks.augment import cutout, mixed, padded_crop, random_flip
from tasks.init_classifier import init_config, load_init
from tasks.inputs import require_pixels, require_plain
from training.data import ImageSet, open_validation
from training.processes import on_main, process_state
from training.random import GlobalRandom, seeded
from training.run import Run
from training.settings import kind_of, setting, variants
from training.task import Batch, Evaluation, Task

MODELS = ConfigClasses(NETWORKS)


@dataclass(frozen=True, kw_only=True)
class NoNoise:
    """Images are classified as they are."""


NOISE: ChainMap[str, type] = ChainMap(FORMULATIONS, {"none": NoNoise})
"""no noise, or that of a formulation, by the name that settings use"""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """The loss and the evaluation."""

    label_smoothing: float = 0.0
    """share of each label that is spread evenly over all classes (Szegedy et al. 2016)"""
    validation_batch: int = setting(500, may_change=True)
    """images per forward pass of an evaluation, on each process"""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} is not a share; give at least 0 and below 1")
        if self.validation_batch < 1:
            raise ValueError(f"validation_batch={self.validation_batch} is out of range; give at least 1")


@dataclass(frozen=True, kw_only=True)
class ClassificationAugment:
    """Random changes of training images, in this order."""

    flip: bool = False
    """mirror each image left to right with probability 1/2"""
    pad_px: int = 0
    """shift each image by up to this many pixels in each direction (He et al. 2015: 4)"""
    padding: Literal["zeros", "reflect"] = "zeros"
    """fill of the border of a shifted image: the mean colour, or the mirrored border"""
    cutout_px: int = 0
    """side of the square that is cut out of each image, in pixels (DeVries and Taylor 2017)"""
    mixup: float = 0.0
    """blend each image with its neighbour in the batch, by a share from Beta(mixup, mixup) (Zhang et al. 2018)"""
    cutmix: float = 0.0
    """paste a box of its neighbour into each image, of a share from Beta(cutmix, cutmix) (Yun et al. 2019); together
    with mixup each image gets one of the two"""

    def __post_init__(self) -> None:
        for name in ("pad_px", "cutout_px", "mixup", "cutmix"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise ValueError(f"augment.{name}={value} is out of range; give 0 (never) or more")
        if self.padding != "zeros" and self.pad_px == 0:
            raise ValueError(f"augment.padding={self.padding} without pad_px; give, say, augment.pad_px=4")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with their neighbours."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class ClassificationBatch(Batch):
    """Augmented images, normalised as the network takes them."""

    other_label: Int[Tensor, "b"] | None = None
    """of the neighbour that each image is mixed with, if any"""
    share: Float[Tensor, "b"] | None = None
    """share of each image that is its own"""


class ClassificationTask(Task[ClassificationBatch]):
    """Classification as a task of the training loop."""

    def __init__(
        self,
        classifier: ImageClassifier,
        label_smoothing: float,
        augment: ClassificationAugment,
        evaluations: tuple[Evaluation, ...] = (),
    ) -> None:
        super().__init__(classifier.net, evaluations)
        self.classifier, self.label_smoothing, self.augment = classifier, label_smoothing, augment

    def prepare(self, batch: Batch, random: GlobalRandom) -> ClassificationBatch:
        """Flips, normalises, crops, cuts out and mixes, as configured."""
        assert batch.label is not None, "the images were checked when the task was built"
        config, image, label = self.augment, batch.image, batch.label
        if config.flip:
            image = random_flip(image, random)
        image, random = self.classifier.normalise(image), random.stream("task")
        if config.pad_px:
            image = padded_crop(image, random, config.pad_px, config.padding)
        if config.cutout_px:
            image = cutout(image, random, config.cutout_px)
        if not config.mixes:
            return ClassificationBatch(image, label)
        image, other_label, share = mixed(image, label, random, config.mixup, config.cutmix)
        return ClassificationBatch(image, label, other_label, share)

    def loss(self, model: nn.Module, batch: ClassificationBatch, random: GlobalRandom) -> Float[Tensor, "b"]:
        """Cross-entropy of each image; of a mixed image, that of both labels, weighted by their shares.

        With a formulation, each image gets noise of a random level, and the network this level.
        """
        assert batch.label is not None
        if (formulation := self.classifier.formulation) is None:
            logits = model(batch.image)
        else:
            time = formulation.draw_time(random)
            noisy = formulation.level(time).noisy(batch.image, random.normal(*batch.image.shape[1:]))
            logits = self.classifier.noisy_logits(model, noisy, time)
        loss = self._cross_entropy(logits, batch.label)
        if batch.share is None or batch.other_label is None:
            return loss
        return batch.share * loss + (1 - batch.share) * self._cross_entropy(logits, batch.other_label)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the model folder of `model`, the averaged network."""
        assert isinstance(model, Classifier), "the averaged model is a copy of self.model"
        replace(self.classifier, net=model).save(folder)

    def example(self, image: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Images, and noise levels if the network takes them."""
        noisy = self.classifier.formulation is not None
        return (image, torch.zeros(len(image), device=image.device)) if noisy else (image,)

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Float[Tensor, "b"]:
        return F.cross_entropy(logits.float(), label, reduction="none", label_smoothing=self.label_smoothing)


def _presets() -> dict[str, ClassifierConfig]:
    """The classifiers of the zoo, by name."""
    configs = ((name, model_info(name).config) for name in list_models())
    return {name: config for name, config in configs if isinstance(config, ClassifierConfig)}


@dataclass(frozen=True, kw_only=True)
class ClassificationRun(Run[ClassificationTask]):
    """Trains a network to classify."""

    init: str | None = None
    """a trained network to start from: a run folder, a model folder or an id on the hub, which also give the defaults
    of the section model, or a safetensors file with another library's names. Classes keep their rows by name; with
    other channels the first layer is adapted"""
    model: ClassifierConfig = variants(MODELS, "resnet", presets=_presets)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    noise: NoNoise | Formulation = variants(NOISE, "none")
    augment: ClassificationAugment = field(default_factory=ClassificationAugment)

    derived: ClassVar[dict[str, str]] = {
        "model.in_channels": "it follows from the images; see data.channels",
        "model.num_classes": "it follows from the images; see data.labels",
        "model.noise": "it follows from noise.kind",
    }

    def __post_init__(self) -> None:
        require_pixels(self.data.autoencoder)
        if self.data.labels is False:
            raise ValueError("data.labels=false leaves a classifier nothing to learn; give true or null")
        self._check_pairs(self.train.batch, f"train.batch={self.train.batch}")
        self._network()

    @property
    def formulation(self) -> Formulation | None:
        """That of the noise; None without noise."""
        return None if isinstance(self.noise, NoNoise) else self.noise

    def _network(self) -> ClassifierConfig:
        """The config of the network as far as it is known without the images.

        Noisy images are scaled by their formulation alone. Raises ValueError for a network that takes no noise level,
        or that takes one without noise, and for noisy images that are also scaled by a mean and a deviation.
        """
        if self.formulation is None:
            if getattr(self.model, "noise", False):
                raise ValueError(
                    "model.noise=true takes a noise level, but noise.kind=none gives none; give noise.kind"
                )
            return self.model
        kind = f"noise.kind={kind_of(NOISE, self.noise)}"
        if not isinstance(self.model, ResNetConfig):
            raise ValueError(f"{kind} needs a network that takes the noise level; give model.kind=resnet")
        for name in ("mean", "std"):
            if (values := getattr(self.model, name)) is not None and set(values) != {0.5}:  # which keeps [-1, 1]
                raise ValueError(
                    f"{kind} scales noisy images, so model.{name}={values} has no effect; give model.mean=null and "
                    "model.std=null"
                )
        try:
            return replace(self.model, noise=True, mean=None, std=None)
        except ValueError as error:
            raise ValueError(f"{kind}: {error}; see model.norm and model.block") from None

    @classmethod
    def init_config(cls, init: str) -> ClassifierConfig | None:
        """The config of the network in the folder `init`, with the default of in_channels; None for a file of weights.

        The settings hold no in_channels, which follow from the images; so mean and std have to fit the default.
        """
        if (config := init_config(init)) is None:
            return None
        channels = ClassifierConfig.in_channels
        mean, std = (_for_channels(values, channels) for values in (config.mean, config.std))
        return replace(config, in_channels=channels, mean=mean, std=std)

    def outline(self) -> Classifier:
        """The network on the meta device, as far as it is known without the images. Raises ValueError as it does."""
        with torch.device("meta"):
            return build(self._network())

    def check_init(self) -> None:
        """Raises ValueError as `load_init` does. The shape of the images does not matter, so none are needed."""
        if self.init is not None:
            load_init(self.outline(), self.init, None)

    def load_init(self, task: ClassificationTask) -> list[str]:
        """Loads the weights of `init` into the network of `task`; returns messages to print.

        Raises ValueError if they do not fit.
        """
        images = [each.images for each in task.evaluations if isinstance(each, AccuracyEvaluation)]
        found = images[0] if images else "none, so nothing is evaluated; see data.validation"
        return [
            f"validation: {found}",
            *([] if self.init is None else load_init(task.classifier.net, self.init, task.classifier.classes)),
        ]

    def build(self, images: ImageSet) -> ClassificationTask:
        """The task, with its freshly initialised network. Raises ValueError if run and images do not fit together."""
        processes = process_state().num_processes
        share = self.train.batch // processes // self.train.accumulation(processes)
        self._check_pairs(share, f"what a process takes of train.batch at a time, {share} images,")
        require_plain(images, self.data.missing)
        if images.classes is None:
            raise ValueError(
                f"images of {self.data.source} have no labels, which a classifier needs; put them into sub-folders, "
                "one per class, or see data.label_file and data.label_column"
            )
        if len(images.classes) < 2:
            raise ValueError(f"images of {self.data.source} are all of one class ({images.classes[0]}); give two")
        channels, height, width = images.shape
        unknown = (0.5,) * channels  # keeps [-1, 1]
        network = self._network()
        mean, std = (_for_channels(values, channels) or unknown for values in (network.mean, network.std))
        config = replace(network, in_channels=channels, num_classes=len(images.classes), mean=mean, std=std)
        if config.min_size_px > min(height, width):
            raise ValueError(
                f"images of {height} x {width} px are smaller than the network's total stride of {config.min_size_px} "
                "px; enlarge them by data.size, or use a network for small images, such as --model.preset resnet20"
            )
        if self.augment.pad_px >= min(height, width):
            raise ValueError(f"augment.pad_px={self.augment.pad_px} moves {height} x {width} px out of view")
        if self.augment.cutout_px >= 2 * max(height, width):
            raise ValueError(f"augment.cutout_px={self.augment.cutout_px} leaves nothing of {height} x {width} px")
        preprocessing = replace(self.data.preprocessing.deterministic(), size=(height, width), channels=channels)
        validation = open_validation(self.data, on_main=on_main)
        with seeded(self.train.seed, "model"):
            net = build(config)
        pixel_format, counts = images.pixel_format, images.class_counts
        classifier = ImageClassifier(
            net, images.classes, preprocessing, pixel_format, class_counts=counts, formulation=self.formulation
        )
        evaluations: tuple[Evaluation, ...] = ()
        if validation is not None:
            held_out = as_trained(images.shape, images.pixel_format, images.classes, validation)
            batch, interval = self.classification.validation_batch, self.train.eval_every_images
            evaluations = (AccuracyEvaluation(classifier, held_out, batch, interval),)
        return ClassificationTask(classifier, self.classification.label_smoothing, self.augment, evaluations)

    def _check_pairs(self, count: int, what: str) -> None:
        if self.augment.mixes and count % 2:
            raise ValueError(f"{what} is odd, but mixup and cutmix take images in pairs; give an even number")


def _for_channels(given: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    """Mean or deviation of images with so many channels: the same one for all channels is known for any number."""
    if given is None or len(given) == channels:
        return given
    return given[:1] * channels if len(set(given)) == 1 else None


def as_trained(
    shape: tuple[int, int, int], pixel_format: AnyFormat, classes: tuple[str, ...], images: ImageSet
) -> ImageSet:
    """The images of an evaluation, with their classes numbered as in training: by name, and some may be missing.

    Raises ValueError for images of another shape, without labels, or with a class that was not trained on.
    """
    if images.shape != shape or images.pixel_format != pixel_format:
        raise ValueError(
            f"images of data.validation are {images.shape} (channels, height, width) of {images.pixel_format.dtype}, "
            f"training images are {shape} of {pixel_format.dtype}; set data.size, data.channels and data.bits"
        )
    if images.classes is None or images.labels is None:
        raise ValueError("images of data.validation have no labels, so accuracy is not defined; name another part")
    number = {name: index for index, name in enumerate(classes)}
    numbers = np.array([number.get(name, -1) for name in images.classes])[images.labels]
    if len(unknown := np.flatnonzero(numbers < 0)):
        name = images.classes[images.labels[unknown[0]]]
        raise ValueError(
            f"image {unknown[0]} of data.validation has the class {name!r}, which is none of the {len(classes)} "
            f"training classes ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}); correct or remove it"
        )
    renumbered = copy(images)
    renumbered.classes, renumbered.labels = classes, numbers
    return renumbered
