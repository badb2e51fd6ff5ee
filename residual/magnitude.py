"""Magnitude-preserving modules: inputs of unit magnitude give outputs of unit magnitude.

The magnitude of a tensor is its root mean square. No module has a bias or learned statistics; weights of unit magnitude
and scaled sums keep activations in range. Equations are from Karras et al. 2024, “Analyzing and improving the training
dynamics of diffusion models” (EDM2).

Weights are normalised in the forward pass; stored weights are not changed by it. The paper's learning rates also assume
stored weights of unit magnitude: call `normalize_weights` on the network after each optimizer step.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from residual.attention import attend, head_count
from residual.block import Chain
from residual.norm import Dropout


def normalize(x: Tensor, dim: int | tuple[int, ...], eps: float = 1e-4) -> Tensor:
    """`x` divided by its magnitude over the dimensions `dim`. The magnitude is computed in float32 at least."""
    dims = (dim,) if isinstance(dim, int) else dim
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=dtype)
    rms = norm / math.prod([x.shape[d] for d in dims]) ** 0.5
    return x / (eps + rms).to(x.dtype)


def mp_cat(a: Float[Tensor, "b c1 *hw"], b: Float[Tensor, "b c2 *hw"]) -> Float[Tensor, "b c3 *hw"]:
    """The channels of `a`, then those of `b`, scaled so that both contribute equally (eq. 103 with t = 0.5).

    The contributions do not depend on the numbers of channels. The magnitude of the whole is kept.
    """
    scale = math.sqrt((a.shape[1] + b.shape[1]) / 2)
    return torch.cat([scale / math.sqrt(a.shape[1]) * a, scale / math.sqrt(b.shape[1]) * b], dim=1)


class PixelNorm(nn.Module):
    """Each pixel's vector of channels, normalised to unit magnitude."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return normalize(x, dim=1)


class MPSiLU(nn.Module):
    """SiLU divided by the magnitude of its output for a standard normal input (eq. 81)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) / 0.596


class MPSum(nn.Module):
    """The merge `((1 - t) s + t f) / √((1 - t)² + t²)`, which keeps the magnitude of independent signals (eq. 88).

    Raises ValueError unless 0 ≤ t ≤ 1.
    """

    def __init__(self, t: float = 0.3) -> None:
        super().__init__()
        if not 0 <= t <= 1:
            raise ValueError(f"t={t} is the branch's share of the sum: it must be from 0 to 1")
        self.t = t

    def forward(self, s: Tensor, f: Tensor) -> Tensor:
        norm = math.hypot(1 - self.t, self.t)
        return torch.add((1 - self.t) / norm * s, f, alpha=self.t / norm)

    def extra_repr(self) -> str:
        return f"t={self.t:g}"


def unit_weight(weight: Float[Tensor, "c_out *fan_in"]) -> Float[Tensor, "c_out *fan_in"]:
    """The weight of the forward pass: unit magnitude per output channel, divided by √fan-in (eq. 47)."""
    return normalize(weight, tuple(range(1, weight.dim()))) / weight[0].numel() ** 0.5


class MPConv2d(nn.Conv2d):
    """A convolution without bias that uses `unit_weight(weight)`. An odd kernel keeps the size."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 3) -> None:
        super().__init__(c_in, c_out, kernel_size, padding=kernel_size // 2, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h w"]:
        return F.conv2d(x, unit_weight(self.weight), padding=self.padding)


class MPLinear(nn.Linear):
    """A linear map without bias that uses `unit_weight(weight)`."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self, x: Float[Tensor, "b c_in"]) -> Float[Tensor, "b c_out"]:
        return F.linear(x, unit_weight(self.weight))


@torch.no_grad()
def normalize_weights(module: nn.Module) -> None:
    """Normalises trainable weights of `MPConv2d` and `MPLinear` to unit magnitude per output channel (eq. 66).

    Call it after each optimizer step, on the trained weights only, not on their averages. The output depends only on
    the direction of a weight, but the effective learning rate falls as its magnitude grows.
    """
    for part in module.modules():
        if isinstance(part, (MPConv2d, MPLinear)) and part.weight.requires_grad:
            part.weight.copy_(normalize(part.weight, tuple(range(1, part.weight.dim()))))


class MPFourier(nn.Module):
    """Features `√2 cos(frequency · t + phase)` with random frequencies and phases (eq. 75), always in float32.

    Frequencies (2π times standard normal) and phases are drawn once and stored with the weights.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, t: Shaped[Tensor, "b"]) -> Float[Tensor, "b c"]:
        angles = t.float()[:, None] * self.freqs.float() + self.phases.float()
        return math.sqrt(2) * angles.cos()


class AppendOnes(nn.Module):
    """Appends a channel of ones, which gives the next convolution a bias."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c1 h w"]:
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


class MPModulate(nn.Module):
    """`x · (1 + gain · P(emb))`. P is a linear map to one number per channel; the learned gain starts at 0."""

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.takes_emb = True
        self.project = MPLinear(emb_channels, channels)
        self.emb_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        return x * (1 + self.emb_gain * self.project(emb))[:, :, None, None]


def mp_branch(c_in: int, c_out: int, emb_channels: int, dropout: float = 0.0) -> Chain:
    """The branch of EDM2's U-Net: SiLU, convolution, scale by the embedding, SiLU, dropout, convolution (config G).

    The embedding must already be activated, as for `unet_branch`. Resampling, a change of width and the pixel norm are
    not part of the branch: they stand before the sum, shared with the shortcut.
    """
    return Chain(
        act1=MPSiLU(),
        conv1=MPConv2d(c_in, c_out),
        modulate=MPModulate(c_out, emb_channels),
        act2=MPSiLU(),
        dropout=Dropout(dropout),
        conv2=MPConv2d(c_out, c_out),
    )


class MPSelfAttention(nn.Module):
    """Cosine attention: `SelfAttention` with queries, keys and values of each head normalised to unit magnitude.

    Heads and the rows of `qkv` are those of `SelfAttention`. It needs no norm before it.
    """

    def __init__(self, channels: int, heads: int | None = None, head_channels: int | None = None) -> None:
        super().__init__()
        self.heads = head_count(channels, heads, head_channels)
        self.qkv = MPConv2d(channels, 3 * channels, kernel_size=1)
        self.out = MPConv2d(channels, channels, kernel_size=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = rearrange(self.qkv(x), "b (three n d) h w -> b (h w) three n d", three=3, n=self.heads)
        q, k, v = (part.transpose(1, 2) for part in normalize(tokens, dim=-1).unbind(dim=2))
        return self.out(rearrange(attend(q, k, v), "b n (h w) d -> b (n d) h w", h=x.shape[2]))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
