"""Evaluation that draws a grid of samples, always from the same noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pictures.files import to_uint8
from pictures.grid import draw_samples
from pipelines.diffusion import MAX_GUIDANCE, DiffusionModel, Network
from pipelines.drawn import gather_drawn
from storage.write import replace_file
from training.processes import gather
from training.task import Evaluation, EvaluationContext, Figure

MAX_IN_GRID = 10_000
"""of the small images of a grid: nearly 7,000 px each way"""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The grid of images that the averaged model draws at every evaluation, always from the same noise."""

    num: int = 64
    """images in the grid; their labels go through the classes in turn. 0: no grid"""
    steps: int = 50
    """steps of the sampler"""
    sampler: str | None = None
    """ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, unipc, euler, heun (evaluates the network twice per step) or euler_ancestral;
    null: ddim for the objective ddpm, heun for others"""
    guidance: float = 1.0
    """strength of the labels: 0 none, 1 as trained, above 1 stronger (and twice the time)"""
    batch: int = 64
    """images per forward pass on each process"""

    def __post_init__(self) -> None:
        if self.num < 0 or self.batch < 1:
            raise ValueError(f"num={self.num}, batch={self.batch}: give num 0 or more, batch 1 or more")
        if not abs(self.guidance) <= MAX_GUIDANCE:
            raise ValueError(f"guidance={self.guidance} is out of range; give at most {MAX_GUIDANCE:,}, such as 2")
        if self.num > MAX_IN_GRID:
            raise ValueError(f"num={self.num} is more than a grid can show; give at most {MAX_IN_GRID}")

    @property
    def options(self) -> dict[str, Any]:
        """Those of `DiffusionModel.check`."""
        return {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance}


@dataclass(frozen=True)
class GridEvaluation(Evaluation):
    """A grid of samples as an image file, and the mean and standard deviation of its pixels."""

    model: DiffusionModel
    """everything but the weights"""
    config: SampleConfig
    every_images: int
    given: Callable[[Sequence[int]], Mapping[str, Any]] = lambda numbers: {}
    """conditions of the images, see `DiffusionModel.draw_share`"""
    name: ClassVar[str] = "grid"
    figures: ClassVar[Mapping[str, Figure]] = {
        name: Figure("values of the grid, as of the network") for name in ("sample_mean", "sample_std")
    }

    def run(self, model: nn.Module, context: EvaluationContext) -> dict[str, float] | None:
        """Draws the grid `context.folder`/<images seen>.png with the weights of `model`, on all processes together."""
        assert isinstance(model, Network), "the averaged model is a copy of the trained one"
        trained, config, accelerator = replace(self.model, net=model), self.config, context.accelerator
        drawn: list[tuple[int, np.ndarray]] = []
        for numbers, step, x in trained.draw_share(
            config.num,
            trained.cycle,
            batch=config.batch,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
            guidance=config.guidance,
            sampler=config.sampler,
            steps=config.steps,
            given=self.given,
            device=accelerator.device,
        ):
            if context.interrupted():
                return None
            if step == config.steps:
                drawn += zip(numbers, x.float().cpu().numpy(), strict=True)
        images = gather_drawn(drawn, config.num, gather)
        if not images:
            return {}
        finished = torch.from_numpy(np.stack(images))
        if accelerator.is_main_process:
            context.folder.mkdir(parents=True, exist_ok=True)
            names = trained.names(trained.cycle(range(config.num)))
            pictures = trained.output_format.from_unit(trained.decoded(finished))
            grid = draw_samples(pictures, trained.output_format, names)
            replace_file(context.folder / f"{context.images_seen:09d}.png", grid.save, flush=False)
            context.log_image("grid", np.asarray(grid.convert("RGB")))
        values = to_uint8(finished) / 127.5 - 1 if trained.pixel_format.limit == 1 else finished.numpy()
        return {"sample_mean": float(values.mean()), "sample_std": float(values.std())}
