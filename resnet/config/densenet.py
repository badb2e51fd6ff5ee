"""Config of a DenseNet."""

from dataclasses import dataclass
from typing import Literal

from residual.weights.config import check_counts
from resnet.config.checks import check_stages
from resnet.config.classifier import ClassifierConfig

Stem = Literal["conv7", "conv3"]


@dataclass(frozen=True, kw_only=True)
class DenseNetConfig(ClassifierConfig):
    """Config of a DenseNet (Huang et al. 2017). Each stage works at half the size of the one before.

    Raises ValueError with the field, its value and the rule.
    """

    blocks_per_stage: tuple[int, ...] = (6, 12, 24, 16)
    """layers per stage (the paper's dense block); one stage per entry"""
    growth: int = 32
    """channels that each layer adds"""
    bottleneck: int | None = 4
    """width of the 1x1 convolution before each 3x3, as a multiple of `growth` (DenseNet-B); null: no 1x1 convolution"""
    compression: float = 0.5
    """fraction of the channels that is kept between two stages (DenseNet-C)"""
    stem: Stem = "conv7"
    """first layers: 7x7 with stride 2 and a pool (`conv7`), or one 3x3 and no pool (`conv3`: CIFAR)"""
    stem_channels: int = 64
    """output channels of the stem"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "growth", "bottleneck", "stem_channels")
        check_stages(self, "blocks_per_stage")
        if not 0 < self.compression <= 1:
            raise ValueError(f"compression={self.compression} must be above 0 and at most 1, which keeps all channels")

    @property
    def widths(self) -> list[int]:
        """Output channels of each stage."""
        widths: list[int] = []
        for count in self.blocks_per_stage:
            c_in = int(widths[-1] * self.compression) if widths else self.stem_channels
            widths.append(c_in + count * self.growth)
        return widths

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        stem, first = (2, 4) if self.stem == "conv7" else (1, 1)
        return [(self.stem_channels, stem), *((width, first << i) for i, width in enumerate(self.widths))]
