"""Channel attention: squeeze-and-excitation and split attention."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a gate in (0, 1), computed from all channel means (Hu et al. 2018, eq. 2 to 4).

    The hidden width is `channels / reduction`, rounded to a multiple of 8, as in timm: 64 / 16 becomes 8. The authors
    do not round.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(8, int(channels / reduction + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean = x.mean(dim=(2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.fc1(mean))))


class SplitAttention(nn.Module):
    """A 3×3 convolution to `radix` splits, whose weighted sum is the output. The weights of a channel sum to one.

    The weights are computed from the means of all channels (Zhang et al. 2020, ResNeSt, eq. 1 and 2, with one cardinal
    group).
    """

    def __init__(
        self,
        channels: int,
        *,
        radix: int = 2,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        hidden, splits = max(32, channels * radix // 4), channels * radix
        self.radix = radix
        self.conv = nn.Conv2d(channels, splits, 3, padding=1, groups=radix, bias=False)
        self.bn0 = norm(splits)
        self.act0 = act()
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1)
        self.bn1 = norm(hidden)
        self.act1 = act()
        self.fc2 = nn.Conv2d(hidden, splits, kernel_size=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = rearrange(self.act0(self.bn0(self.conv(x))), "b (r c) h w -> b r c h w", r=self.radix)
        mean = x.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        logits = self.fc2(self.act1(self.bn1(self.fc1(mean))))
        share = torch.softmax(rearrange(logits, "b (r c) h w -> b r c h w", r=self.radix), dim=1)
        return (x * share).sum(dim=1)

    def extra_repr(self) -> str:
        return f"radix={self.radix}"
