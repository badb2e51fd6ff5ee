"""Branches with a bounded Lipschitz constant: below 1, their residual block is invertible."""

import math
from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from residual.block import Chain

# The largest slope of an activation. That of SiLU and GELU is rounded up.
SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1,
    nn.ELU: 1,
    nn.Softplus: 1,
    nn.Tanh: 1,
    nn.Sigmoid: 0.25,
    nn.SiLU: 1.1,
    nn.GELU: 1.13,
}


def norm_bound(weight: Float[Tensor, "c_out c_in *k"]) -> Float[Tensor, ""]:
    """An upper bound of the operator norm of a linear map, where it is exact, or of a 2D convolution padded with zeros.

    For a convolution it is `√(h w)` times the smaller spectral norm of the kernel as a matrix, in two ways (Singla and
    Feizi 2021, theorem 1). It holds for all sizes of images, strides and groups, and is loose by a factor of up to
    `√(h w)`.
    """
    if weight.dim() == 2:
        return torch.linalg.matrix_norm(weight, 2)
    matrices = (rearrange(weight, pattern) for pattern in ("o i h w -> o (i h w)", "o i h w -> i (o h w)"))
    return (
        math.sqrt(math.prod(weight.shape[2:])) * torch.stack([torch.linalg.matrix_norm(m, 2) for m in matrices]).amin()
    )


class NormLimit(nn.Module):
    """A parametrization that divides a weight so that `norm_bound(weight)` is at most `bound`."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, weight: Tensor) -> Tensor:
        return weight / (norm_bound(weight) / self.bound).clamp_min(1)


def lipschitz_branch(branch: nn.Module, bound: float = 0.9) -> nn.Module:
    """Limits the weights of `branch`: its Lipschitz constant is at most `bound` (Behrmann et al. 2019, i-ResNet).

    Every layer has an equal share of the bound. With a bound below 1, `Residual(branch)` is invertible
    (`residual.ode.invert`), and distances change by factors from `1 - bound` to `1 + bound`.

    The branch is changed, and returned. Raises ValueError, with the name of the layer, unless it is a chain of linear
    maps, 2D convolutions with zero padding, and activations in `SLOPES`: norms have no bounded Lipschitz constant.
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"bound={bound:g} must be above 0 and finite")
    weights: list[nn.Module] = []
    slope = 1.0
    for name, layer in _layers(branch):
        zeros = isinstance(layer, nn.Conv2d) and layer.padding_mode == getattr(layer, "borders", "zeros") == "zeros"
        if isinstance(layer, nn.Linear) or zeros:
            weights.append(layer)
        elif type(layer) in SLOPES:
            slope *= max(SLOPES[type(layer)], getattr(layer, "alpha", 0))
        else:
            raise ValueError(
                f"{name or 'the branch'}: no bound of the Lipschitz constant of {layer} is known; leave it out"
            )
    if not weights:
        raise ValueError(f"{type(branch).__name__} has no linear map and no convolution that could be limited")
    for layer in weights:
        parametrize.register_parametrization(layer, "weight", NormLimit((bound / slope) ** (1 / len(weights))))
    return branch


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested chains, in the order of their calls."""
    if not isinstance(module, (Chain, nn.Sequential)):
        yield name, module
        return
    for key, node in module._modules.items():
        assert node is not None
        yield from _layers(node, f"{name}.{key}" if name else key)
