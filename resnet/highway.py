"""Highway networks: residual blocks whose merge is a learned gate."""

from torch import nn

from residual import Chain, Gate, Residual, highway_branch
from resnet.classifier import Classifier
from resnet.config.highway import HighwayConfig


class HighwayNet(Classifier):
    """A Highway network: 3×3 convolutions, each gated against its own input (Srivastava et al. 2015).

    As in the authors' networks for CIFAR there are no norms; images should have mean zero.
    """

    config: HighwayConfig
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
    """A plain convolution that sets a stage's width, after dropout and, in later stages, a pool."""
    c_in = config.in_channels if stage == 1 else config.widths[stage - 2]
    return Chain(
        pool=nn.MaxPool2d(2) if stage > 1 else None,
        dropout=nn.Dropout(config.dropout),
        conv1=nn.Conv2d(c_in, config.widths[stage - 1], kernel_size=3, padding=1),
        act1=nn.ReLU(),
    )


def make_stage(config: HighwayConfig, stage: int) -> Chain:
    """The highway layers of one stage. The first stage's entry is level 0; the last stage ends in the head."""
    width = config.widths[stage - 1]
    layers = {
        str(i): Residual(highway_branch(width), merge=Gate(width, config.gate_bias))
        for i in range(config.blocks_per_stage[stage - 1])
    }
    return Chain(
        entry=make_entry(config, stage) if stage > 1 else None,
        **layers,
        head=make_head(config) if stage == len(config.widths) else None,
    )


def make_head(config: HighwayConfig) -> Chain:
    """A 1×1 convolution to the maps whose means the classifier takes. Dropping a whole map drops its mean."""
    conv = nn.Conv2d(config.widths[-1], config.head_channels, kernel_size=1)
    return Chain(conv=conv, act=nn.ReLU(), dropout=nn.Dropout2d(config.dropout))
