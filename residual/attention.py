"""Attention of the pixels of an image: to each other, and to a sequence."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from residual import native
from residual.block import ZeroConv2d


def head_count(channels: int, heads: int | None = None, head_channels: int | None = None) -> int:
    """Number of attention heads, from `heads` or from the channels of each head. One head if neither is given.

    Raises ValueError if both are given, or if the number given does not divide the channels.
    """
    if heads is not None and head_channels is not None:
        raise ValueError(f"give heads or head_channels, not both (heads={heads}, head_channels={head_channels})")
    name, number = ("heads", heads) if head_channels is None else ("head_channels", head_channels)
    if number is None:
        return 1
    if number < 1 or channels % number:
        divisors = ", ".join(str(n) for n in range(1, channels + 1) if channels % n == 0)
        raise ValueError(f"{name}={number} does not divide {channels} channels; one of: {divisors}")
    return channels // number if name == "head_channels" else number


SHORT = 64
"""pixels up to which attention is faster in float32 than in bf16, in training on a CPU"""


class SelfAttention(nn.Module):
    """Multi-head attention in which every pixel attends to all pixels (Vaswani et al. 2017, eq. 1).

    For `heads` and `head_channels` see `head_count`. The rows of `qkv` are ordered (q, k, v) × head × channel.
    The output map starts at zero, so a new `Residual` around it equals its shortcut. The input is not normalised:
    place a `NormAct(channels, act=None)` before it.
    """

    def __init__(self, channels: int, heads: int | None = None, head_channels: int | None = None) -> None:
        super().__init__()
        self.heads = head_count(channels, heads, head_channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out = ZeroConv2d(channels, channels, kernel_size=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        # In channels last, the tokens are a view of the map's output, and their gradients become that of the map.
        tokens = rearrange(self.qkv(x), "b (three n d) h w -> b (h w) three n d", three=3, n=self.heads)
        q, k, v = (part.transpose(1, 2) for part in tokens.unbind(dim=2))
        return self.out(rearrange(attend(q, k, v), "b n (h w) d -> b (n d) h w", h=x.shape[2]))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


class CrossAttention(nn.Module):
    """Multi-head attention of every pixel to the items of a sequence (Rombach et al. 2022, section 3.3).

    Queries are a linear map of the pixels; keys and values are one of the items, whose width is `context_channels`.
    The rows of `kv` are ordered (k, v) × head × channel. For `heads` and `head_channels` see `head_count`.

    The output map starts at zero. Neither input is normalised: place a `NormAct(channels, act=None)` before the pixels.
    Items have no position: add an embedding of it to them where their order matters. Raises ValueError for fewer
    than one channel of the items.
    """

    def __init__(
        self, channels: int, context_channels: int, heads: int | None = None, head_channels: int | None = None
    ) -> None:
        super().__init__()
        if context_channels < 1:
            raise ValueError(f"context_channels={context_channels}: the items of a sequence have at least one channel")
        self.heads = head_count(channels, heads, head_channels)
        self.q = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.kv = nn.Linear(context_channels, 2 * channels, bias=False)
        self.out = ZeroConv2d(channels, channels, kernel_size=1)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        context: Float[Tensor, "b items e"],
        mask: Bool[Tensor, "b items"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """`mask` is true for the items that exist, and false for padding. An image without items attends to zeros."""
        q = rearrange(self.q(x), "b (n d) h w -> b n (h w) d", n=self.heads)
        k, v = rearrange(self.kv(context), "b items (two n d) -> two b n items d", two=2, n=self.heads)
        if mask is not None:
            # One more item of zeros, for images that have no other: the softmax of no items is undefined.
            k, v = (F.pad(part, (0, 0, 0, 1)) for part in (k, v))
            mask = torch.cat([mask, ~mask.any(dim=1, keepdim=True)], dim=1)[:, None, None]
        return self.out(rearrange(attend(q, k, v, mask), "b n (h w) d -> b (n d) h w", h=x.shape[2]))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def attend(
    q: Float[Tensor, "b n pixels d"],
    k: Float[Tensor, "b n items d"],
    v: Float[Tensor, "b n items d"],
    mask: Bool[Tensor, "b 1 1 items"] | None = None,
) -> Float[Tensor, "b n pixels d"]:
    """`softmax(q kᵀ / √d) v` for each image and head (Vaswani et al. 2017, eq. 1), over the items where `mask` is true.

    The backward pass of PyTorch's operation is slow on a CPU in bf16 for few pixels. After `native.load()` it is
    computed in float32 there.
    """
    short = q.requires_grad and q.dtype is torch.bfloat16 and q.shape[2] <= SHORT
    if native.library is not None and q.device.type == "cpu" and short:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask)
