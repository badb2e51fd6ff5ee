"""The shape of a ResNet: a frozen description that can be written as JSON, and the list of blocks that follows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from resnet.checks import check_choices, check_positive, check_shares, check_stages, check_statistics

BlockKind = Literal["basic", "bottleneck", "split_attention", "preact_basic", "preact_bottleneck"]
Stem = Literal["conv7", "deep", "conv3"]
Shortcut = Literal["A", "B", "C", "D", "none"]
NormKind = Literal["batch", "group", "frozen"]
ActKind = Literal["relu", "silu"]
Side = Literal["end", "split"]
StridePlace = Literal["3x3", "1x1"]

_CHOICES = {
    "block": BlockKind,
    "stem": Stem,
    "shortcut": Shortcut,
    "pad_side": Side,
    "stride_in": StridePlace,
    "norm": NormKind,
    "act": ActKind,
}


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Shape of a ResNet. Stage 1 works at the stem's size, each further stage at half the size of the one before.

    Raises ValueError with the value, the rule and the way out.
    """

    num_classes: int = 1000
    """classes that are told apart"""
    in_channels: int = 3
    """channels of the images"""
    block: BlockKind = "basic"
    """the residual block: two 3x3 convolutions (`basic`), 1x1 to 3x3 to 1x1 (`bottleneck`), that with split attention
    (`split_attention`: ResNeSt), or one of the first two with norms before convolutions (`preact_…`)"""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """blocks per stage; one stage per entry"""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """base width of each stage, in channels: what a basic block puts out, a quarter of what the others do"""
    groups: int = 1
    """groups of a bottleneck's 3x3 convolution (ResNeXt: the cardinality)"""
    group_width: int = 64
    """channels of each of those groups where the base width is 64 (wide_resnet50_2: 128)"""
    stem: Stem = "conv7"
    """first layers: 7x7 with stride 2 and a pool (`conv7`), three 3x3 instead of it (`deep`), one 3x3 and no pool
    (`conv3`: CIFAR)"""
    stem_channels: int = 64
    """channels that the stem puts out; a deep one begins with half of them"""
    shortcut: Shortcut = "B"
    """where width or size change: zeros (`A`), a projection (`B`), a projection after averaging (`D`: ResNet-D). Or a
    projection in every block (`C`), or no sum at all (`none`: a plain network)"""
    pad_side: Side = "end"
    """with option A: all zeros after the channels (fb.resnet.torch), or half of them before (akamaster)"""
    stride_in: StridePlace = "3x3"
    """which convolution of a bottleneck has the stride: the 3x3 (v1.5: torchvision) or the first 1x1 (v1: He et al.)"""
    se_reduction: int | None = None
    """squeeze-and-excitation at the end of each branch, with this reduction of the channels (16); none: without"""
    se_divisor: int = 8
    """what the reduced channels are rounded to a multiple of (timm: 8, the authors: 1)"""
    norm: NormKind = "batch"
    """normalisation: over the batch, over groups of channels (32), or with statistics that never change"""
    act: ActKind = "relu"
    """activation"""
    dropout: float = 0.0
    """share of features dropped between the convolutions of a preact_basic block, in training (wide ResNets)"""
    drop_path: float = 0.0
    """probability of leaving the last block's branch out, in training; grows linearly from 0 at the first block"""
    zero_init: bool = False
    """whether the last norm of a branch (preact: its last convolution) starts at zero, so that a block starts as its
    shortcut"""
    output_stride: int | None = None
    """total stride of the last stage, if it should be smaller: further stages dilate their 3x3 convolutions instead"""
    noise: bool = False
    """whether a noise level conditions the network: its timestep scales and shifts the second norm of each block"""
    checkpoint: tuple[int, ...] = ()
    """stages, counted from 1, whose blocks are recomputed in the backward pass: less memory, about a third more time"""
    mean: tuple[float, ...] | None = None
    """mean of each channel of the training images in [0, 1], which is taken off before the network; none: unknown"""
    std: tuple[float, ...] | None = None
    """standard deviation of each channel, by which is divided after that; none: unknown"""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def preact(self) -> bool:
        """Whether norms and activations stand before the convolutions."""
        return self.block.startswith("preact")

    @property
    def expansion(self) -> int:
        """Channels that a block puts out, as a multiple of the base width."""
        return 1 if self.block.endswith("basic") else 4

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        """Channels and total stride of each level's output: the stem (level 0), then the stages."""
        found, total = [(self.stem_channels, 1 if self.stem == "conv3" else 2)], _first_stride(self)
        for width, (stride, _) in zip(self.widths, _strides(self), strict=True):
            total *= stride
            found.append((width * self.expansion, total))
        return found


