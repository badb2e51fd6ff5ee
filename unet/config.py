"""Config of the diffusion U-Net, and the skeleton that the U-Nets share."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

from residual import head_count
from residual.block import Padding
from residual.unet_branch import Conditioning
from residual.weights.config import MAX_BLOCKS, MAX_COUNT, check_counts

Resample = Literal["conv", "conv_same", "block", "block_project", "block_fir"]
TimeEmbedding = Literal["ddpm", "adm", "fourier", "log_fourier"]
LabelEmbedding = Literal["table", "linear", "linear_first"]
DecoderAttention = Literal["all", "last"]
Init = Literal["torch", "xavier"]
Middle = Literal["attention", "blocks", "none"]
MAX_LEVELS = 24
"""largest number of levels; the size of the images would have to be a multiple of 2^23 px"""


@dataclass(frozen=True)
class Level:
    """One resolution of a U-Net."""

    index: int
    """0 is the full size"""
    channels: int
    blocks: int
    attention: bool
    heads: int
    resample: Resample
    """how the encoder halves the size after this level"""
    recompute: bool


@dataclass(frozen=True)
class Block:
    """One entry of the encoder or the decoder."""

    level: Level
    c_in: int
    attention: bool = False
    resample: Resample | None = None
    """how this entry halves (encoder) or doubles (decoder) the size; None: it keeps the size"""

    @property
    def c_out(self) -> int:
        """Width of the output."""
        return self.level.channels


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """Widths, blocks, attention and heads of the levels of a U-Net, and the order of its encoder and decoder.

    The fields are those of `UNetConfig`. Raises ValueError with the field, its value and the rule.
    """

    base_channels: int
    channel_multipliers: tuple[float, ...]
    blocks_per_level: int | tuple[int, ...]
    attention_levels: tuple[int, ...]
    heads: int | tuple[int, ...] | None = None
    head_channels: int | tuple[int, ...] | None = None
    resample: Resample | tuple[Resample, ...] = "block"
    decoder_attention: DecoderAttention = "all"
    recompute_levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, "base_channels")
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers=() describes no level; give one entry per level, such as 1,2,2")
        if self.depth > MAX_LEVELS:
            raise ValueError(f"channel_multipliers has {self.depth} entries, one per level; give at most {MAX_LEVELS}")
        blocks = self._per_level("blocks_per_level")
        if min(blocks) < 1 or sum(blocks) > MAX_BLOCKS:
            raise ValueError(
                f"blocks_per_level={self.blocks_per_level} must be at least 1 per level, "
                f"and at most {MAX_BLOCKS} on all levels together"
            )
        for name in ("attention_levels", "recompute_levels"):
            if wrong := [level for level in getattr(self, name) if not 0 <= level < self.depth]:
                raise ValueError(
                    f"{name}={getattr(self, name)} names level {wrong[0]}, but "
                    f"channel_multipliers={self.channel_multipliers} make levels 0 to {self.depth - 1}"
                )
        _ = self.levels  # checks the tuples with one entry per level, the widths and the heads

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.channel_multipliers)

    @property
    def stride(self) -> int:
        """In pixels, of the lowest level: what all levels can halve is a multiple of it."""
        return 2 ** (self.depth - 1)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The levels, from full size down."""
        blocks, heads = self._per_level("blocks_per_level"), self._per_level("heads")
        head_channels, resample = self._per_level("head_channels"), self._per_level("resample")
        return tuple(
            Level(
                index=i,
                channels=(width := self._width(multiplier)),
                blocks=blocks[i],
                attention=i in self.attention_levels,
                heads=self._heads(i, width, heads[i], head_channels[i]),
                resample=resample[i],
                recompute=i in self.recompute_levels,
            )
            for i, multiplier in enumerate(self.channel_multipliers)
        )

    @property
    def attending_levels(self) -> list[Level]:
        """Levels whose number of heads matters: those with attention, and the last, whose heads the middle has."""
        return [*(level for level in self.levels[:-1] if level.attention), self.levels[-1]]

    def encoder(self) -> Iterator[Block]:
        """The encoder's entries after the first convolution: a level's blocks, then the one that halves the size."""
        width = self.base_channels
        for level in self.levels:
            for _ in range(level.blocks):
                yield Block(level, width, level.attention)
                width = level.channels
            if level.index < self.depth - 1:
                yield Block(level, width, resample=level.resample)

    def decoder(self) -> Iterator[Block]:
        """The decoder's entries. Each takes one of the encoder's outputs, in reverse order.

        The last block of a level doubles the size in the way in which the encoder halved it.
        """
        skips = [self.base_channels, *(block.c_out for block in self.encoder())]
        width = skips[-1]
        for level in reversed(self.levels):
            for i in range(level.blocks + 1):
                is_last = i == level.blocks
                resample = self.levels[level.index - 1].resample if level.index > 0 and is_last else None
                attention = level.attention and (self.decoder_attention == "all" or is_last)
                yield Block(level, width + skips.pop(), attention, resample)
                width = level.channels

    def size_error(self, height: int, width: int) -> str | None:
        """The reason why images of this size cannot be halved at every level, and the nearest size that can, or None.

        Sizes are in pixels.
        """
        if height > 0 and width > 0 and height % self.stride == 0 and width % self.stride == 0:
            return None
        near = tuple(max(self.stride, round(side / self.stride) * self.stride) for side in (height, width))
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
        width = self.base_channels * multiplier
        if not 1 <= width <= MAX_COUNT or abs(width - round(width)) > 1e-6:
            raise ValueError(
                f"channel_multipliers={self.channel_multipliers}: {multiplier:g} x {self.base_channels} channels "
                f"is not a whole width from 1 to {MAX_COUNT:,}"
            )
        return round(width)

    def _heads(self, level: int, width: int, heads: int | None, head_channels: int | None) -> int:
        if level not in self.attention_levels and level != self.depth - 1:
            return 1
        try:
            return head_count(width, heads, head_channels)
        except ValueError as error:
            raise ValueError(f"level {level}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Config of the diffusion U-Net. Level 0 works at full size, each further level at half the size.

    A field documented as “per level” takes one value for all levels, or a tuple with one entry per level. Raises
    ValueError with the field, its value and the rule.
    """

    in_channels: int = 3
    """channels of the input: the noisy image, and a conditioning image if there is one"""
    out_channels: int = 3
    """channels of the denoised image"""
    size: tuple[int, int] = (32, 32)
    """height and width of the images, in pixels; the network runs on any size that the levels can halve, see `pad`"""
    classes: int | None = None
    """number of classes; null: the network takes no labels"""
    null_label: bool = True
    """with classes: whether there is one more label, number `classes`, for “no label” (guidance needs it)"""
    base_channels: int = 128
    """width of the first convolution, which `channel_multipliers` multiply"""
    channel_multipliers: tuple[float, ...] = (1, 2, 2, 2)
    """width of each level as a multiple of `base_channels`; one level per entry"""
    blocks_per_level: int | tuple[int, ...] = 2
    """residual blocks of the encoder, per level (the decoder has one more)"""
    attention_levels: tuple[int, ...] = (1,)
    """levels with self-attention after each block, counted from 0; the middle always has attention"""
    heads: int | tuple[int, ...] | None = None
    """attention heads, per level; null: given by head_channels"""
    head_channels: int | tuple[int, ...] | None = None
    """channels of each attention head, per level; null: given by heads. Neither: one head of full width"""
    conditioning: Conditioning = "add"
    """how the embedding enters a block: `add` before the second norm (DDPM), `scale_shift` after it (ADM)"""
    resample: Resample | tuple[Resample, ...] = "conv"
    """how the size is halved after a level, per level: `conv` (stride 2, padded on both sides; back up: nearest, then
    convolution), `conv_same` (the same, padded right and bottom: google/ddpm-*), `block` (inside a residual block:
    ADM), `block_project` (that, with a 1x1 convolution on the shortcut: DDPM++), `block_fir` (that, with the 1-3-3-1
    filter: NCSN++)"""
    dropout: float = 0.0
    """share of features dropped before the last convolution of each block, in training"""
    groups: int = 32
    """maximum number of groups of a GroupNorm; the largest number up to this that divides the width is used"""
    group_channels: int = 1
    """minimum channels of a group (EDM: 4)"""
    eps: float = 1e-5
    """epsilon of GroupNorm"""
    time_embedding: TimeEmbedding = "ddpm"
    """features of the time: sines first (`ddpm`), cosines first (`adm`), or random frequencies: of the time itself
    (`fourier`: NCSN++) or of its logarithm, with the output divided by the time (`log_fourier`: Song et al. 2021)"""
    time_channels: int | None = None
    """width of the time features (Fourier: half of it), a quarter of the embedding's width; null: base_channels"""
    label_embedding: LabelEmbedding = "table"
    """how a label enters: as a learned row (`table`: DDPM, ADM) or a linear map of the one-hot label (`linear`: EDM's
    ADM) after the time MLP; or as such a map of √classes times the one-hot label before it (`linear_first`: DDPM++)"""
    augment_channels: int | None = None
    """length of the augmentation label, which is added to the time features (EDM: 9); null: there is none"""
    decoder_attention: DecoderAttention = "all"
    """attention in the decoder of a level with attention: after `all` blocks, or the `last` only (DDPM++, NCSN++)"""
    residual_scale: float = 1.0
    """factor on every sum of shortcut and branch (DDPM++, NCSN++: the root of one half)"""
    input_skips: bool = False
    """whether the downsampled and convolved input is added to the encoder at every level (NCSN++)"""
    pyramid: bool = False
    """whether images of all sizes enter and leave: the filtered input, through a 1x1 convolution, is added to the
    encoder at every level, and every level of the decoder adds an image to the output (NCSN++ for 256 px and more)"""
    middle: Middle = "attention"
    """between encoder and decoder: two blocks with attention between them, only the blocks, or nothing"""
    init: Init = "torch"
    """initial weights: PyTorch's own (ADM) or Xavier uniform, biases zero (DDPM); last layers start at zero in both"""
    padding: Padding = "zeros"
    """values beyond the image for 3x3 convolutions: `zeros`; its mirror image (`reflect`); its other side (`periodic`);
    its other side to the left and right, its mirror image above and below (`periodic_width`: maps with longitudes)"""
    pad: bool = False
    """whether images of a size that the levels cannot halve are continued, as `padding` continues them, to the next one
    that they can, and the output is cut"""
    learned_variance: bool = False
    """whether the output has a second half that interpolates the variance (Nichol and Dhariwal 2021)"""
    logvar_channels: int | None = None
    """sines and cosines of the time for a head that estimates the log-variance of the loss in training, which then
    weights the noise levels (learned uncertainty: Karras et al. 2024; 128 there); null: there is no such head"""
    recompute_levels: tuple[int, ...] = ()
    """levels whose activations are recomputed in the backward pass: less memory, about a third more time there"""

    def __post_init__(self) -> None:
        _check_choices(self)
        check_counts(self, "in_channels", "out_channels", "groups", "group_channels", "augment_channels")
        check_counts(self, "time_channels", "logvar_channels")
        check_shared(self)
        for name in ("eps", "residual_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        if self.pyramid and self.input_skips:
            raise ValueError("pyramid=True and input_skips=True both add the input to the encoder; give one of them")
        self._check_padding()
        _ = self.skeleton
        for name in ("base_channels" if self.time_channels is None else "time_channels", "logvar_channels"):
            if (width := getattr(self, name)) is not None and (width % 2 or width < 4):
                raise ValueError(
                    f"{name}={width} must be even and at least 4: half are sines, half cosines of the time"
                )

    def _check_padding(self) -> None:
        """Raises ValueError for FIR filters, which always take zeros, and for images that are too small to mirror."""
        if self.padding == "zeros":
            return
        kinds = {level.resample for level in self.skeleton.levels[:-1]}
        if "block_fir" in kinds or self.pyramid or self.input_skips:
            raise ValueError(
                f"padding={self.padding!r} does not suit the filters of resample='block_fir', pyramid and input_skips, "
                "which take zeros beyond the image; give padding='zeros', or another resample such as 'conv'"
            )
        height, width = (side + sum(self.margins(side)) for side in self.size)
        mirrored = {"reflect": min(height, width), "periodic_width": height, "periodic": 2**MAX_LEVELS}[self.padding]
        if mirrored < 2 * self.skeleton.stride:
            raise ValueError(
                f"padding={self.padding!r} mirrors images, which takes 2 pixels on the lowest level, but "
                f"size={self.size} is halved {self.skeleton.depth - 1} times; give fewer channel_multipliers, or "
                "padding='periodic'"
            )
        if wrong := [side for side in self.size if max(self.margins(side)) > side]:
            raise ValueError(
                f"size={self.size} is continued to a multiple of {self.skeleton.stride} px by pad=True, which takes "
                f"more of the other side than there is of {wrong[0]} px; give fewer channel_multipliers, or "
                "padding='zeros'"
            )

    def margins(self, side: int) -> tuple[int, int]:
        """Pixels by which `pad` continues a side, before and after it."""
        missing = -side % self.skeleton.stride if self.pad else 0
        return missing // 2, missing - missing // 2

    def size_error(self, height: int, width: int) -> str | None:
        """The reason why images of this height and width in pixels are too small or cannot be halved, or None."""
        if self.pad and height > 0 and width > 0:
            return None
        reason = self.skeleton.size_error(height, width)
        return None if reason is None else f"{reason}, or pad=true, which continues images to such a size"

    @cached_property
    def skeleton(self) -> Skeleton:
        """Levels, encoder and decoder."""
        return Skeleton(**{field.name: getattr(self, field.name) for field in fields(Skeleton)})

    @property
    def time_features(self) -> int:
        """Width of the features of the time."""
        base = self.time_channels or self.base_channels
        return {"ddpm": base, "adm": base, "fourier": 2 * base, "log_fourier": 2 * base}[self.time_embedding]

    @property
    def emb_channels(self) -> int:
        """Width of the embedding of timestep and label."""
        return 4 * (self.time_channels or self.base_channels)


def check_size(config: Any) -> None:
    """Raises ValueError, with the nearest size that can be halved, if the levels cannot halve `config.size`."""
    if reason := config.size_error(*config.size):
        raise ValueError(f"size={config.size}: {reason}")


def check_shared(config: Any) -> None:
    """Checks `classes`, `size` and `dropout`, which every config has. Raises ValueError."""
    if config.classes is not None and config.classes < 1:
        raise ValueError(f"classes={config.classes} must be at least 1, or left out for a network without labels")
    check_counts(config, "classes", "size")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout} must be at least 0 and below 1")


def _check_choices(config: UNetConfig) -> None:
    choices = {
        "conditioning": Conditioning,
        "resample": Resample,
        "time_embedding": TimeEmbedding,
        "label_embedding": LabelEmbedding,
        "decoder_attention": DecoderAttention,
        "init": Init,
        "middle": Middle,
        "padding": Padding,
    }
    for name, choice in choices.items():
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in get_args(choice):
                raise ValueError(f"no {name} {one!r}; one of: {', '.join(get_args(choice))}")
