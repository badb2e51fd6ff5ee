"""Leaving branches out at random."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, the whole branch of an image is zero with `probability`, and scaled up otherwise to the same mean.

    Last in a branch, it drops residual units image by image (Huang et al. 2016, stochastic depth).
    Raises ValueError unless 0 ≤ probability < 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability={probability} of dropping a branch must be at least 0 and below 1")
        self.probability = probability

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training:
            return x
        keep = 1 - self.probability
        return x * (torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"