@dataclass(frozen=True)
class Block:
    """One block: where it stands, what comes in, what goes out."""

    stage: int
    """counted from 1"""
    index: int
    c_in: int
    width: int
    """channels between the first and the last convolution of a bottleneck"""
    c_out: int
    stride: int
    dilations: tuple[int, int]
    """of the first and the second 3x3 convolution"""
    drop_path: float

    @property
    def changes(self) -> bool:
        """Whether what comes out has another width or size than what comes in."""
        return self.stride > 1 or self.c_in != self.c_out


def blocks_of(config: ResNetConfig) -> Iterator[Block]:
    """All blocks, in the order in which the image passes them."""
    c_in, number, total = config.stem_channels, 0, sum(config.blocks)
    dilation_before = 1
    for stage, (width, count, (stride, dilation)) in enumerate(
        zip(config.widths, config.blocks, _strides(config), strict=True), start=1
    ):
        c_out, inner = width * config.expansion, width * config.group_width // 64 * config.groups
        for index in range(count):
            drop_path = config.drop_path * number / max(1, total - 1)
            first = (stride, dilation_before) if index == 0 else (1, dilation)
            yield Block(stage, index, c_in, inner, c_out, first[0], (first[1], dilation), drop_path)
            c_in, number = c_out, number + 1
        dilation_before = dilation


def _strides(config: ResNetConfig) -> list[tuple[int, int]]:
    """Stride and dilation of each stage."""
    found, total, dilation = [(1, 1)], _first_stride(config), 1
    for _ in config.widths[1:]:
        if config.output_stride is not None and total >= config.output_stride:
            dilation *= 2
            found.append((1, dilation))
        else:
            total *= 2
            found.append((2, dilation))
    return found


def _first_stride(config: ResNetConfig) -> int:
    """Total stride of stage 1: that of the stem and of the pool after it."""
    return 1 if config.stem == "conv3" else 4


def _check(config: ResNetConfig) -> None:
    counts = ("num_classes", "in_channels", "groups", "group_width", "stem_channels", "se_reduction", "se_divisor")
    check_choices(config, _CHOICES)
    check_positive(config, counts)
    check_shares(config, ("dropout", "drop_path"))
    check_stages(config, "blocks", "widths")
    check_statistics(config)
    if wrong := [stage for stage in config.checkpoint if not 1 <= stage <= len(config.blocks)]:
        raise ValueError(f"checkpoint={config.checkpoint} names stage {wrong[0]}; there are 1 to {len(config.blocks)}")
    possible = [_first_stride(config) * 2**stage for stage in range(len(config.blocks))]
    if config.output_stride is not None and config.output_stride not in possible:
        raise ValueError(f"output_stride={config.output_stride} is the stride of no stage; one of: {possible}")
    _check_parts(config)


def _check_parts(config: ResNetConfig) -> None:
    """Raises ValueError for a field that the chosen block has no use for: it would be ignored."""
    has = {
        "groups": (config.groups == 1, ("bottleneck",)),
        "group_width": (config.group_width == 64, ("bottleneck",)),
        "stride_in": (config.stride_in == "3x3", ("bottleneck", "preact_bottleneck")),
        "dropout": (config.dropout == 0, ("preact_basic",)),
        "noise": (not config.noise, ("basic", "bottleneck", "preact_basic", "preact_bottleneck")),
    }
    for name, (unused, kinds) in has.items():
        if not unused and config.block not in kinds:
            raise ValueError(
                f"{name}={getattr(config, name)!r} is for blocks of kind {' or '.join(kinds)}, not {config.block}"
            )
    if config.stem == "deep" and config.stem_channels < 2:
        raise ValueError(
            f"stem_channels={config.stem_channels} must be at least 2 for a deep stem, which begins with half"
        )
    if min(config.widths, default=64) * config.group_width < 64:
        raise ValueError(f"group_width={config.group_width} leaves nothing of a base width of {min(config.widths)}")
    for name in ("drop_path", "zero_init"):
        if config.shortcut == "none" and (value := getattr(config, name)):
            raise ValueError(
                f"{name}={value} is for networks with shortcuts: shortcut='none' has nothing but the branch"
            )
    if config.noise and config.norm != "group":
        raise ValueError(f"noise=True is for norm='group': norm={config.norm!r} mixes images or never changes")
