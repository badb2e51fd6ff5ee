"""Muon (Jordan et al. 2024): steps whose matrices have singular values near one."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from residual import native
from training.precision import cpu_flags

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""of the odd polynomial that moves singular values in (0, 1] towards one (Jordan et al. 2024)"""
ITERATIONS = 5


def orthogonalize(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """The matrices with the same singular vectors, and with singular values of about 0.7 to 1.2.

    Newton-Schulz iteration (Jordan et al. 2024), in bfloat16 on a GPU, and after `native.load()` on a CPU with AMX. A
    matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    fast = matrices.is_cuda or (native.library is not None and "amx_bf16" in cpu_flags())
    x = matrices.bfloat16() if fast else matrices.float()
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
            chosen = [_in_order(weights[index], weights[index]) for index in alike]
            moved = [_in_order(directions[index], weights[index]) for index in alike]
            steps = orthogonalize(torch.stack([direction.flatten(1) for direction in moved]))
            scale = 0.2 * max(steps.shape[1:]) ** 0.5
            views = [step.view(weight.shape) for step, weight in zip(steps, chosen, strict=True)]
            torch._foreach_add_(chosen, views, alpha=-rate * scale)
        for weight in weights:
            weight.grad = None


def _in_order(tensor: Tensor, weight: Tensor) -> Tensor:
    """A view with channels at the end if the weight is in channels last: then `flatten(1)` does not copy. The order of
    a matrix's columns does not change its step."""
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return tensor.movedim(1, 3) if last else tensor


def _by_shape(tensors: Iterable[Tensor]) -> Iterable[list[int]]:
    """Places of the tensors that are matrices of the same shape."""
    places = defaultdict(list)
    for place, tensor in enumerate(tensors):
        places[len(tensor), tensor[0].numel()].append(place)
    return places.values()
