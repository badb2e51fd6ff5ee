"""Compares drawn images with held-out ones by the features of a judge; training images in their place are the floor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metrics import (
    PARTS,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    memorised,
    precision_recall,
)
from pictures.units import AnyFormat
from pipelines.diffusion import DiffusionModel
from pipelines.drawn import gather_drawn
from residual.names import shorten
from storage.write import expand_home
from tasks.judge import Input, open_judge, pixels_of
from tasks.reference import Pair, read_reference, write_reference
from training.data import Images, ImageSet
from training.processes import gather, on_main, process_state
from training.settings import require

MAX_SIDE = 2048
"""pixels; a larger `judge_size` is almost certainly a typo"""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Metrics of drawn images against the held-out images of data.validation."""

    judge: str | None = None
    """whose features are compared: run or model folder of a classifier of such images, or a file of TorchScript (which
    is code: only one that you trust) that gives features (images, features). null: no metrics"""
    judge_input: Input | None = None
    """what a TorchScript file takes: unit (values from 0 to 1), signed (-1 to 1), bytes (uint8, 0 to 255) or imagenet
    (minus ImageNet's mean, divided by its standard deviation)"""
    judge_size: int | None = None
    """side in pixels to which images are resized for a TorchScript file, bilinear, antialiased; null: not resized"""
    judge_rgb: bool = False
    """true repeats grey images to three channels for a TorchScript file"""
    reference: Path | None = None
    """file with the features of the real images: written if it is absent, else read; refused if it was made of other
    images, by another judge, or with another number or seed"""
    num: int | None = None
    """images to draw and to compare with. null: as many as are held out"""
    steps: int = 18
    """steps of the sampler"""
    sampler: str | None = None
    """as in sample.sampler"""
    guidance: float = 1.0
    """strength of the labels: 1 as trained"""
    seed: int = 1
    """of the noise, of the choice of images, and of random parts of the metrics"""
    batch: int = 250
    """images per forward pass on each process"""

    seconds: float | None = None
    """time for drawing in an evaluation, without the metrics; if it is too short for all images, fewer are drawn for
    the rest of the run. null: no limit"""

    def __post_init__(self) -> None:
        require(self.seconds is None or self.seconds > 0, self, "seconds", "give more than 0, or null")
        if self.seconds is not None and self.reference is not None:
            raise ValueError(
                f"reference={self.reference} is of a fixed number of images, which seconds={self.seconds:g} may lower; "
                "give num instead"
            )
        size = self.judge_size
        require(size is None or 1 <= size <= MAX_SIDE, self, "judge_size", f"give 1 to {MAX_SIDE:,}, or null")
        require(self.num is None or self.num >= 2, self, "num", "give at least 2, or null")
        require(self.batch >= 1, self, "batch", "give at least 1")
        require(self.seed >= 0, self, "seed", "give 0 or more")


