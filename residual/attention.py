"""Self-attention over the pixels of an image."""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

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
        q, k, v = rearrange(self.qkv(x), "b (three n d) h w -> three b n (h w) d", three=3, n=self.heads)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(rearrange(h, "b n (h w) d -> b (n d) h w", h=x.shape[2]))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
