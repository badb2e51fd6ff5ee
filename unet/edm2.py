"""EDM2's U-Net (Karras et al. 2024): magnitude-preserving throughout, no group norms and no biases."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from residual import AveragePool, Chain, Nearest, Residual
from residual.magnitude import (
    AppendOnes,
    MPConv2d,
    MPFourier,
    MPLinear,
    MPSelfAttention,
    MPSiLU,
    MPSum,
    PixelNorm,
    mp_branch,
    mp_cat,
)
from residual.weights.pretrained import Pretrained
from unet.config import Block, Level, UNetConfig, decoder_blocks, encoder_blocks
from unet.layouts import export_weights, import_weights
from unet.model import level_chain


@dataclass(frozen=True, kw_only=True)
class EDM2Config:
    """Shape of EDM2's U-Net. Level 0 works at full size, each further level at half the size of the one before.

    Fields that `UNetConfig` has, too, mean the same. Raises ValueError with the value, the rule and the way out.
    """

    in_channels: int = 3
    """channels of the network's input: the noisy image, and a conditioning image if there is one"""
    out_channels: int = 3
    """channels of the image that is denoised"""
    size: tuple[int, int] = (64, 64)
    """height and width for which the network is meant, in pixels; any size that the levels can halve runs"""
    classes: int | None = None
    """number of classes; none: the network takes no labels. Label number `classes` always stands for “no label”"""
    base_channels: int = 192
    """base width, which `channel_multipliers` multiply; the embedding is as wide as the widest level"""
    channel_multipliers: tuple[float, ...] = (1, 2, 3, 4)
    """width of each level as a multiple of `base_channels`; one level per entry"""
    blocks_per_level: int | tuple[int, ...] = 3
    """residual blocks per level in the encoder (the decoder has one more)"""
    attention_levels: tuple[int, ...] = (2, 3)
    """levels with self-attention after each block, counted from 0; the middle always has one"""
    head_channels: int | tuple[int, ...] = 64
    """channels of each attention head per level"""
    dropout: float = 0.0
    """share of features dropped before the last convolution of each block, in training"""
    logvar_channels: int = 128
    """Fourier features of the head that estimates the loss's logarithm from the noise level, for training"""
    recompute_levels: tuple[int, ...] = ()
    """levels whose activations are recomputed in the backward pass: less memory, about a third more time there"""

    def __post_init__(self) -> None:
        if self.logvar_channels < 1:
            raise ValueError(f"logvar_channels={self.logvar_channels} must be at least 1")
        _ = self.shape  # the other fields are checked there

    @cached_property
    def shape(self) -> UNetConfig:
        """The U-Net with the same levels and blocks: whoever walks over those, or checks a size, walks over this."""
        return UNetConfig(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            size=self.size,
            classes=self.classes,
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            blocks_per_level=self.blocks_per_level,
            attention_levels=self.attention_levels,
            head_channels=self.head_channels,
            resample="block",
            dropout=self.dropout,
            recompute_levels=self.recompute_levels,
        )

    @property
    def null_label(self) -> bool:
        """Whether label number `classes` stands for “no label”: wherever there are labels."""
        return self.classes is not None

    @property
    def emb_channels(self) -> int:
        """Width of the embedding of noise level and label."""
        return max(level.channels for level in self.shape.levels)

    def size_error(self, height: int, width: int) -> str | None:
        """Why images of this size cannot pass, and the nearest size that can; None if they can."""
        return self.shape.size_error(height, width)


class Embedding(nn.Module):
    """`silu(sum(P(features of t), Q(label)) + emb)`, magnitude-preserving: what every block is conditioned on."""

    def __init__(self, config: EDM2Config) -> None:
        super().__init__()
        self.classes = config.classes
        self.fourier = MPFourier(config.base_channels)
        self.noise = MPLinear(config.base_channels, config.emb_channels)
        self.label = MPLinear(config.classes, config.emb_channels) if config.classes else None
        self.merge = MPSum(0.5)
        self.act = MPSiLU()

    def forward(
        self, t: Shaped[Tensor, "b"], label: Int[Tensor, "b"] | None, emb: Float[Tensor, "b e"] | None
    ) -> Float[Tensor, "b e"]:
        h = self.noise(self.fourier(t).to(self.noise.weight.dtype))
        if self.label is not None:
            h = self.merge(h, self.label(self._one_hot(t, label).to(h.dtype)))
        elif label is not None:
            raise ValueError("this network takes no labels (classes is not set): call it without, or train one with")
        return self.act(h if emb is None else h + emb)

    def _one_hot(self, t: Tensor, label: Tensor | None) -> Float[Tensor, "b classes"]:
        """The label as a vector of unit magnitude; the null label as zeros."""
        assert self.classes is not None
        if label is None:
            return torch.zeros(len(t), self.classes, device=t.device)
        return math.sqrt(self.classes) * F.one_hot(label.long(), self.classes + 1)[:, :-1].float()


