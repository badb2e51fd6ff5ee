"""EDM2's U-Net (Karras et al. 2024): magnitude-preserving throughout, no group norms and no biases."""

import math

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
from unet.config import Block, Level, check_size
from unet.edm2_config import EDM2Config
from unet.embedding import LogVariance, check_images, label_per_image, per_image
from unet.layouts import EDM2_LAYOUTS
from unet.model import level_chain
from unet.network import Network


class Embedding(nn.Module):
    """`silu(sum(P(features of t), Q(label)) + emb)`, magnitude-preserving: conditions every block."""

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


class EDM2UNet(Network):
    """EDM2's U-Net: weights of unit magnitude and magnitude-preserving sums instead of norms (config G).

    `encoder` and `decoder` are flat lists of chains; the decoder takes each of the encoder's outputs once. Call
    `residual.magnitude.normalize_weights` on the network after each optimizer step: the published learning rates rely
    on it. Raises ValueError if the levels cannot halve the config's size.
    """

    config_class = EDM2Config
    hub_tags = ("diffusion", "edm2")
    layouts = EDM2_LAYOUTS
    config: EDM2Config

    def __init__(self, config: EDM2Config) -> None:
        super().__init__(config)
        skeleton = config.skeleton
        check_size(config)
        last = skeleton.levels[-1]
        self.embedding = Embedding(config)
        self.logvar = LogVariance(MPFourier(config.logvar_channels), MPLinear(config.logvar_channels, 1))
        stem = Chain(ones=AppendOnes(), conv=MPConv2d(config.in_channels + 1, config.base_channels))
        self.encoder = nn.ModuleList([stem, *(self._encoder_chain(block) for block in skeleton.encoder())])
        self.middle = level_chain(
            last,
            block0=self._decoder_block(last, last.channels, attention=True),
            block1=self._decoder_block(last, last.channels),
        )
        self.decoder = nn.ModuleList(self._decoder_chain(block) for block in skeleton.decoder())
        self.head = MPConv2d(skeleton.levels[0].channels, config.out_channels)
        self.out_gain = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Float[Tensor, "b c_in h w"],
        t: Shaped[Tensor, "#b"] | Shaped[Tensor, ""] | float,
        label: Int[Tensor, "#b"] | Int[Tensor, ""] | int | None = None,
        *,
        emb: Float[Tensor, "b e"] | None = None,
        return_logvar: bool = False,
    ) -> Float[Tensor, "b c_out h w"] | tuple[Float[Tensor, "b c_out h w"], Float[Tensor, "b"]]:
        """The network's output for noisy images `x`, of about unit magnitude, at noise levels `t`: c_noise = ln(σ) / 4.

        `label` counts from 0; None, or number `config.classes`, means no label. `emb` is added to the embedding of
        noise level and label (`config.emb_channels` wide). With `return_logvar`, the log-variance of the loss at `t` is
        returned too; so every parameter takes part in the forward pass, as training on several processes needs.

        Raises ValueError for images that are not floats (b, c, h, w) with `config.in_channels` channels, for a size
        that the levels cannot halve, and for a label if there are no classes.
        """
        check_images(x, self.config.in_channels)
        if reason := self.config.size_error(*x.shape[2:]):
            raise ValueError(reason)
        t, label = per_image(t, x), label_per_image(label, x)
        e = self.embedding(t, label, emb)
        skips = []
        for block in self.encoder:
            x = block(x, e)
            skips.append(x)
        x = self.middle(x, e)
        for block in self.decoder:
            x = block(mp_cat(x, skips.pop()), e)
        output = self.out_gain * self.head(x)
        return (output, self.logvar(t)) if return_logvar else output

    def _encoder_chain(self, block: Block) -> Chain:
        """Resampling, change of width and pixel norm stand before the sum: both paths share them."""
        c = block.c_out
        return level_chain(
            block.level,
            down=None if block.resample is None else AveragePool(),
            project=None if block.c_in == c else MPConv2d(block.c_in, c, kernel_size=1),
            norm=PixelNorm(),
            res=Residual(self._branch(c, c), merge=MPSum(0.3)),
            **_attention_and_clip(block.level, block.attention),
        )

    def _decoder_chain(self, block: Block) -> Chain:
        level = block.level
        return level_chain(
            level,
            block=self._decoder_block(level, block.c_in, block.attention),
            up=None if block.resample is None else self._decoder_block(level, block.c_out, up=Nearest()),
        )

    def _decoder_block(self, level: Level, c_in: int, attention: bool = False, up: nn.Module | None = None) -> Chain:
        c = level.channels
        shortcut = None if c_in == c else MPConv2d(c_in, c, kernel_size=1)
        res = Residual(self._branch(c_in, c), shortcut, merge=MPSum(0.3))
        return Chain(up=up, res=res, **_attention_and_clip(level, attention))

    def _branch(self, c_in: int, c_out: int) -> Chain:
        return mp_branch(c_in, c_out, self.config.emb_channels, self.config.dropout)


def _attention_and_clip(level: Level, attention: bool) -> dict[str, nn.Module | None]:
    attn = Residual(MPSelfAttention(level.channels, level.heads), merge=MPSum(0.3)) if attention else None
    return {"attn": attn, "clip": nn.Hardtanh(-256, 256)}  # keeps float16 in range; not reached in float32