class Comparison:
    """Held-out images, and as many training images and drawn images, of each class as many; compared by a judge.

    The distance of the training images from the held-out ones is the floor: what a perfect model reaches at this number
    of images. Without `drawn`, the images are yet to be drawn, with the labels of `held_out`. Classes are ignored if
    `by_class` is false, as for a model without classes, or if a set has no labels. `len` is the number of images of
    each set.

    Raises ValueError for a judge of other images, for images that are too few for its features, for more images than
    there are, for sets that do not go together, and for a reference of other images.
    """

    def __init__(
        self,
        config: QualityConfig,
        held_out: ImageSet,
        training: ImageSet,
        drawn: Images | None = None,
        by_class: bool = True,
    ) -> None:
        assert config.judge is not None, "the caller checks it"
        if not (isinstance(held_out, Images) and isinstance(training, Images)):
            raise ValueError("quality.judge needs images in a cache, but data.stream is true; give false")
        self.judge = open_judge(config.judge, held_out, config.judge_input, config.judge_size, config.judge_rgb)
        others = {"training images": training} | ({} if drawn is None else {"drawn images": drawn})
        for what, images in others.items():
            if (given := pixels_of(images)) != (wanted := pixels_of(held_out)):
                raise ValueError(f"the {what} are {given}, but the images of data.validation are {wanted}")
        if held_out.fingerprint == training.fingerprint:
            raise ValueError(
                "the images of data.validation are the training images themselves; give a share of them, such as 0.1, "
                "or another split"
            )
        if (held_out.labels is None) != (training.labels is None):
            raise ValueError("only one of training images and images of data.validation have labels; see data.labels")
        self.config = config
        sets = [held_out, *others.values()]
        by_class = by_class and all(images.labels is not None for images in sets)
        chosen = matched(sets, by_class, config.num, config.seed)
        parts = [images.part(numbers) for images, numbers in zip(sets, chosen, strict=True)]
        self.held_out, self.training = parts[:2]
        self.drawn = parts[2] if len(parts) > 2 else None
        width = self.judge.num_features
        self.least = max(width + 1, PARTS)
        """images that the judge's features need"""
        if len(self) < self.least:
            raise ValueError(
                f"{len(self)} images of each set are too few for the {width} features of quality.judge={config.judge}; "
                f"draw and hold out at least {self.least}, or give a judge with fewer features"
            )

        self._path = None if config.reference is None else expand_home("quality.reference", config.reference)
        self._stored = None if self._path is None else on_main(self._read)

    def __len__(self) -> int:
        return len(self.held_out)

    def keep(self, count: int) -> None:
        """Leaves out all but the first `count` images of each set; before anything is compared."""
        self.held_out, self.training = (images.part(np.arange(count)) for images in (self.held_out, self.training))

    def compare(self, drawn: Float[Tensor, "n d"], names: Sequence[str] | None) -> dict[str, float]:
        """The metrics of drawn images with these features. Call it on every process; the result is the same on each.

        `names` are the classes of the images; without them there is no class accuracy.
        """
        real, training = self._features
        floor = self.floor

        def find() -> dict[str, float]:
            distance = frechet_distance(real, drawn)
            near = memorised(drawn, training, real, self.config.seed)
            return self._figures(drawn, names, distance) | {"frechet_floor": floor, "memorised": near}

        return on_main(find)

    @cached_property
    def floor(self) -> float:
        """The Fréchet distance of the training images. Call it on every process."""
        real, training = self._features
        return on_main(lambda: frechet_distance(real, training))

    @cached_property
    def floors(self) -> dict[str, float]:
        """The metrics of the training images in place of drawn ones; after `compare` any process may read them.

        `memorised` is what a model that generalises reaches: of as many training as held-out images, half are nearer.
        """
        training = self._figures(self._features[1], class_names(self.training), self.floor)
        return training | {"memorised": 0.5}

    def features(self, images: Images) -> Float[Tensor, "n d"]:
        """The judge's features of all images, on the CPU. The processes share the work; call it on every one."""
        state, batch, found = process_state(), self.config.batch, list[tuple[int, np.ndarray]]()
        mine = np.arange(state.process_index, len(images), state.num_processes)
        for start in range(0, len(mine), batch):
            numbers = mine[start : start + batch]
            rows = self.of_pixels(images.read(numbers), images.pixel_format)
            found += zip(numbers.tolist(), rows, strict=True)
        return torch.from_numpy(np.stack(gather_drawn(found, len(images), gather)))

    def of_pixels(self, stored: np.ndarray, pixel_format: AnyFormat) -> Float[np.ndarray, "b d"]:
        """The judge's features of pixels as they are in files."""
        unit = pixel_format.to_unit(torch.from_numpy(stored).to(process_state().device))
        return self.judge.features(unit).cpu().numpy()

    @cached_property
    def _features(self) -> Pair:
        """Features of the held-out and of the training images."""
        if self._stored is not None:
            return self._stored
        found = self.features(self.held_out), self.features(self.training)
        if (path := self._path) is not None:
            on_main(lambda: write_reference(path, self._facts, found))
        return found

    def _read(self) -> Pair | None:
        assert self._path is not None, "the caller checks it"
        return read_reference(self._path, self._facts, (len(self), self.judge.num_features))

    @property
    def _facts(self) -> dict[str, str]:
        """What the features of the real images depend on."""
        return {
            "judge": self.judge.fingerprint,
            "size": str(self.held_out.shape),
            "n": str(len(self)),
            "seed": str(self.config.seed),
            "held_out": self.held_out.fingerprint,
            "training": self.training.fingerprint,
        }

    @torch.no_grad()
    def _figures(self, drawn: Float[Tensor, "n d"], names: Sequence[str] | None, distance: float) -> dict[str, float]:
        """The metrics that compare a set with the held-out images, and those of the set alone.

        `distance` is its Fréchet distance.
        """
        real = self._features[0]
        precision, recall = precision_recall(real, drawn)
        density, coverage = density_coverage(real, drawn)
        found = {
            "frechet_distance": distance,
            "kernel_distance": kernel_distance(real, drawn, self.config.seed)[0],
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
        }
        if self.judge.probabilities is None or self.judge.classes is None:
            return found
        parts = drawn.split(self.config.batch)
        probabilities = torch.cat([self.judge.probabilities(x.to(process_state().device)).cpu() for x in parts])
        found["inception_score"] = inception_score(probabilities, self.config.seed)[0]
        known = {name: number for number, name in enumerate(self.judge.classes)}
        if names is not None and set(names) <= known.keys():
            wanted = torch.tensor([known[name] for name in names])
            found["class_accuracy"] = (probabilities.argmax(dim=1) == wanted).double().mean().item()
        return found


