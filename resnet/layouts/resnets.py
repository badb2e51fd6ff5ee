"""Weight names of ResNets in torchvision, timm, transformers, and collections of networks for CIFAR."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import get_args

from torch import Tensor

from residual.weights.keymap import Place, Rule, Table, conv_to_linear
from residual.weights.layout import Layout, require
from resnet.config.resnet import ResNetConfig, blocks_of
from resnet.layout_names import ResNetLayoutName

_ATTENTION = ("conv2.conv", "conv2.bn0", "conv2.fc1", "conv2.bn1", "conv2.fc2", "se.fc1", "se.fc2")
_BRANCH = [Rule(f"branch.{name}", name) for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", *_ATTENTION)]
_PREACT = ("norm1", "conv1", "norm2", "conv2", "norm3", "conv3")

TABLE: Table = {
    "module": [Rule("", "")],
    "stem": [Rule("conv1", "conv1"), Rule("bn1", "bn1")],
    "deep stem": [
        *(Rule(ours, f"conv1.{i}") for ours, i in (("conv1", 0), ("bn1", 1), ("conv2", 3), ("bn2", 4), ("conv3", 6))),
        Rule("bn3", "bn1"),
    ],
    "block": [*_BRANCH, Rule("shortcut.conv", "downsample.0"), Rule("shortcut.norm", "downsample.1")],
    # module number 0 of theirs averages, or is the identity, and has no weights
    "averaging block": [*_BRANCH, Rule("shortcut.conv", "downsample.1"), Rule("shortcut.norm", "downsample.2")],
    "preact block": [
        *(Rule(f"branch.{name}", name) for name in _PREACT),
        Rule("norm1", "norm1"),
        *(Rule(f"sum.branch.{name}", name) for name in _PREACT),
        Rule("sum.shortcut.conv", "downsample.conv"),
    ],
    # kuangliu's pytorch-cifar and akamaster's pytorch_resnet_cifar10
    "cifar block": [*_BRANCH, Rule("shortcut.conv", "shortcut.0"), Rule("shortcut.norm", "shortcut.1")],
    "transformers stem": [Rule("conv1", "convolution"), Rule("bn1", "normalization")],
    "transformers block": [
        *(
            Rule(f"branch.{ours}{i + 1}", f"layer.{i}.{theirs}")
            for i in range(3)
            for ours, theirs in (("conv", "convolution"), ("bn", "normalization"))
        ),
        Rule("shortcut.conv", "shortcut.convolution"),
        Rule("shortcut.norm", "shortcut.normalization"),
    ],
    "1x1 classifier": [Rule("", "", conv_to_linear)],
}


def places(config: ResNetConfig, classifier: str = "fc", block_kind: str = "block") -> Iterator[Place]:
    """Every block with its prefix (`layer1.0`, …) in torchvision and the libraries that follow it."""
    yield Place("deep stem" if config.stem == "deep" else "stem", "levels.0", "")
    kind = "averaging block" if config.shortcut == "D" else block_kind
    for block in blocks_of(config):
        yield Place(kind, f"levels.{block.stage}.{block.index}", f"layer{block.stage}.{block.index}")
    yield Place("module", "fc", classifier)


def preact_places(config: ResNetConfig) -> Iterator[Place]:
    """Every block with its prefix in timm's `resnetv2`, which counts stages from 0."""
    yield Place("module", "levels.0.conv1", "stem.conv")
    for block in blocks_of(config):
        theirs = f"stages.{block.stage - 1}.blocks.{block.index}"
        yield Place("preact block", f"levels.{block.stage}.{block.index}", theirs)
    yield Place("module", f"levels.{len(config.blocks_per_stage)}.norm", "norm")
    yield Place("1x1 classifier", "fc", "head.fc")


def transformers_places(config: ResNetConfig) -> Iterator[Place]:
    """Every block with its prefix in transformers' `ResNetForImageClassification`, which counts stages from 0."""
    yield Place("transformers stem", "levels.0", "resnet.embedder.embedder")
    for block in blocks_of(config):
        theirs = f"resnet.encoder.stages.{block.stage - 1}.layers.{block.index}"
        yield Place("transformers block", f"levels.{block.stage}.{block.index}", theirs)
    yield Place("module", "fc", "classifier.1")


def with_transformers_prefix(theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The names of transformers' `ResNetModel`, which has no classifier, as those of the network with one."""
    parts = ("embedder.", "encoder.")
    return {f"resnet.{name}" if name.startswith(parts) else name: tensor for name, tensor in theirs.items()}


_IMAGENET = {"widths": ((64, 128, 256, 512),), "noise": (False,), "stride_in": ("3x3",), "dropout": (0.0,)}
_TORCHVISION = _IMAGENET | {
    "block": ("basic", "bottleneck"),
    "stem": ("conv7",),
    "stem_channels": (64,),
    "shortcut": ("B",),
    "se_reduction": (None,),
    "act": ("relu",),
}
_TRANSFORMERS = _TORCHVISION | {"groups": (1,), "group_width": (64,), "stride_in": ("3x3", "1x1")}
_TIMM = _IMAGENET | {"stem": ("conv7", "deep"), "shortcut": ("B", "D")}
_TIMM_PREACT = _TIMM | {"stem": ("conv7",), "se_reduction": (None,)}
_CIFAR = {
    "block": ("basic", "bottleneck"),
    "stem": ("conv3",),
    "shortcut": ("B", "none"),
    "se_reduction": (None,),
    "act": ("relu",),
    "noise": (False,),
    "stride_in": ("3x3",),
}
_AKAMASTER = _CIFAR | {
    "block": ("basic",),
    "widths": ((16, 32, 64),),
    "stem_channels": (16,),
    "shortcut": ("A_split", "B"),
}


def check_timm(config: ResNetConfig) -> None:
    """Raises ValueError, with the reason, for a config that timm's `ResNet` and `ResNetV2` cannot express."""
    require("timm's ResNetV2" if config.preact else "timm's ResNet", config, _TIMM_PREACT if config.preact else _TIMM)


_LAYOUTS: dict[ResNetLayoutName, Layout] = {
    "torchvision": Layout(places, TABLE, partial(require, "torchvision's ResNet", fixed=_TORCHVISION)),
    "timm": Layout(lambda config: (preact_places if config.preact else places)(config), TABLE, check_timm),
    "akamaster": Layout(
        partial(places, classifier="linear", block_kind="cifar block"),
        TABLE,
        partial(require, "akamaster's ResNet", fixed=_AKAMASTER),
    ),
    "kuangliu": Layout(
        partial(places, classifier="linear", block_kind="cifar block"),
        TABLE,
        partial(require, "kuangliu's ResNet", fixed=_CIFAR),
    ),
    "chenyaofo": Layout(places, TABLE, partial(require, "chenyaofo's CifarResNet", fixed=_CIFAR)),
    "transformers": Layout(
        transformers_places,
        TABLE,
        partial(require, "transformers' ResNet", fixed=_TRANSFORMERS),
        clean=with_transformers_prefix,
    ),
}
LAYOUTS: dict[str, Layout] = {name: _LAYOUTS[name] for name in get_args(ResNetLayoutName)}
