"""Quality of a diffusion model: drawn images against held-out ones, by the features of a trained classifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from metrics import (
    PARTS,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    memorised,
    precision_recall,
)
from pipelines.classification import load_classifier
from pipelines.diffusion import DiffusionModel, Network, gather_drawn
from tasks.budget import choose_count, seconds_per_image
from training.data import Images, ImageSet
from training.output_folder import weights_sha256
from training.processes import process_state
from training.settings import require
from training.task import Evaluation, EvaluationContext, Figure


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Metrics of drawn images against the held-out images of data.validation."""

    judge: str | None = None
    """run or model folder of a classifier of such images, whose features are compared. null: no metrics"""
    num: int | None = None
    """images to draw and to compare with. null: as many as are held out"""
    steps: int = 18
    """steps of the sampler"""
    sampler: str | None = None
    """as in sample.sampler"""
    guidance: float = 1.0
    """strength of the labels: 1 as trained"""
    seed: int = 1
    """of the noise, and of the choice of images"""
    batch: int = 250
    """images per forward pass on each process"""
    seconds: float | None = None
    """time for drawing in an evaluation; if it is too short for all images, fewer are drawn for the rest of the run.
    null: no limit"""

    def __post_init__(self) -> None:
        require(self.num is None or self.num >= 2, self, "num", "give at least 2, or null")
        require(self.batch >= 1, self, "batch", "give at least 1")
        require(self.seconds is None or self.seconds > 0, self, "seconds", "give more than 0, or null")
        require(self.seed >= 0, self, "seed", "give 0 or more")


DISTANCE = "Fréchet distance (squared features)"
SHARES = ("precision", "recall", "coverage", "memorised", "class_accuracy")


@dataclass(frozen=True)
class Features:
    """The judge's features and probabilities of a set of images."""

    features: Float[Tensor, "n d"]
    probabilities: Float[Tensor, "n classes"]


