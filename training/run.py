"""The interface between `train.py` and the tasks: a run's settings, and how the model is built from them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from training.data import DataConfig, ImageSet
from training.freeze import freeze
from training.step import TrainingSettings
from training.task import Task

T = TypeVar("T", bound=Task)


@dataclass(frozen=True, kw_only=True)
class Run(TrainingSettings, ABC, Generic[T]):
    """All settings of a training run. A task derives from this class and adds its own sections.

    A section is a field that holds a dataclass; the section `model` is that of the network. The string literal under a
    field is its help text.
    """

    init: str | None = None
    """a trained network to start from"""
    freeze: tuple[str, ...] = ()
    """parameters that are not trained, by patterns such as encoder.*"""
    data: DataConfig = field(default_factory=DataConfig)

    derived: ClassVar[dict[str, str]] = {}
    """dotted name of a field that cannot be set -> the reason, such as that it follows from the images"""

    @classmethod
    def init_config(cls, init: str) -> Any:
        """The config of the network `init`, whose values become the defaults of the section `model`. None if unknown.

        Raises ValueError if `init` cannot be read.
        """
        return None

    def outline(self) -> nn.Module:
        """The network on the meta device, as far as it is known without the images: enough for its size and
        for the parameters that are trained.

        By default nothing is known, and memory is not checked.
        """
        return nn.Module()

    def check_init(self) -> None:
        """Raises ValueError if `init` cannot be used, before the images are opened. By default it never can."""
        if self.init is not None:
            raise ValueError(f"init={self.init}: this task does not start from trained weights; leave it out")

    @abstractmethod
    def build(self, images: ImageSet) -> T:
        """The task, with a freshly initialised network. Raises ValueError if run and images do not fit together."""

    def load_init(self, task: T) -> list[str]:
        """Loads the weights of `init`, if given, into the network of `task`. Returns messages to print.

        Raises ValueError if they do not fit.
        """
        return []

    def freeze_weights(self, model: nn.Module) -> list[str]:
        """Freezes what of the model of a task is not trained. Returns messages to print. Called after `load_init`, for
        resumed runs, too. Raises ValueError for patterns that match nothing.
        """
        note = freeze(model, self.freeze)
        return [] if note is None else [note]
