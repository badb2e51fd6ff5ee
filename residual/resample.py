"""Halving and doubling the sides of an image."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class AveragePool(nn.Module):
    """Half the size: each pixel is the mean of a 2×2 square. No parameters."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.avg_pool2d(x, kernel_size=2)


class Nearest(nn.Module):
    """Twice the size: each pixel becomes a 2×2 square. No parameters."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class StridedConv(nn.Conv2d):
    """Half the size: a 3×3 convolution with stride 2.

    On an even side one row of padding is enough, and two conventions are in use; weights trained under one are wrong
    under the other. `padding="both"` pads all four sides by one (PyTorch ports, ADM); `padding="end"` pads right and
    bottom only (TensorFlow's SAME: the original DDPM and the `google/ddpm-*` checkpoints).
    """

    def __init__(self, c_in: int, c_out: int, padding: Literal["both", "end"] = "both") -> None:
        if padding not in ("both", "end"):
            raise ValueError(f"no padding {padding!r}; one of: both, end")
        super().__init__(c_in, c_out, kernel_size=3, stride=2, padding=1 if padding == "both" else 0)
        self.pad_end = padding == "end"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class NearestConv(nn.Conv2d):
    """Twice the size: nearest-neighbour, then a 3×3 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
