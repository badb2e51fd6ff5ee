"""Self-attention over the pixels of an image."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
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


def attend(
    q: Float[Tensor, "b n pixels d"], k: Float[Tensor, "b n pixels d"], v: Float[Tensor, "b n pixels d"]
) -> Float[Tensor, "b n pixels d"]:
    """`softmax(q kᵀ / √d) v` for each image and head (Vaswani et al. 2017, eq. 1).

    The backward pass of PyTorch's operation is slow on a CPU in bf16 for few pixels. After `native.load()` it is
    computed in float32 there.
    """
    short = q.requires_grad and q.dtype is torch.bfloat16 and q.shape[2] <= SHORT
    if native.library is not None and q.device.type == "cpu" and short:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)
