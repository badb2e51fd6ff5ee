"""Config of a convolutional Highway network."""

from dataclasses import dataclass

from residual.weights.config import check_counts
from resnet.config.checks import check_dropout, check_stages
from resnet.config.classifier import ClassifierConfig


@dataclass(frozen=True, kw_only=True)
class HighwayConfig(ClassifierConfig):
    """Config of a convolutional Highway network (Srivastava et al. 2015).

    Raises ValueError with the field, its value and the rule.
    """

    num_classes: int = 10
    """number of classes"""
    blocks_per_stage: tuple[int, ...] = (4, 5, 5)
    """highway layers per stage, after the convolution that sets its width; one stage per entry"""
    widths: tuple[int, ...] = (32, 80, 128)
    """channels of each stage; the size is halved between stages"""
    head_channels: int = 100
    """output channels of the 1x1 convolution after the last stage; the classifier takes their means"""
    gate_bias: float = -2.0
    """initial bias of every gate; the lower it is, the closer a fresh layer is to its shortcut"""
    dropout: float = 0.2
    """dropout probability before each stage and before the classifier"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "head_channels")
        check_stages(self, "blocks_per_stage", "widths")
        check_dropout(self)

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        channels = (self.widths[0], *self.widths[:-1], self.head_channels)
        return [(width, 1 << max(0, i - 1)) for i, width in enumerate(channels)]
