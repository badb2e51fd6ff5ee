"""ResNet: a stem, stages of residual blocks, and a classifier."""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any, Literal

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from residual import (
    Add,
    Chain,
    FrozenBatchNorm2d,
    NormAct,
    Residual,
    SinusoidalEmbedding,
    SqueezeExcite,
    ZeroPad,
    basic_branch,
    bottleneck_branch,
    conv3x3,
    preact_basic_branch,
    preact_block,
    preact_bottleneck_branch,
    projection,
    split_attention_branch,
)
from residual.recompute import Recomputed
from resnet.classifier import Classifier, init_weights
from resnet.config.resnet import BLOCK_TRAITS, Block, ResNetConfig, blocks_of
from resnet.layouts.resnets import LAYOUTS

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": partial(NormAct, act=None),
    "frozen": FrozenBatchNorm2d,
}
ACTS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
PAD_SIDES: dict[str, Literal["end", "split"]] = {"A": "end", "A_split": "split"}


class ResNet(Classifier):
    """A ResNet or one of its descendants: residual blocks between a stem and a linear classifier (He et al. 2015)."""

    config: ResNetConfig
    config_class = ResNetConfig
    layouts = LAYOUTS

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        if config.noise:
            self.embedding = NoiseEmbedding(config.widths[0], emb_channels(config))
        stages = [list(blocks) for _, blocks in groupby(blocks_of(config), key=lambda block: block.stage)]
        self.levels = nn.ModuleList([make_stem(config), *(make_stage(config, blocks) for blocks in stages)])
        self.fc = nn.Linear(config.widths[-1] * config.expansion, config.num_classes)
        self.levels.apply(init_weights)
        if config.zero_init:
            last = f"{'conv' if config.preact else 'bn'}{BLOCK_TRAITS[config.block].convolutions}.weight"
            for block in self.levels.modules():
                if isinstance(block, Residual):
                    nn.init.zeros_(block.branch.get_parameter(last))


def make_stem(config: ResNetConfig) -> Chain:
    """The first layers. With pre-activation they end in a convolution: the first block normalises its input."""
    norm, act, c_in, c = NORMS[config.norm], ACTS[config.act], config.in_channels, config.stem_channels
    if config.stem == "deep":  # He et al. 2019, ResNet-C
        first = Chain(
            conv1=conv3x3(c_in, c // 2, stride=2),
            bn1=norm(c // 2),
            act1=act(),
            conv2=conv3x3(c // 2, c // 2),
            bn2=norm(c // 2),
            act2=act(),
            conv3=conv3x3(c // 2, c),
        )
        return first if config.preact else first.then(bn3=norm(c), act3=act())
    large = nn.Conv2d(c_in, c, kernel_size=7, stride=2, padding=3, bias=False)
    first = Chain(conv1=conv3x3(c_in, c) if config.stem == "conv3" else large)
    return first if config.preact else first.then(bn1=norm(c), act1=act())


def make_stage(config: ResNetConfig, blocks: list[Block]) -> Chain:
    """The blocks of one stage, with the stem's pool before the first, and norm and act after the last if preact."""
    pool = blocks[0].stage == 1 and config.stem != "conv3"
    kind = Recomputed if blocks[0].stage in config.recompute_stages else Chain
    stage = kind(
        pool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pool else None,
        **{str(block.index): make_block(config, block) for block in blocks},
    )
    if config.preact and blocks[0].stage == len(config.blocks_per_stage):
        return stage.then(norm=NORMS[config.norm](blocks[-1].c_out), act=ACTS[config.act]())
    return stage


def make_block(config: ResNetConfig, block: Block) -> nn.Module:
    """One block: the sum of branch and shortcut, or the branch alone in a plain network."""
    branch = make_branch(config, block)
    if config.se_reduction:
        branch = branch.then(se=SqueezeExcite(block.c_out, config.se_reduction))
    act = None if config.preact else ACTS[config.act]()
    if config.shortcut == "none":
        return Chain(branch=branch, act=act)
    shortcut = make_shortcut(config, block)
    return preact_block(branch, shortcut) if config.preact else Residual(branch, shortcut, Add(act))


def make_branch(config: ResNetConfig, block: Block) -> Chain:
    """The branch of the config's block kind."""
    norm = NORMS[config.norm]
    parts: dict[str, Any] = {"norm": norm, "act": ACTS[config.act]}
    if config.noise:
        parts["norm2"] = partial(NormAct, emb_channels=emb_channels(config), act=None)
    basic = (block.c_in, block.c_out, block.stride)
    bottleneck = (block.c_in, block.width, block.c_out, block.stride)
    match config.block:
        case "basic":
            return basic_branch(*basic, **parts)
        case "preact_basic":
            return preact_basic_branch(*basic, dropout=config.dropout, **parts)
        case "bottleneck":
            return bottleneck_branch(*bottleneck, groups=config.groups, stride_in=config.stride_in, **parts)
        case "preact_bottleneck":
            return preact_bottleneck_branch(*bottleneck, stride_in=config.stride_in, **parts)
    return split_attention_branch(*bottleneck, **parts)


def make_shortcut(config: ResNetConfig, block: Block) -> nn.Module | None:
    """The shortcut of a block; None for the identity."""
    c_in, c_out, stride = block.c_in, block.c_out, block.stride
    if stride == 1 and c_in == c_out:
        return None
    if config.shortcut in PAD_SIDES:
        return ZeroPad(c_in, c_out, stride, PAD_SIDES[config.shortcut])
    averaged = config.shortcut == "D" and stride > 1
    pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if averaged else None
    return projection(c_in, c_out, stride, norm=None if config.preact else NORMS[config.norm], pool=pool)


def emb_channels(config: ResNetConfig) -> int:
    """Width of the embedding of the noise level."""
    return 4 * config.widths[0]


class NoiseEmbedding(nn.Module):
    """Embedding of timesteps: sines and cosines, then an MLP with an activated output."""

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.features = SinusoidalEmbedding(channels, "adm")
        self.linear1 = nn.Linear(channels, emb_channels)
        self.linear2 = nn.Linear(emb_channels, emb_channels)
        self.act1, self.act2 = nn.SiLU(), nn.SiLU()

    def forward(self, t: Shaped[Tensor, "b"]) -> Float[Tensor, "b e"]:
        h = self.features(t).to(self.linear1.weight.dtype)
        return self.act2(self.linear2(self.act1(self.linear1(h))))
