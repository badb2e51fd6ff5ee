"""Fields that the configs of all classifiers share."""

from dataclasses import dataclass

from residual.weights.config import check_counts
from resnet.config.checks import check_choices


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Base of the configs of classifiers. Raises ValueError with the field, its value and the rule."""

    num_classes: int = 1000
    """number of classes"""
    in_channels: int = 3
    """number of image channels"""
    mean: tuple[float, ...] | None = None
    """mean of each image channel in the training data, for pixel values in [0, 1]; null: unknown"""
    std: tuple[float, ...] | None = None
    """standard deviation of each image channel in the training data, for pixel values in [0, 1]; null: unknown"""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "num_classes", "in_channels")
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None and len(value) != self.in_channels:
                raise ValueError(f"{name}={value} should have one number for each of the {self.in_channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive: images are divided by it")

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        """Channels and total stride of the output of each level: the stem (level 0), then the stages."""
        raise NotImplementedError

    @property
    def min_size_px(self) -> int:
        """Smallest height and width of an image: the total stride of the last level."""
        return self.feature_info[-1][1]
