"""DenseNet: residual blocks whose merge concatenates shortcut and branch."""

from torch import nn

from residual import Chain, Concat, Project, Residual, conv3x3, dense_branch
from resnet.classifier import Classifier, init_weights
from resnet.config.densenet import DenseNetConfig
from resnet.layouts.densenet import LAYOUTS


class DenseNet(Classifier):
    """A DenseNet: each layer adds a few channels to those of all layers before it (Huang et al. 2017)."""

    config: DenseNetConfig
    config_class = DenseNetConfig
    layouts = LAYOUTS

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__(config)
        stages = (make_stage(config, stage) for stage in range(1, len(config.blocks_per_stage) + 1))
        self.levels = nn.ModuleList([make_stem(config), *stages])
        self.fc = nn.Linear(config.widths[-1], config.num_classes)
        self.levels.apply(init_weights)


def make_stem(config: DenseNetConfig) -> Chain:
    """The first layers. For CIFAR they are one convolution: the first dense layer normalises its input."""
    c_in, c = config.in_channels, config.stem_channels
    if config.stem == "conv3":
        return Chain(conv1=conv3x3(c_in, c))
    conv = nn.Conv2d(c_in, c, kernel_size=7, stride=2, padding=3, bias=False)
    return Chain(conv1=conv, norm1=nn.BatchNorm2d(c), act1=nn.ReLU())


def make_stage(config: DenseNetConfig, stage: int) -> Chain:
    """One dense block, after the stem's pool (first) or a transition (others); norm and act follow the last."""
    c_out, count = config.widths[stage - 1], config.blocks_per_stage[stage - 1]
    c_in = c_out - count * config.growth
    bottleneck = None if config.bottleneck is None else config.bottleneck * config.growth
    layers = {
        str(i): Residual(dense_branch(c_in + i * config.growth, config.growth, bottleneck), merge=Concat())
        for i in range(count)
    }
    pool = stage == 1 and config.stem == "conv7"
    last = stage == len(config.blocks_per_stage)
    return Chain(
        pool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pool else None,
        transition=make_transition(config, stage) if stage > 1 else None,
        **layers,
        norm=nn.BatchNorm2d(c_out) if last else None,
        act=nn.ReLU() if last else None,
    )


def make_transition(config: DenseNetConfig, stage: int) -> Chain:
    """The layers before the dense block of a later stage: fewer channels, half the size."""
    before = config.widths[stage - 2]
    kept = int(before * config.compression)
    conv = Project(before, kept, bias=False)
    return Chain(norm=nn.BatchNorm2d(before), act=nn.ReLU(), conv=conv, pool=nn.AvgPool2d(2))
