"""Convolutions that start in a particular way."""

from torch import nn


class ZeroConv2d(nn.Conv2d):
    """A convolution whose weights start at zero: last in a branch, it makes a fresh block exactly its shortcut."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
