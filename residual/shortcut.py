"""What carries the input past the branch."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Identity(nn.Module):
    """The input, unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Project(nn.Conv2d):
    """A 1×1 convolution: the cheapest learned map that makes two widths agree (He et al. 2015, eq. 2)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(c_in, c_out, kernel_size=1, stride=stride, bias=bias)


class ZeroPad(nn.Module):
    """Every `stride`-th pixel, and channels of zeros beside those of the input: option A of He et al. 2015.

    Two conventions are in use, and weights trained under one are wrong under the other: `side="end"` adds all zeros
    after the input's channels (fb.resnet.torch), `side="split"` half of them before (akamaster/pytorch_resnet_cifar10).
    Raises ValueError if the output would be narrower than the input.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1, side: Literal["end", "split"] = "end") -> None:
        super().__init__()
        if side not in ("end", "split"):
            raise ValueError(f"no side {side!r}; one of: end, split")
        if c_out < c_in:
            raise ValueError(f"{c_in} channels cannot be padded to {c_out}: project them")
        self.stride = stride
        self.before = (c_out - c_in) // 2 if side == "split" else 0
        self.after = c_out - c_in - self.before

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"{self.before} before, {self.after} after, stride={self.stride}"
