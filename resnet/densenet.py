"""DenseNet: residual blocks that put shortcut and branch side by side instead of adding them."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from residual import Chain, Concat, Project, Residual, conv3x3, dense_branch
from resnet.checks import check_choices, check_positive, check_stages, check_statistics
from resnet.classifier import Classifier, init_weights
from resnet.layouts.densenet import LAYOUTS

Stem = Literal["conv7", "conv3"]


@dataclass(frozen=True, kw_only=True)
class DenseNetConfig:
    """Shape of a DenseNet. The size is halved between its stages.

    Raises ValueError with the value, the rule and the way out.
    """

    num_classes: int = 1000
    """classes that are told apart"""
    in_channels: int = 3
    """channels of the images"""
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    """layers per stage, which the paper calls a dense block; one stage per entry"""
    growth: int = 32
    """channels that each layer adds"""
    bottleneck: int | None = 4
    """channels that a 1x1 convolution makes before each 3x3, as a multiple of `growth` (DenseNet-B); none: without"""
    compression: float = 0.5
    """share of the channels that is kept between two stages (DenseNet-C)"""
    stem: Stem = "conv7"
    """first layers: 7x7 with stride 2 and a pool (`conv7`), or one 3x3 and no pool (`conv3`: CIFAR)"""
    stem_channels: int = 64
    """channels that the stem puts out"""
    mean: tuple[float, ...] | None = None
    """mean of each channel of the training images in [0, 1], which is taken off before the network; none: unknown"""
    std: tuple[float, ...] | None = None
    """standard deviation of each channel, by which is divided after that; none: unknown"""

    def __post_init__(self) -> None:
        check_choices(self, {"stem": Stem})
        check_positive(self, ("num_classes", "in_channels", "growth", "bottleneck", "stem_channels"))
        check_stages(self, "blocks")
        check_statistics(self)
        if not 0 < self.compression <= 1:
            raise ValueError(f"compression={self.compression} must be above 0 and at most 1, which keeps all channels")

    @property
    def widths(self) -> list[int]:
        """Channels that each stage puts out."""
        widths: list[int] = []
        for count in self.blocks:
            c_in = int(widths[-1] * self.compression) if widths else self.stem_channels
            widths.append(c_in + count * self.growth)
        return widths

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        """Channels and total stride of each level's output: the stem (level 0), then the stages."""
        stem, first = (2, 4) if self.stem == "conv7" else (1, 1)
        return [(self.stem_channels, stem), *((width, first << i) for i, width in enumerate(self.widths))]


class DenseNet(Classifier):
    """A DenseNet: each layer adds a few channels to all that were made before it (Huang et al. 2017)."""

    config_class = DenseNetConfig
    layouts = LAYOUTS

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__(config)
        stages = (make_stage(config, stage) for stage in range(1, len(config.blocks) + 1))
        self.levels = nn.ModuleList([make_stem(config), *stages])
        self.fc = nn.Linear(config.widths[-1], config.num_classes)
        self.levels.apply(init_weights)


def make_stem(config: DenseNetConfig) -> Chain:
    """The first layers; for CIFAR they end in a convolution, as the first dense layer normalises what it gets."""
    c_in, c = config.in_channels, config.stem_channels
    if config.stem == "conv3":
        return Chain(conv1=conv3x3(c_in, c))
    conv = nn.Conv2d(c_in, c, kernel_size=7, stride=2, padding=3, bias=False)
    return Chain(conv1=conv, norm1=nn.BatchNorm2d(c), act1=nn.ReLU())


def make_stage(config: DenseNetConfig, stage: int) -> Chain:
    """One dense block: before the first the stem's pool, before others a transition, after the last norm and act."""
    c_out, count = config.widths[stage - 1], config.blocks[stage - 1]
    c_in = c_out - count * config.growth
    bottleneck = None if config.bottleneck is None else config.bottleneck * config.growth
    layers = {
        str(i): Residual(dense_branch(c_in + i * config.growth, config.growth, bottleneck), merge=Concat())
        for i in range(count)
    }
    pool = stage == 1 and config.stem == "conv7"
    last = stage == len(config.blocks)
    return Chain(
        pool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pool else None,
        transition=make_transition(config, stage) if stage > 1 else None,
        **layers,
        norm=nn.BatchNorm2d(c_out) if last else None,
        act=nn.ReLU() if last else None,
    )


def make_transition(config: DenseNetConfig, stage: int) -> Chain:
    """What stands before the dense block of a later stage: fewer channels, half the size."""
    before = config.widths[stage - 2]
    kept = int(before * config.compression)
    conv = Project(before, kept, bias=False)
    return Chain(norm=nn.BatchNorm2d(before), act=nn.ReLU(), conv=conv, pool=nn.AvgPool2d(2))
