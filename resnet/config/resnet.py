"""Config of a ResNet, and the list of blocks that follows from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from residual.weights.config import check_counts
from resnet.config.checks import check_dropout, check_stages
from resnet.config.classifier import ClassifierConfig

BlockKind = Literal["basic", "bottleneck", "split_attention", "preact_basic", "preact_bottleneck"]
Stem = Literal["conv7", "deep", "conv3"]
Shortcut = Literal["A", "A_split", "B", "D", "none"]
NormKind = Literal["batch", "group", "frozen"]
ActKind = Literal["relu", "silu"]
StridePlace = Literal["3x3", "1x1"]


class BlockTraits(NamedTuple):
    """What the layers around a block depend on."""

    convolutions: int
    """in a branch, one after the other"""
    expansion: int
    """output channels as a multiple of the base width"""
    preact: bool
    """whether norms and activations come before the convolutions"""


BLOCK_TRAITS: dict[BlockKind, BlockTraits] = {
    "basic": BlockTraits(convolutions=2, expansion=1, preact=False),
    "bottleneck": BlockTraits(convolutions=3, expansion=4, preact=False),
    "split_attention": BlockTraits(convolutions=3, expansion=4, preact=False),
    "preact_basic": BlockTraits(convolutions=2, expansion=1, preact=True),
    "preact_bottleneck": BlockTraits(convolutions=3, expansion=4, preact=True),
}
# Fields that act on some blocks only: the value that has no effect, and the blocks.
_BLOCKS_OF_FIELD: dict[str, tuple[object, tuple[BlockKind, ...]]] = {
    "groups": (1, ("bottleneck",)),
    "group_width": (64, ("bottleneck",)),
    "stride_in": ("3x3", ("bottleneck", "preact_bottleneck")),
    "dropout": (0, ("preact_basic",)),
    "noise": (False, ("basic", "bottleneck", "preact_basic", "preact_bottleneck")),
}


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ClassifierConfig):
    """Config of a ResNet. Stage 1 works at the stem's size, each further stage at half the size of the one before.

    Raises ValueError with the field, its value and the rule.
    """

    block: BlockKind = "basic"
    """residual block: two 3x3 convolutions (`basic`); 1x1, 3x3, 1x1 (`bottleneck`); a bottleneck with split attention
    (`split_attention`: ResNeSt); or one of the first two with norms before the convolutions (`preact_…`)"""
    blocks_per_stage: tuple[int, ...] = (2, 2, 2, 2)
    """blocks per stage; one stage per entry"""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """base width of each stage: the output channels of a basic block, a quarter of those of the others"""
    groups: int = 1
    """groups of a bottleneck's 3x3 convolution (ResNeXt: the cardinality)"""
    group_width: int = 64
    """channels of each of those groups where the base width is 64 (wide_resnet50_2: 128)"""
    stem: Stem = "conv7"
    """first layers: 7x7 with stride 2 and a pool (`conv7`), three 3x3 and a pool (`deep`), or one 3x3 and no pool
    (`conv3`: CIFAR)"""
    stem_channels: int = 64
    """output channels of the stem; a deep one begins with half of them"""
    shortcut: Shortcut = "B"
    """shortcut where width or size change: zeros after the channels (`A`: fb.resnet.torch) or on both sides of them
    (`A_split`: akamaster), a projection (`B`), or a projection after averaging (`D`: ResNet-D); or no shortcuts at all
    (`none`: a plain network)"""
    stride_in: StridePlace = "3x3"
    """convolution of a bottleneck that has the stride: the 3x3 (v1.5: torchvision) or the first 1x1 (v1: He et al.)"""
    se_reduction: int | None = None
    """squeeze-and-excitation at the end of each branch, with the channels reduced by this factor and rounded to a
    multiple of 8; null: none"""
    norm: NormKind = "batch"
    """normalisation: over the batch, over 32 groups of channels, or by frozen statistics"""
    act: ActKind = "relu"
    """activation"""
    dropout: float = 0.0
    """dropout probability between the convolutions of a preact_basic block (wide ResNets)"""
    zero_init: bool = False
    """whether the last norm of a branch (preact: its last convolution) is initialised with zeros, so that a fresh block
    equals its shortcut"""
    noise: bool = False
    """whether the network is conditioned on a noise level: its timestep scales and shifts the second norm of each
    block"""
    recompute_stages: tuple[int, ...] = ()
    """stages, counted from 1, whose activations are recomputed in the backward pass: less memory, about a third more
    time"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "groups", "group_width", "stem_channels", "se_reduction")
        check_dropout(self)
        check_stages(self, "blocks_per_stage", "widths")
        _check_combinations(self)

    @property
    def preact(self) -> bool:
        """Whether norms and activations come before the convolutions."""
        return BLOCK_TRAITS[self.block].preact

    @property
    def expansion(self) -> int:
        """Output channels of a block as a multiple of the base width."""
        return BLOCK_TRAITS[self.block].expansion

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        stem, first = (1, 1) if self.stem == "conv3" else (2, 4)
        widths = (width * self.expansion for width in self.widths)
        return [(self.stem_channels, stem), *((width, first << i) for i, width in enumerate(widths))]


@dataclass(frozen=True)
class Block:
    stage: int
    """counted from 1"""
    index: int
    """in the stage, counted from 0"""
    c_in: int
    width: int
    """channels between the first and the last convolution of a bottleneck"""
    c_out: int
    stride: int


def blocks_of(config: ResNetConfig) -> Iterator[Block]:
    """All blocks, from the first to the last."""
    c_in = config.stem_channels
    for stage, (base, count) in enumerate(zip(config.widths, config.blocks_per_stage, strict=True), start=1):
        width, c_out = base * config.group_width // 64 * config.groups, base * config.expansion
        for index in range(count):
            yield Block(stage, index, c_in, width, c_out, stride=2 if stage > 1 and index == 0 else 1)
            c_in = c_out


def _check_combinations(config: ResNetConfig) -> None:
    """Raises ValueError for a field that has no effect on, or no meaning for, a network of the other fields."""
    stages = len(config.blocks_per_stage)
    if wrong := [stage for stage in config.recompute_stages if not 1 <= stage <= stages]:
        raise ValueError(
            f"recompute_stages={config.recompute_stages}: there is no stage {wrong[0]}, only 1 to {stages}"
        )
    for name, (unused, kinds) in _BLOCKS_OF_FIELD.items():
        if (value := getattr(config, name)) != unused and config.block not in kinds:
            raise ValueError(f"{name}={value!r} is for blocks of kind {' or '.join(kinds)}, not {config.block}")
    if config.stem == "deep" and config.stem_channels < 2:
        raise ValueError(
            f"stem_channels={config.stem_channels} must be at least 2 for a deep stem, which begins with half of them"
        )
    if min(config.widths) * config.group_width < 64:
        raise ValueError(
            f"group_width={config.group_width} leaves no channels of a base width of {min(config.widths)}: "
            "give at least 64 / base width"
        )
    if config.zero_init and config.shortcut == "none":
        raise ValueError("zero_init=True is for networks with shortcuts, not for shortcut='none'")
    if config.noise and config.norm != "group":
        raise ValueError(
            f"noise=True needs norm='group', not norm={config.norm!r}, which mixes images or never changes"
        )
