"""What carries the input past the branch."""

from torch import Tensor, nn


class Identity(nn.Module):
    """The input, unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Project(nn.Conv2d):
    """A 1×1 convolution: the cheapest learned map that makes two widths agree (He et al. 2015, eq. 2)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(c_in, c_out, kernel_size=1, stride=stride, bias=bias)
