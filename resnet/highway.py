"""Highway networks: residual blocks whose merge is a gate that is learned."""

from dataclasses import dataclass

from torch import nn

from residual import Chain, Gate, Residual, highway_branch
from resnet.checks import check_positive, check_shares, check_stages, check_statistics
from resnet.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class HighwayConfig:
    """Shape of a convolutional Highway network. Raises ValueError with the value, the rule and the way out."""

    num_classes: int = 10
    """classes that are told apart"""
    in_channels: int = 3
    """channels of the images"""
    blocks: tuple[int, ...] = (4, 5, 5)
    """highway layers per stage, after the convolution that sets its width; one stage per entry"""
    widths: tuple[int, ...] = (32, 80, 128)
    """width of each stage, in channels; the size is halved between stages"""
    head_channels: int = 100
    """channels of the 1x1 convolution after the last stage, whose means the classifier works on"""
    gate_bias: float = -2.0
    """bias with which every gate starts: the further below zero, the closer a layer starts to its shortcut"""
    dropout: float = 0.2
    """share of numbers dropped before each stage, and of means before the classifier, in training"""
    mean: tuple[float, ...] | None = None
    """mean of each channel of the training images in [0, 1], which is taken off before the network; none: unknown"""
    std: tuple[float, ...] | None = None
    """standard deviation of each channel, by which is divided after that; none: unknown"""

    def __post_init__(self) -> None:
        check_positive(self, ("num_classes", "in_channels", "head_channels"))
        check_stages(self, "blocks", "widths")
        check_shares(self, ("dropout",))
        check_statistics(self)

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        """Channels and total stride of each level's output: the first convolution (level 0), then the stages."""
        channels = (self.widths[0], *self.widths[:-1], self.head_channels)
        return [(width, 1 << max(0, i - 1)) for i, width in enumerate(channels)]


class HighwayNet(Classifier):
    """A Highway network: thin 3×3 convolutions, each gated against its own input (Srivastava et al. 2015).

    As in the authors' networks for CIFAR there is no norm, and their images have mean zero.
    """

    config_class = HighwayConfig

    def __init__(self, config: HighwayConfig) -> None:
        super().__init__(config)
        stages = (make_stage(config, stage) for stage in range(1, len(config.widths) + 1))
        self.levels = nn.ModuleList([make_entry(config, 1), *stages])
        self.fc = nn.Linear(config.head_channels, config.num_classes)
        for name, weights in self.named_parameters():  # the authors' "xavier" filler; gates keep their bias
            if weights.dim() > 1:
                nn.init.kaiming_uniform_(weights, nonlinearity="linear")
            elif ".merge." not in name:
                nn.init.zeros_(weights)


def make_entry(config: HighwayConfig, stage: int) -> Chain:
    """What sets a stage's width: a plain convolution, before it dropout and in later stages a pool."""
    c_in = config.in_channels if stage == 1 else config.widths[stage - 2]
    return Chain(
        pool=nn.MaxPool2d(2) if stage > 1 else None,
        dropout=nn.Dropout(config.dropout),
        conv1=nn.Conv2d(c_in, config.widths[stage - 1], kernel_size=3, padding=1),
        act1=nn.ReLU(),
    )


def make_stage(config: HighwayConfig, stage: int) -> Chain:
    """The highway layers of one stage; the first stage's entry is level 0, after the last stage comes the head."""
    width = config.widths[stage - 1]
    layers = {
        str(i): Residual(highway_branch(width), merge=Gate(width, config.gate_bias))
        for i in range(config.blocks[stage - 1])
    }
    return Chain(
        entry=make_entry(config, stage) if stage > 1 else None,
        **layers,
        head=make_head(config) if stage == len(config.widths) else None,
    )


def make_head(config: HighwayConfig) -> Chain:
    """A 1×1 convolution to the maps whose means are classified. Dropping a whole map is dropping its mean."""
    conv = nn.Conv2d(config.widths[-1], config.head_channels, kernel_size=1)
    return Chain(conv=conv, act=nn.ReLU(), dropout=nn.Dropout2d(config.dropout))
