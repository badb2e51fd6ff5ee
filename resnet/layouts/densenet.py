"""Weight names of torchvision's DenseNet. timm uses the same."""

import re
from collections.abc import Iterator, Mapping
from typing import get_args

from torch import Tensor

from residual.weights.keymap import Place, Rule, Table
from residual.weights.layout import Layout, inexpressible, require
from resnet.config.densenet import DenseNetConfig
from resnet.layout_names import DenseNetLayoutName

TABLE: Table = {
    "module": [Rule("", "")],
    "stem": [Rule("conv1", "conv0"), Rule("norm1", "norm0")],
    "layer": [Rule(f"branch.{node}", node) for node in ("norm1", "conv1", "norm2", "conv2")],
    "transition": [Rule("norm", "norm"), Rule("conv", "conv")],
}
_OLD = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def places(config: DenseNetConfig) -> Iterator[Place]:
    """Every layer and transition with its prefix. Theirs calls the last norm `norm5` for any number of blocks."""
    yield Place("stem", "levels.0", "features")
    for block, count in enumerate(config.blocks_per_stage, start=1):
        yield Place("transition", f"levels.{block}.transition", f"features.transition{block - 1}")
        for layer in range(count):
            yield Place("layer", f"levels.{block}.{layer}", f"features.denseblock{block}.denselayer{layer + 1}")
    yield Place("module", f"levels.{len(config.blocks_per_stage)}.norm", "features.norm5")
    yield Place("module", "fc", "classifier")


def current_names(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames `denselayer1.norm.1.weight` of the published files to today's `denselayer1.norm1.weight`."""
    return {_OLD.sub(r"\1\2", name): tensor for name, tensor in theirs.items()}


def check(config: DenseNetConfig) -> None:
    """Raises ValueError, with the reason, for a config that torchvision's `DenseNet` cannot express."""
    require("torchvision's DenseNet", config, {"stem": ("conv7",), "compression": (0.5,)})
    if config.bottleneck is None:
        raise inexpressible("torchvision's DenseNet", "bottleneck=None", "each of its layers has two convolutions")


LAYOUTS = {name: Layout(places, TABLE, check, clean=current_names) for name in get_args(DenseNetLayoutName)}
