"""Learning rate schedules: pure functions of the images seen."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from training.settings import require


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The settings of a schedule. Entries of `SCHEDULES` derive from this class."""

    warmup_images: int = 10_000
    """warm-up: the learning rate rises linearly over these first images"""

    def __post_init__(self) -> None:
        require(self.warmup_images >= 0, self, "warmup_images", "give 0 or more")

    def learning_rate(self, peak: float, images_seen: int, batch: int, images: int) -> float:
        """The learning rate of the update that starts after `images_seen` of `images` images. The first is above 0."""
        if images_seen + batch < self.warmup_images:
            return peak * (images_seen + batch) / self.warmup_images
        progress = (images_seen - self.warmup_images) / max(images - self.warmup_images, 1)
        return peak * self.share(min(max(progress, 0.0), 1.0), images_seen)

    @abstractmethod
    def share(self, progress: float, images_seen: int) -> float:
        """The share of the peak after the warm-up; `progress` is from 0 (end of the warm-up) to 1 (end of the run)."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Constant after the warm-up."""

    def share(self, progress: float, images_seen: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Falls linearly to zero at the end of the run."""

    def share(self, progress: float, images_seen: int) -> float:
        return 1 - progress


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Falls to zero at the end of the run along half a cosine (Loshchilov and Hutter 2017, eq. 5)."""

    def share(self, progress: float, images_seen: int) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Multiplied by a factor at each milestone."""

    milestones_images: tuple[int, ...]
    """images seen at which the learning rate is multiplied by the factor"""
    factor: float = 0.1
    """factor at each milestone"""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = list(self.milestones_images) == sorted({max(1, images) for images in self.milestones_images})
        way_out = "give numbers of images from 1 on, each larger than the one before"
        require(rising and bool(self.milestones_images), self, "milestones_images", way_out)
        require(0 < self.factor < 1, self, "factor", "give a number between 0 and 1")

    def share(self, progress: float, images_seen: int) -> float:
        return self.factor ** sum(images <= images_seen for images in self.milestones_images)


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    """Constant, then falling with the square root of the images seen (Karras et al. 2024, eq. 67)."""

    constant_images: int
    """images seen from which the learning rate falls"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.constant_images >= 1, self, "constant_images", "give at least 1")

    def share(self, progress: float, images_seen: int) -> float:
        return math.sqrt(self.constant_images / max(images_seen, self.constant_images))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "step": Step,
    "inverse_sqrt": InverseSqrt,
}
"""kind -> settings; may be extended before a command line is parsed"""