class Quality(Evaluation):
    """Draws as many images as are held out, with the same labels, and compares both sets by a classifier's features.

    Training images, as many and with the same labels, are compared in the same way: their distance is the floor that a
    perfect model reaches at this number of images. Where the training set has fewer images of a class than are held
    out, fewer of that class are compared.

    Raises ValueError for a judge of other images, for images that are too few for its features, for more
    images than are held out, and for options that do not suit the model.
    """

    name: ClassVar[str] = "quality"
    figures: ClassVar[Mapping[str, Figure]] = {
        "frechet_distance": Figure(DISTANCE, log=True, best="lowest"),
        "frechet_floor": Figure(DISTANCE, log=True, dashed=True),
        "kernel_distance": Figure("kernel distance (no unit)", log=True),
        "inception_score": Figure("inception score (classes)"),
        **{name: Figure("share of images") for name in SHARES},
        "density": Figure("density (1: as real images)"),
    }

    def __init__(
        self, model: DiffusionModel, config: QualityConfig, held_out: ImageSet, training: ImageSet, every_images: int
    ) -> None:
        assert config.judge is not None, "the caller checks it"
        if not (isinstance(held_out, Images) and isinstance(training, Images)):
            raise ValueError("quality.judge needs images in a cache, but data.stream is true; give false")
        self.model, self.config, self.every_images = model, config, every_images
        self.judge = load_classifier(config.judge)
        try:
            model.check(sampler=config.sampler, steps=config.steps, guidance=config.guidance)
        except ValueError as error:
            raise ValueError(f"quality: {error}") from None
        for what, images in (("training images", training), ("images of data.validation", held_out)):
            if images.shape != self.judge.shape or images.pixel_format != self.judge.pixel_format:
                raise ValueError(
                    f"quality.judge={config.judge} takes {self.judge.shape} (channels, height, width) of "
                    f"{self.judge.pixel_format.dtype}, but the {what} are {images.shape} of {images.pixel_format.dtype}"
                )
        if (held_out.labels is None) != (training.labels is None):
            raise ValueError("only one of training images and images of data.validation have labels; see data.labels")
        self.held_out, self.training = _pairs(held_out, training, config.num, config.seed)
        width, count = self.judge.net.num_features, len(self.held_out)
        if count < self.least:
            raise ValueError(
                f"{count} images of data.validation are too few for the {width} features of quality.judge="
                f"{config.judge}; hold out at least {self.least}, or give a judge with fewer features"
            )

    @property
    def least(self) -> int:
        """The number of images that the judge's features need."""
        return max(self.judge.net.num_features + 1, PARTS)

    def plan(self, model: nn.Module, folder: Path, record: bool = True) -> tuple[str, float]:
        """Lowers the number of images, for the rest of the run, to what `quality.seconds` allows; see `Evaluation`."""
        assert isinstance(model, Network), "the averaged model is a copy of the trained one"
        config, most, ranks = self.config, len(self.held_out), process_state().num_processes
        batch = min(config.batch, -(-most // ranks))
        labels, options = self._labels(range(batch)), {"sampler": config.sampler, "guidance": config.guidance}
        denoising = replace(self.model, net=model).denoising
        each = seconds_per_image(denoising, labels, batch, config.steps, **options)
        count, text = most, f"{most:,} images"
        if config.seconds is not None:
            facts = self.conditions | {"seconds": config.seconds}
            count, text = choose_count(most, self.least, config.seconds / each * ranks, facts, folder, record)
        if count < most:
            self.held_out, self.training = (images.part(np.arange(count)) for images in (self.held_out, self.training))
            self.__dict__.pop("_names", None)
        sampler = config.sampler or self.model.default_sampler
        return f"{text} in {config.steps} {sampler} steps", each * -(-count // ranks)

    @property
    def conditions(self) -> dict[str, Any]:
        """Judge, images and their number, and the options of the sampler."""
        options = {name: getattr(self.config, name) for name in ("steps", "sampler", "guidance", "seed")}
        images = {"judge": self._judge_sha256, "data": self.held_out.fingerprint, "quality_images": len(self.held_out)}
        return images | options

    @cached_property
    def _judge_sha256(self) -> str:
        return weights_sha256(self.judge.net)

    def run(self, model: nn.Module, context: EvaluationContext) -> dict[str, float] | None:
        """The metrics of the images that the weights of `model` draw; None if `context.interrupted()` was true."""
        assert isinstance(model, Network), "the averaged model is a copy of the trained one"
        found = self.measure(model, context.interrupted)
        return None if found is None else found | {"quality_images": len(self.held_out)}

    @torch.no_grad()
    def measure(self, net: Network, interrupted: Callable[[], object] = lambda: False) -> dict[str, float] | None:
        """As `run`. The processes share the drawing; the result is the same on each of them."""
        state, model, config = process_state(), replace(self.model, net=net), self.config
        drawn: list[tuple[int, tuple[np.ndarray, np.ndarray]]] = []
        for numbers, step, x in model.draw_share(
            len(self.held_out),
            self._labels,
            batch=config.batch,
            rank=state.process_index,
            ranks=state.num_processes,
            steps=config.steps,
            sampler=config.sampler,
            guidance=config.guidance,
            seed=config.seed,
            device=state.device,
        ):
            if interrupted():
                return None
            if step == config.steps:
                new = self._apply(torch.from_numpy(model.pixel_format.from_unit(x.float())))
                pairs = zip(new.features.numpy(), new.probabilities.numpy(), strict=True)
                drawn += zip(numbers, pairs, strict=True)
        gathered = gather_drawn(drawn, len(self.held_out))
        features, probabilities = (torch.from_numpy(np.stack(part)) for part in zip(*gathered, strict=True))
        return self._compare(Features(features, probabilities))

    def _compare(self, drawn: Features) -> dict[str, float]:
        real, training = self._real.features, self._training.features
        precision, recall = precision_recall(real, drawn.features)
        density, coverage = density_coverage(real, drawn.features)
        found = {
            "frechet_distance": frechet_distance(real, drawn.features),
            "frechet_floor": self._floor,
            "kernel_distance": kernel_distance(real, drawn.features)[0],
            "inception_score": inception_score(drawn.probabilities)[0],
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "memorised": memorised(drawn.features, training, real),
        }
        names, known = self._names, {name: number for number, name in enumerate(self.judge.classes)}
        if names is not None and set(names) <= known.keys():
            wanted = torch.tensor([known[name] for name in names])
            found["class_accuracy"] = (drawn.probabilities.argmax(dim=1) == wanted).double().mean().item()
        return found

    def _labels(self, numbers: Sequence[int]) -> list[int] | None:
        """The labels of the held-out images, for image numbers that start over after the last one."""
        if self._names is None:
            return None
        assert self.model.classes is not None
        return [self.model.classes.index(self._names[number % len(self.held_out)]) for number in numbers]

    @cached_property
    def _names(self) -> list[str] | None:
        """The class of each held-out image; None for a model without classes."""
        if self.model.classes is None or self.held_out.labels is None or self.held_out.classes is None:
            return None
        return [self.held_out.classes[label] for label in self.held_out.labels.tolist()]

    @cached_property
    def _real(self) -> Features:
        return self._features_of(self.held_out)

    @cached_property
    def _training(self) -> Features:
        return self._features_of(self.training)

    @cached_property
    def _floor(self) -> float:
        return frechet_distance(self._real.features, self._training.features)

    def _features_of(self, images: Images) -> Features:
        parts = np.array_split(np.arange(len(images)), -(-len(images) // self.config.batch))
        found = [self._apply(torch.from_numpy(images.read(part))) for part in parts]
        return Features(torch.cat([each.features for each in found]), torch.cat([each.probabilities for each in found]))

    def _apply(self, stored: Tensor) -> Features:
        """Features and probabilities, on the CPU, of pixels as they are in files."""
        judge, device = self.judge, process_state().device
        judge.net.to(device)
        features = judge.features(judge.pixel_format.to_unit(stored.to(device)))
        return Features(features.cpu(), judge.net.fc(features).softmax(dim=1).cpu())


def _pairs(held_out: Images, training: Images, num: int | None, seed: int) -> tuple[Images, Images]:
    """Equally many random images of both sets, of each class as many. Raises ValueError for more than there are."""
    if num is not None and num > len(held_out):
        raise ValueError(f"quality.num={num} is more than the {len(held_out)} images of data.validation; give fewer")
    random = np.random.default_rng(seed)
    ours, theirs = (_by_class(images, random.permutation(len(images))) for images in (held_out, training))
    pairs = [
        pair for name in sorted(ours.keys() & theirs.keys()) for pair in zip(ours[name], theirs[name], strict=False)
    ]
    if not pairs:
        raise ValueError("images of data.validation have no class in common with the training images")
    chosen = np.array(pairs)[random.permutation(len(pairs))[:num]]
    return held_out.part(chosen[:, 0]), training.part(chosen[:, 1])


def _by_class(images: Images, numbers: Int64[np.ndarray, "n"]) -> dict[str, list[int]]:
    """The numbers of images by the name of their class; all under one name without labels."""
    if images.labels is None or images.classes is None:
        return {"": numbers.tolist()}
    found: dict[str, list[int]] = {}
    for number in numbers.tolist():
        found.setdefault(images.classes[images.labels[number]], []).append(number)
    return found
