"""The interface between the training loop and what it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save_model
from torch import Tensor, nn

from training.random import GlobalRandom


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device: float32 images in [-1, 1], with labels and vectors if there are any.

    An image has the channels of the target, then those of its condition. Vectors are not scaled.

    A task whose `prepare` adds to it, such as an augmentation label, derives its own record from this one.
    """

    image: Float[Tensor, "b c h w"]
    label: Int[Tensor, "b"] | None
    vector: Float[Tensor, "b v"] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class EvaluationContext:
    """Everything besides the model that an evaluation needs."""

    folder: Path
    """for files, which only the main process writes; it may have to be created"""
    images_seen: int
    accelerator: Accelerator
    interrupted: Callable[[], object]
    """true once the run is to stop; every process must call it equally often, and all get the same value"""
    log_image: Callable[[str, UInt8[np.ndarray, "h w 3"]], object] = lambda name, pixels: None
    """sends an image to the trackers; to be called on the main process"""


@dataclass(frozen=True)
class Figure:
    """What a number is that an evaluation logs: how it is drawn, and whether it decides which model is the best."""

    axis: str
    """quantity and unit; figures of the same axis are drawn together"""
    log: bool = False
    """whether the axis is logarithmic"""
    dashed: bool = False
    """a limit that others are compared with, such as the floor of a distance"""
    best: Literal["lowest", "highest"] | None = None
    """of the leading figure: the model with this value is the best one of a run"""

    @property
    def choose(self) -> Callable[..., Any]:
        """`min` or `max`: the function that chooses the best of several values."""
        return min if self.best == "lowest" else max


def limits_of(figure: Figure, figures: Mapping[str, Figure]) -> list[str]:
    """The names of the figures that are limits on the axis of this one."""
    return [name for name, each in figures.items() if each.dashed and each.axis == figure.axis]


class Evaluation(ABC):
    """A measurement of the averaged model at a fixed interval."""

    name: ClassVar[str]
    every_images: int
    """Training images between two runs. The end of the training run is always evaluated."""
    figures: ClassVar[Mapping[str, Figure]] = {}
    """The numbers that are drawn over the images seen; at most one of them is the leading figure."""

    @property
    def conditions(self) -> dict[str, Any]:
        """What the leading figure depends on besides the weights, as plain values: others are not compared with it."""
        return {}

    def plan(self, model: nn.Module, folder: Path, record: bool = True) -> tuple[str, float] | None:
        """Decides before the first `run` how much is measured; what that is, and about how many seconds it takes.

        Called on every process with the averaged model in eval mode and without gradients. `folder` is that of the
        context, in which a decision may be recorded for the rest of the run, unless `record` is false. By default
        nothing is decided (None).
        """
        return None

    @abstractmethod
    def run(self, model: nn.Module, context: EvaluationContext) -> Mapping[str, float] | None:
        """The numbers to log; None if `context.interrupted()` was true.

        Called on every process with the EMA model in eval mode and without gradients.
        """


def plan_line(
    evaluation: Evaluation, plan: tuple[str, float], images: int, images_per_second: float | None = None
) -> str:
    """What an evaluation costs, with its share of the time of a run of so many `images` where their speed is known."""
    what, seconds = plan
    text = f"{evaluation.name}: {what} takes about {seconds:.{1 if seconds < 10 else 0}f} s"
    if images_per_second is None:
        return text
    training = min(evaluation.every_images, images) / images_per_second
    return f"{text}, {100 * seconds / (seconds + training):.0f} % of the run"


Prepared = TypeVar("Prepared", bound=Batch)
"""the batch that a task's `prepare` returns and its `loss` takes"""


class Task(ABC, Generic[Prepared]):
    """A model with its augmentation, its loss and its evaluations."""

    foundation: str = ""
    """SHA-256 of trained weights that the loss depends on, which a resumed run must have again; empty: of none"""

    def __init__(self, model: nn.Module, evaluations: tuple[Evaluation, ...] = ()) -> None:
        self.model, self.evaluations = model, evaluations

    @property
    def leading(self) -> tuple[Evaluation, str, Figure] | None:
        """The evaluation with the leading figure, and its name; None if no evaluation declares one."""
        pairs = ((each, name, figure) for each in self.evaluations for name, figure in each.figures.items())
        return next((found for found in pairs if found[2].best is not None), None)

    @property
    def figures(self) -> dict[str, Figure]:
        """The numbers of all evaluations, those of the leading one first."""
        first = self.leading
        ordered = sorted(self.evaluations, key=lambda each: first is None or each is not first[0])
        return {name: figure for each in ordered for name, figure in each.figures.items()}

    def prepare(self, batch: Batch, random: GlobalRandom) -> Prepared:
        """All augmentation, on the device; none by default. `random` is the stream "augment" of this update."""
        unchanged: Any = batch
        return unchanged

    @abstractmethod
    def loss(self, model: nn.Module, batch: Prepared, random: GlobalRandom) -> Float[Tensor, "b"]:
        """One float32 loss per image. `model` is `self.model` prepared for the devices (autocast, several processes).

        All random numbers come from `random`, the stream "task" of this update, so that the result does not depend on
        the number of processes.
        """

    def after_update(self, model: nn.Module) -> None:
        """Change the weights of `model`, which is `self.model`, after each step of the optimizer and before averaging.

        Called on every process, without gradients.
        """
        return

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write `model` and everything needed to use it into the existing empty `folder`; on the main process only.

        By default only the weights, as model.safetensors.
        """
        save_model(model, str(folder / "model.safetensors"))

    def example(self, image: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Inputs for `self.model(*inputs)`, for these images, which have their shape and device only."""
        return (image,)
