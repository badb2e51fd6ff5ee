"""Muon (Jordan et al. 2024): steps whose matrices have singular values near one."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from training.precision import cpu_flags

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""of the odd polynomial that moves singular values in (0, 1] towards one (Jordan et al. 2024)"""
ITERATIONS = 5


def orthogonalize(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """The matrices with the same singular vectors, and with singular values of about 0.7 to 1.2.

    Newton-Schulz iteration (Jordan et al. 2024), in bfloat16 on a GPU and on a CPU with AMX. A matrix of zeros stays
    zero.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda or "amx_bf16" in cpu_flags() else matrices.float()
    if tall := matrices.shape[1] > matrices.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above one
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.AdamW):
    """Muon for parameters of two axes or more, AdamW for the others.

    A convolution's weight is a matrix of one row per output channel. The step of a matrix is scaled to the root mean
    square that a step of AdamW has, so both use one learning rate (Liu et al. 2025, equation 4). Weight decay is
    decoupled. `step` sets the gradients of matrices to None.

    params: parameter groups, as for AdamW. momentum: decay rate of the running mean of the gradient, which is used in
    Nesterov's form.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], momentum: float
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, fused=True)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            matrices = [weight for weight in group["params"] if weight.ndim > 1 and weight.grad is not None]
            if matrices:
                self._step_matrices(matrices, group["lr"], group["weight_decay"])
        super().step()  # of the weights that still have a gradient

    def _step_matrices(self, weights: list[Tensor], rate: float, decay: float) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        means = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        directions = torch._foreach_lerp(gradients, means, self.momentum)
        torch._foreach_mul_(weights, 1 - rate * decay)
        for alike in _by_shape(directions):
            steps = orthogonalize(torch.stack([_as_matrix(directions[index]) for index in alike]))
            scale = 0.2 * max(steps.shape[1:]) ** 0.5
            chosen = [_as_matrix(weights[index]) for index in alike]
            torch._foreach_add_(chosen, steps.unbind(), alpha=-rate * scale)
        for weight in weights:
            weight.grad = None


def _as_matrix(weight: Tensor) -> Tensor:
    """A view with one row per output channel. In channels last its columns are in the order of memory; the order does
    not change the step."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.movedim(1, 3)
    return weight.view(len(weight), -1)


def _by_shape(tensors: Iterable[Tensor]) -> Iterable[list[int]]:
    """Places of the tensors that are matrices of the same shape."""
    places = defaultdict(list)
    for place, tensor in enumerate(tensors):
        places[len(tensor), tensor[0].numel()].append(place)
    return places.values()