class Uncertainty(nn.Module):
    """u(t): the logarithm of the loss to be expected at a noise level, learned with the network and used to weight it.

    The training loss is `exp(-u) · loss + u`; sampling needs none of it (Karras et al. 2024).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fourier = MPFourier(channels)
        self.linear = MPLinear(channels, 1)

    def forward(self, t: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        return self.linear(self.fourier(t).to(self.linear.weight.dtype))[:, 0]


class EDM2UNet(Pretrained):
    """EDM2's U-Net: weights of unit magnitude and sums that keep it, in place of norms (Karras et al. 2024, config G).

    `encoder` and `decoder` are flat lists of chains; each of the encoder's outputs is taken once by the decoder. After
    each optimizer step call `residual.magnitude.normalize_weights` on it: the published learning rates rely on that.
    `uncertainty` is a head of its own, for training: `net.uncertainty(t)`.
    Raises ValueError if the levels cannot halve the config's size.
    """

    config_class = EDM2Config
    hub_tags = ("diffusion", "edm2")

    def __init__(self, config: EDM2Config) -> None:
        super().__init__(config)
        if reason := config.size_error(*config.size):
            raise ValueError(f"size={config.size}: {reason}")
        shape = config.shape
        first, last = shape.levels[0], shape.levels[-1]
        self.embedding = Embedding(config)
        self.uncertainty = Uncertainty(config.logvar_channels)
        stem = Chain(ones=AppendOnes(), conv=MPConv2d(config.in_channels + 1, config.base_channels))
        self.encoder = nn.ModuleList([stem, *(self._encoder_chain(block) for block in encoder_blocks(shape))])
        middle = {
            "block0": self._decoder_block(last, last.channels, attention=True),
            "block1": self._decoder_block(last, last.channels),
        }
        self.middle = level_chain(last, middle)
        self.decoder = nn.ModuleList(self._decoder_chain(block) for block in decoder_blocks(shape))
        self.head = MPConv2d(first.channels, config.out_channels)
        self.out_gain = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Float[Tensor, "b c_in h w"],
        t: Shaped[Tensor, "b"],
        label: Int[Tensor, "b"] | None = None,
        *,
        emb: Float[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """The network's output for noisy images `x`, of about unit magnitude, at noise levels `t`: c_noise = ln(σ) / 4.

        `label` counts from 0; without it, or where it is `config.classes`, the image has none. `emb` is added to the
        embedding of noise level and label (`config.emb_channels` wide).

        Raises ValueError for a size that the levels cannot halve, and for a label where there are no classes.
        """
        if reason := self.config.size_error(*x.shape[2:]):
            raise ValueError(reason)
        e = self.embedding(t, label, emb)
        skips = []
        for block in self.encoder:
            x = block(x, e)
            skips.append(x)
        x = self.middle(x, e)
        for block in self.decoder:
            x = block(mp_cat(x, skips.pop()), e)
        return self.out_gain * self.head(x)

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str = "edm2") -> None:
        """Take the weights of a plain state dict, or of a safetensors file of one, under EDM2's published names.

        Raises ValueError for another layout, for names of another one (it is named), where EDM2's network cannot
        express this one, with the difference if names or shapes do not fit, and for a pickle.
        """
        ours = import_weights(self.config.shape, state_dict, self.state_dict(), layout, "EDM2UNet")
        self.load_state_dict(ours, assign=self.out_gain.is_meta)

    def export_weights(self, layout: str = "edm2") -> dict[str, Tensor]:
        """The weights as a plain state dict under EDM2's published names: the exact inverse of `import_weights`.

        Raises ValueError for another layout, and, with the reason, where EDM2's network cannot express this one.
        """
        return export_weights(self.config.shape, self.state_dict(), layout, "EDM2UNet")

    def _encoder_chain(self, block: Block) -> Chain:
        """Resampling, change of width and pixel norm stand before the sum: both paths share them."""
        level, c = self.config.shape.levels[block.level], block.c_out
        nodes = {
            "down": None if block.resample is None else AveragePool(),
            "project": None if block.c_in == c else MPConv2d(block.c_in, c, kernel_size=1),
            "norm": PixelNorm(),
            "res": Residual(self._branch(c, c), merge=MPSum(0.3)),
        }
        return level_chain(level, nodes | _attention_and_clip(level, block.attention))

    def _decoder_chain(self, block: Block) -> Chain:
        levels = self.config.shape.levels
        level = levels[block.level]
        nodes: dict[str, nn.Module | None] = {"block": self._decoder_block(level, block.c_in, block.attention)}
        if block.resample is not None:
            nodes["up"] = self._decoder_block(level, block.c_out, up=Nearest())
        return level_chain(level, nodes)

    def _decoder_block(self, level: Level, c_in: int, attention: bool = False, up: nn.Module | None = None) -> Chain:
        c = level.channels
        shortcut = None if c_in == c else MPConv2d(c_in, c, kernel_size=1)
        res = Residual(self._branch(c_in, c), shortcut, merge=MPSum(0.3))
        return Chain(up=up, res=res, **_attention_and_clip(level, attention))

    def _branch(self, c_in: int, c_out: int) -> Chain:
        return mp_branch(c_in, c_out, self.config.emb_channels, self.config.dropout)


def _attention_and_clip(level: Level, attention: bool) -> dict[str, nn.Module | None]:
    attn = Residual(MPSelfAttention(level.channels, level.heads), merge=MPSum(0.3)) if attention else None
    return {"attn": attn, "clip": nn.Hardtanh(-256, 256)}  # out of float16's reach, and never met in float32


def _published(channels: int, dropout: float, latent: bool) -> EDM2Config:
    image = 4 if latent else 3
    return EDM2Config(in_channels=image, out_channels=image, classes=1000, base_channels=channels, dropout=dropout)


# name -> (channels, dropout)
_WIDTHS = {
    "xxs": (64, 0.0),
    "xs": (128, 0.0),
    "s": (192, 0.0),
    "m": (256, 0.1),
    "l": (320, 0.1),
    "xl": (384, 0.1),
    "xxl": (448, 0.1),
}

EDM2_PRESETS = {
    f"edm2-img{side}-{name}": _published(*_WIDTHS[name], latent=side == 512)
    for side, names in ((64, ("xs", "s", "m", "l", "xl")), (512, ("xxs", "xs", "s", "m", "l", "xl", "xxl")))
    for name in names
}
"""Networks for ImageNet by name, with the dropout they were trained with; img512 are for latents of 4 × 64 × 64."""