def matched(sets: Sequence[Images], by_class: bool, num: int | None, seed: int) -> list[Int64[np.ndarray, "n"]]:
    """The numbers of equally many random images of every set, of each class as many. The first are the held-out ones.

    Raises ValueError for more than are held out, and for sets without a common class.
    """
    held_out = len(sets[0])
    if num is not None and num > held_out:
        raise ValueError(f"quality.num={num} is more than the {held_out} images of data.validation; give fewer")
    random = np.random.default_rng(seed)
    numbers = [_by_class(images, random.permutation(len(images)), by_class) for images in sets]
    common = set.intersection(*(set(each) for each in numbers))
    rows = [row for name in sorted(common) for row in zip(*(each[name] for each in numbers), strict=False)]
    if not rows:
        raise ValueError("images of data.validation have no class in common with the training images")
    chosen = np.array(rows)[random.permutation(len(rows))[:num]]
    return list(chosen.T)


def _by_class(images: Images, numbers: Int64[np.ndarray, "n"], by_class: bool) -> dict[str, list[int]]:
    """The numbers of images by the name of their class; all under one name if classes are ignored."""
    names = class_names(images) if by_class else None
    if names is None:
        return {"": numbers.tolist()}
    found: dict[str, list[int]] = {}
    for number in numbers.tolist():
        found.setdefault(names[number], []).append(number)
    return found


def names_for(model: DiffusionModel, images: Images) -> list[str] | None:
    """The class of each held-out image, for drawing with the same labels; None if the model draws without them.

    Raises ValueError for classes that the model does not have, and for missing ones if it draws only with labels.
    """
    names = None if model.classes is None else class_names(images)
    if names is not None and (unknown := sorted(set(names) - set(model.classes or ()))):
        raise ValueError(
            f"images of data.validation have classes that the model lacks: {shorten(unknown)}; those of the model "
            f"are {shorten(model.classes or ())}"
        )
    if names is None and model.classes is not None and model.null is None:
        raise ValueError("the model draws only with labels, but the images of data.validation have none")
    return names


def class_names(images: Images) -> list[str] | None:
    """The class of each image; None without labels."""
    if images.labels is None or images.classes is None:
        return None
    return [images.classes[label] for label in images.labels.tolist()]
