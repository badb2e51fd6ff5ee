"""The shape of a U-Net, level by level."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from residual import head_count
from residual.unet_branch import Conditioning

Resample = Literal["conv", "conv_same", "block", "block_project", "block_fir"]
TimeEmbedding = Literal["ddpm", "adm", "fourier", "log_fourier"]
LabelEmbedding = Literal["table", "linear", "linear_first"]
DecoderAttention = Literal["all", "last"]
Init = Literal["torch", "xavier"]
MOST_BLOCKS = 1000
"""per level: far beyond what was ever trained, and still built in seconds"""


@dataclass(frozen=True)
class Level:
    """One resolution of the U-Net, with everything that `UNetConfig` says about it."""

    channels: int
    blocks: int
    attention: bool
    heads: int
    resample: Resample
    recompute: bool


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of the diffusion U-Net. Level 0 works at full size, each further level at half the size of the one before.

    A field that says “per level” takes one value for all levels or a tuple with one entry for each. Raises ValueError
    with the value, the rule and the way out.
    """

    in_channels: int = 3
    """channels of the network's input: the noisy image, and a conditioning image if there is one"""
    out_channels: int = 3
    """channels of the image that is denoised"""
    size: tuple[int, int] = (32, 32)
    """height and width for which the network is meant, in pixels; any size that the levels can halve runs"""
    classes: int | None = None
    """number of classes; none: the network takes no labels"""
    null_label: bool = True
    """with classes: whether one more label, number `classes`, stands for “no label” (needed for guidance)"""
    base_channels: int = 128
    """base width: that of the first convolution, which `channel_multipliers` multiply"""
    channel_multipliers: tuple[float, ...] = (1, 2, 2, 2)
    """width of each level as a multiple of `base_channels`; one level per entry"""
    blocks_per_level: int | tuple[int, ...] = 2
    """residual blocks per level in the encoder (the decoder has one more)"""
    attention_levels: tuple[int, ...] = (1,)
    """levels with self-attention after each block, counted from 0; the middle always has one"""
    heads: int | tuple[int, ...] | None = None
    """attention heads per level; none: see head_channels"""
    head_channels: int | tuple[int, ...] | None = None
    """channels of each attention head per level; none: see heads. Neither: one head of full width"""
    conditioning: Conditioning = "add"
    """how the embedding enters a block: `add` before the second norm (DDPM), `scale_shift` after it (ADM)"""
    resample: Resample | tuple[Resample, ...] = "conv"
    """how to leave a level, per level: `conv` (stride 2, padded on both sides; back up: nearest, then convolution),
    `conv_same` (the same, padded right and bottom: google/ddpm-*), `block` (inside a residual block: ADM),
    `block_project` (that, with a 1x1 convolution on the shortcut: DDPM++), `block_fir` (that, with the 1-3-3-1 filter:
    NCSN++)"""
    dropout: float = 0.0
    """share of features dropped before the last convolution of each block, in training"""
    groups: int = 32
    """most groups of a GroupNorm; the largest number up to this that divides the width is used"""
    group_channels: int = 1
    """fewest channels of a group (EDM: 4)"""
    eps: float = 1e-5
    """GroupNorm's epsilon"""
    time_embedding: TimeEmbedding = "ddpm"
    """features of the time: sines first (`ddpm`), cosines first (`adm`), or of random frequencies: of the time itself
    (`fourier`: NCSN++) or of its logarithm, the output being divided by the time (`log_fourier`: Song et al. 2021)"""
    time_channels: int | None = None
    """width of the time's features (Fourier: half of it), a quarter of the embedding's; none: base_channels"""
    label_embedding: LabelEmbedding = "table"
    """how a label enters: as a learned row (`table`: DDPM, ADM) or a linear map of the one-hot label (`linear`: EDM's
    ADM) after the time MLP; or as such a map of √classes times the one-hot label before it (`linear_first`: DDPM++)"""
    augment_channels: int | None = None
    """numbers that tell how an image was augmented, mapped onto the features of the time (EDM: 9)"""
    decoder_attention: DecoderAttention = "all"
    """whether each decoder block of a level with attention has one, or only its last (DDPM++, NCSN++)"""
    residual_scale: float = 1.0
    """factor on every sum of shortcut and branch (DDPM++, NCSN++: the root of one half)"""
    input_skips: bool = False
    """whether the image, halved and convolved again and again, is added to the encoder at every level (NCSN++)"""
    init: Init = "torch"
    """initial weights: PyTorch's own (ADM) or Xavier uniform, biases zero (DDPM); last layers start at zero in both"""
    learned_variance: bool = False
    """whether the output is doubled by a second half that interpolates the variance (Nichol and Dhariwal 2021)"""
    recompute_levels: tuple[int, ...] = ()
    """levels whose activations are recomputed in the backward pass: less memory, about a third more time there"""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_counts(self)
        for name in ("attention_levels", "recompute_levels"):
            if wrong := [level for level in getattr(self, name) if not 0 <= level < self.depth]:
                raise ValueError(
                    f"{name}={getattr(self, name)} names level {wrong[0]}, but "
                    f"channel_multipliers={self.channel_multipliers} make levels 0 to {self.depth - 1}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        _ = self.levels  # the per-level tuples and the heads are checked where they are read

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.channel_multipliers)

    @property
    def emb_channels(self) -> int:
        """Width of the embedding of timestep and label."""
        return 4 * (self.time_channels or self.base_channels)

    @property
    def levels(self) -> tuple[Level, ...]:
        """What the fields say of each level, from full size down."""
        blocks, heads = self._per_level("blocks_per_level"), self._per_level("heads")
        head_channels, resample = self._per_level("head_channels"), self._per_level("resample")
        return tuple(
            Level(
                channels=(width := self._width(multiplier)),
                blocks=blocks[i],
                attention=i in self.attention_levels,
                heads=self._heads(i, width, heads[i], head_channels[i]),
                resample=resample[i],
                recompute=i in self.recompute_levels,
            )
            for i, multiplier in enumerate(self.channel_multipliers)
        )

    def size_error(self, height: int, width: int) -> str | None:
        """Why images of this size cannot pass, and the nearest size that can; None if they can."""
        factor = 2 ** (self.depth - 1)
        if height > 0 and width > 0 and height % factor == 0 and width % factor == 0:
            return None
        near = tuple(max(factor, round(side / factor) * factor) for side in (height, width))
        return (
            f"{height}x{width} px cannot be halved {self.depth - 1} times "
            f"(channel_multipliers={self.channel_multipliers}); the nearest size that can is {near[0]}x{near[1]}, "
            "or give fewer channel_multipliers"
        )

    def _per_level(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return (value,) * self.depth
        if len(value) != self.depth:
            raise ValueError(
                f"{name}={value} has {len(value)} entries for {self.depth} levels; give one or {self.depth}"
            )
        return value

    def _width(self, multiplier: float) -> int:
        width = round(self.base_channels * multiplier)
        if width < 1 or abs(width - self.base_channels * multiplier) > 1e-6:
            raise ValueError(
                f"channel_multipliers={self.channel_multipliers}: "
                f"{multiplier:g} x {self.base_channels} channels is not a whole width"
            )
        return width

    def _heads(self, level: int, width: int, heads: int | None, head_channels: int | None) -> int:
        if (
            level not in self.attention_levels and level != self.depth - 1
        ):  # the last level's heads are the middle's, too
            return 1
        try:
            return head_count(width, heads, head_channels)
        except ValueError as error:
            raise ValueError(f"level {level}: {error}") from None


@dataclass(frozen=True)
class Block:
    """One entry of the encoder's or the decoder's list: where it stands, what comes in, what it is made of."""

    level: int
    c_in: int
    c_out: int
    attention: bool
    resample: Resample | None
    """how this entry halves (encoder) or doubles (decoder) the size; none: it does not"""


def encoder_blocks(config: UNetConfig) -> Iterator[Block]:
    """The entries of the encoder after its first convolution: a level's blocks, then what halves the size."""
    width = config.base_channels
    for index, level in enumerate(config.levels):
        for _ in range(level.blocks):
            yield Block(index, width, level.channels, level.attention, None)
            width = level.channels
        if index < config.depth - 1:
            yield Block(index, width, width, False, level.resample)


def decoder_blocks(config: UNetConfig) -> Iterator[Block]:
    """The entries of the decoder: one for each of the encoder's outputs, which it takes in reverse order.

    The last block of a level doubles the size in the way in which the encoder halved it.
    """
    skips = [config.base_channels, *(block.c_out for block in encoder_blocks(config))]
    width = skips[-1]
    for index, level in reversed(list(enumerate(config.levels))):
        for i in range(level.blocks + 1):
            resample = config.levels[index - 1].resample if index > 0 and i == level.blocks else None
            attention = level.attention and (config.decoder_attention == "all" or i == level.blocks)
            yield Block(index, width + skips.pop(), level.channels, attention, resample)
            width = level.channels


def _check_choices(config: UNetConfig) -> None:
    choices = {
        "conditioning": Conditioning,
        "resample": Resample,
        "time_embedding": TimeEmbedding,
        "label_embedding": LabelEmbedding,
        "decoder_attention": DecoderAttention,
        "init": Init,
    }
    for name, choice in choices.items():
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in get_args(choice):
                raise ValueError(f"no {name} {one!r}; one of: {', '.join(get_args(choice))}")


def _check_counts(config: UNetConfig) -> None:
    for name in ("in_channels", "out_channels", "base_channels", "groups", "group_channels", "augment_channels"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
    name = "base_channels" if config.time_channels is None else "time_channels"
    if (width := getattr(config, name)) % 2 or width < 4:
        raise ValueError(f"{name}={width} must be even and at least 4: half are sines, half cosines of the time")
    if config.classes is not None and config.classes < 1:
        raise ValueError(f"classes={config.classes} must be at least 1, or left out for a network without labels")
    if not config.channel_multipliers:
        raise ValueError("channel_multipliers=() describes no level; give one entry per level, such as 1,2,2")
    blocks = config.blocks_per_level if isinstance(config.blocks_per_level, tuple) else (config.blocks_per_level,)
    if min(blocks, default=0) < 1 or max(blocks) > MOST_BLOCKS:
        raise ValueError(
            f"blocks_per_level={config.blocks_per_level} must be at least 1 per level, and at most {MOST_BLOCKS}"
        )
    for name in ("eps", "residual_scale"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)} must be positive and finite")
