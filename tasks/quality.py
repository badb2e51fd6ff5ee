"""Quality of a diffusion model: drawn images against held-out ones, by the features of a judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pipelines.diffusion import DiffusionModel, Network
from pipelines.drawn import gather_drawn, require_finite
from tasks.budget import choose_count, seconds_per_image
from tasks.comparison import Comparison, QualityConfig, names_for
from tasks.inputs import given_of
from tasks.judge import pixels_of
from training.data import DataConfig, Images, ImageSet, open_images, open_validation
from training.processes import gather, on_main, process_state
from training.task import Evaluation, EvaluationContext, Figure

DISTANCE = "Fréchet distance (squared features)"
SHARES = ("precision", "recall", "coverage", "memorised", "class_accuracy")


class Quality(Evaluation):
    """Draws as many images as are held out, with the same labels, and compares both sets (`Comparison`).

    Raises ValueError as `Comparison` does, for options that do not suit the model, for classes that it does not have,
    and for missing values.
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
        self.model, self.config, self.every_images = model, config, every_images
        try:
            model.check(sampler=config.sampler, steps=config.steps, guidance=config.guidance)
        except ValueError as error:
            raise ValueError(f"quality: {error}") from None
        if model.inputs is not None and model.inputs.seen is not None:
            raise ValueError(f"quality.judge={config.judge} takes no missing values, but data.missing is true")
        if isinstance(held_out, Images) and (given := pixels_of(held_out)) != (drawn := pixels_of(model)):
            raise ValueError(f"the model draws {drawn}, but the images of data.validation are {given}; see data.size")
        self.comparison = Comparison(config, held_out, training, by_class=model.classes is not None)
        self._names = names_for(model, self.comparison.held_out)
        self._given = partial(given_of, model.inputs, self.comparison.held_out)

    @torch.no_grad()
    def plan(self, model: nn.Module, folder: Path, record: bool = True) -> tuple[str, float]:
        """Lowers the number of images, for the rest of the run, to what `quality.seconds` allows; see `Evaluation`."""
        assert isinstance(model, Network), "the averaged model is a copy of the trained one"
        config, most, ranks = self.config, len(self.comparison), process_state().num_processes
        batch = min(config.batch, -(-most // ranks))
        labels, options = self._labels(range(batch)), {"sampler": config.sampler, "guidance": config.guidance}
        denoising = replace(self.model, net=model).denoising
        each = seconds_per_image(denoising, labels, batch, config.steps, self._given, **options)
        count, text = most, f"{most:,} images"
        if config.seconds is not None:
            images = {name: self.conditions[name] for name in ("judge", "data", "quality_images")}
            facts = images | {"seconds": config.seconds}
            count, text = choose_count(
                most, self.comparison.least, config.seconds / each * ranks, facts, folder, record
            )
        if count < most:
            self.comparison.keep(count)
            self._names = None if self._names is None else self._names[:count]
        sampler = config.sampler or self.model.default_sampler
        return f"drawing {text} in {config.steps} {sampler} steps", each * -(-count // ranks)

    @property
    def conditions(self) -> dict[str, Any]:
        """Judge, images and their number, and the options of the sampler."""
        options = {name: getattr(self.config, name) for name in ("steps", "sampler", "guidance", "seed")}
        compared = self.comparison
        images = {"data": compared.held_out.fingerprint, "quality_images": len(compared)}
        return {"judge": compared.judge.fingerprint, **images, **options}

    def run(self, model: nn.Module, context: EvaluationContext) -> dict[str, float] | None:
        """The metrics of the images that the weights of `model` draw; None if `context.interrupted()` was true."""
        assert isinstance(model, Network), "the averaged model is a copy of the trained one"
        found = self.measure(model, context.interrupted)
        return None if found is None else found | {"quality_images": len(self.comparison)}

    @torch.no_grad()
    def measure(self, net: Network, interrupted: Callable[[], object] = lambda: False) -> dict[str, float] | None:
        """As `run`. The processes share the drawing; the result is the same on each of them."""
        state, model, config = process_state(), replace(self.model, net=net), self.config
        drawn: list[tuple[int, np.ndarray]] = []
        for numbers, step, x in model.draw_share(
            len(self.comparison),
            self._labels,
            batch=config.batch,
            rank=state.process_index,
            ranks=state.num_processes,
            steps=config.steps,
            given=self._given,
            sampler=config.sampler,
            guidance=config.guidance,
            seed=config.seed,
            device=state.device,
        ):
            if interrupted():
                return None
            if step == config.steps:
                require_finite(numbers, x, config.guidance)
                pixels = model.output_format.from_unit(model.decoded(x.float()))
                drawn += zip(numbers, self.comparison.of_pixels(pixels, model.output_format), strict=True)
        features = torch.from_numpy(np.stack(gather_drawn(drawn, len(self.comparison), gather)))
        return self.comparison.compare(features, self._names)

    def _labels(self, numbers: Sequence[int]) -> list[int] | None:
        """The labels of the held-out images, for image numbers that start over after the last one."""
        if self._names is None:
            return None
        assert self.model.classes is not None
        return [self.model.classes.index(self._names[number % len(self.comparison)]) for number in numbers]


def require_validation(config: QualityConfig, data: DataConfig) -> None:
    """Raises ValueError for a judge without held-out images."""
    if config.judge is not None and data.validation is None:
        raise ValueError(
            f"quality.judge={config.judge} compares with held-out images, but data.validation is null; give a share, "
            "such as 0.1, or the name of a split"
        )


def open_quality(
    model: DiffusionModel, config: QualityConfig, data: DataConfig, training: ImageSet, every_images: int
) -> Quality | None:
    """The metrics of `model`; None without a judge. Raises ValueError for images that it cannot compare.

    Of latents, the pictures are compared.
    """
    if config.judge is None:
        return None
    if data.autoencoder is not None:
        data = replace(data, autoencoder=None)
        training = open_images(data, on_main=on_main)
    held_out = open_validation(data, on_main=on_main)
    assert held_out is not None, "see require_validation"
    return Quality(model, config, held_out, training, every_images)
