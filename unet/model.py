"""The diffusion U-Net: an encoder, a middle, a decoder that takes the encoder's outputs back, and a head."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from residual import (
    AveragePool,
    Chain,
    LabelEmbedding,
    Nearest,
    NearestConv,
    NormAct,
    Residual,
    SelfAttention,
    SinusoidalEmbedding,
    StridedConv,
    ZeroConv2d,
    attention_branch,
    unet_branch,
    unet_shortcut,
)
from residual.pretrained import Pretrained
from unet.config import Block, Level, UNetConfig, decoder_blocks, encoder_blocks
from unet.layouts import export_weights, import_weights


class Embedding(nn.Module):
    """`silu(MLP(features of t) + label + emb)`: what every block is conditioned on, activated once for all."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.emb_channels
        self.features = SinusoidalEmbedding(config.channels, config.time_embedding)
        self.linear1 = nn.Linear(config.channels, width)
        self.linear2 = nn.Linear(width, width)
        self.label = LabelEmbedding(config.classes, width, config.null_label) if config.classes else None
        self.act = nn.SiLU()

    def forward(
        self, t: Shaped[Tensor, "b"], label: Int[Tensor, "b"] | None, emb: Float[Tensor, "b e"] | None
    ) -> Float[Tensor, "b e"]:
        h = self.linear2(self.act(self.linear1(self.features(t).to(self.linear1.weight.dtype))))
        if self.label is not None:
            h = h + self.label(self._null(t) if label is None else label)
        elif label is not None:
            raise ValueError("this network takes no labels (classes is not set): call it without, or train one with")
        return self.act(h if emb is None else h + emb)

    def _null(self, t: Tensor) -> Int[Tensor, "b"]:
        if self.label is None or self.label.null is None:
            raise ValueError("this network was built without a null label: it needs a label for each image")
        return torch.full(t.shape, self.label.null, dtype=torch.long, device=t.device)


class CheckpointedChain(Chain):
    """A chain whose activations are recomputed in the backward pass instead of being kept."""

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x, emb)
        return checkpoint(super().forward, x, emb, use_reentrant=False)


class UNet(Pretrained, nn.Module):
    """A U-Net of residual blocks that predicts from a noisy image and its timestep (Ho et al. 2020, appendix B).

    `encoder` and `decoder` are flat lists of chains; each of the encoder's outputs is taken once by the decoder.
    Raises ValueError if the levels cannot halve the config's size.
    """

    config_class = UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        if reason := config.size_error(*config.size):
            raise ValueError(f"size={config.size}: {reason}")
        self.config = config
        first, last = config.levels[0], config.levels[-1]
        self.embedding = Embedding(config)
        stem = Chain(conv=nn.Conv2d(config.in_channels, first.channels, kernel_size=3, padding=1))
        self.encoder = nn.ModuleList([stem, *(self._encoder_chain(block) for block in encoder_blocks(config))])
        self.middle = _chain(
            last,
            {
                "res1": self._residual(last.channels, last.channels),
                "attn": self._attention(last),
                "res2": self._residual(last.channels, last.channels),
            },
        )
        self.decoder = nn.ModuleList(self._decoder_chain(block) for block in decoder_blocks(config))
        self.head = Chain(
            norm=self._norm(first.channels),
            conv=ZeroConv2d(
                first.channels, config.out_channels * (1 + config.learned_variance), kernel_size=3, padding=1
            ),
        )
        if config.init == "xavier":
            self.apply(_xavier)

    def forward(
        self,
        x: Float[Tensor, "b c_in h w"],
        t: Shaped[Tensor, "b"],
        label: Int[Tensor, "b"] | None = None,
        *,
        emb: Float[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """The network's output for noisy images `x` at timesteps `t` (0 … T - 1, whole or fractional).

        `label` counts from 0; without it the null label is used. `emb` is added to the embedding after the time MLP
        (`config.emb_channels` wide). With learned variance the second half of the channels interpolates the variance.

        Raises ValueError for a size that the levels cannot halve, and for a label where there are no classes or a
        missing one where there is no null label.
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
            x = block(torch.cat([x, skips.pop()], dim=1), e)
        return self.head(x)

    def import_weights(self, state_dict: Mapping[str, Tensor], layout: str) -> None:
        """Take the weights of a state dict in another library's layout (`"diffusers"`).

        Raises ValueError for an unknown layout, and with the difference if names or shapes do not fit.
        """
        self.load_state_dict(import_weights(self.config, state_dict, self.state_dict(), layout))

    def export_weights(self, layout: str) -> dict[str, Tensor]:
        """The weights as a state dict in another library's layout: the exact inverse of `import_weights`.

        Raises ValueError, with the reason, where that library's network cannot express this one.
        """
        return export_weights(self.config, self.state_dict(), layout)

    @property
    def _norm(self) -> partial[NormAct]:
        return partial(NormAct, groups=self.config.groups, eps=self.config.eps)

    def _residual(self, c_in: int, c_out: int, resample: type[nn.Module] | None = None) -> Residual:
        config, make = self.config, (lambda: None) if resample is None else resample
        branch = unet_branch(
            c_in,
            c_out,
            config.emb_channels,
            conditioning=config.conditioning,
            norm=self._norm,
            resample=make(),
            dropout=config.dropout,
        )
        return Residual(branch, unet_shortcut(c_in, c_out, make()))

    def _attention(self, level: Level) -> Residual:
        return Residual(attention_branch(level.channels, SelfAttention(level.channels, level.heads), self._norm))

    def _encoder_chain(self, block: Block) -> Chain:
        level, c = self.config.levels[block.level], block.c_out
        nodes: dict[str, nn.Module | None]
        if block.resample == "block":
            nodes = {"down": self._residual(c, c, AveragePool)}
        elif block.resample is not None:
            nodes = {"down": StridedConv(c, c, padding="end" if block.resample == "conv_same" else "both")}
        else:
            nodes = self._block_nodes(block, level)
        return _chain(level, nodes)

    def _decoder_chain(self, block: Block) -> Chain:
        level, c = self.config.levels[block.level], block.c_out
        nodes = self._block_nodes(block, level)
        if block.resample is not None:
            nodes["up"] = self._residual(c, c, Nearest) if block.resample == "block" else NearestConv(c, c)
        return _chain(level, nodes)

    def _block_nodes(self, block: Block, level: Level) -> dict[str, nn.Module | None]:
        return {
            "res": self._residual(block.c_in, block.c_out),
            "attn": self._attention(level) if block.attention else None,
        }


def _chain(level: Level, nodes: dict[str, Any]) -> Chain:
    return (CheckpointedChain if level.checkpoint else Chain)(**nodes)


def _xavier(module: nn.Module) -> None:
    """Variance 2 / (fan in + fan out), uniform, as in the original DDPM; layers that start at zero keep their zeros."""
    if isinstance(module, (nn.Conv2d, nn.Linear)) and not isinstance(module, ZeroConv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
