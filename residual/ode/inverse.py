"""The inverse of residual blocks, by a fixed point."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residual.block import Residual
from residual.ode.block import euler_step, require_deterministic, residuals
from residual.ode.fixed_point import implicit


def invert(
    blocks: nn.Module,
    y: Float[Tensor, "b *n"],
    emb: Float[Tensor, "b e"] | None = None,
    *,
    tol: float | None = None,
    max_iterations: int = 100,
) -> Float[Tensor, "b *n"]:
    """The input of `blocks`, one `Residual` or a chain of them, from their output (Behrmann et al. 2019, algorithm 1).

    Each block is `x + h branch(x)`, and `x = y - h branch(x)` is solved by `fixed_point`. The solution is unique if h
    times the Lipschitz constant of the branch is below 1 (`lipschitz_branch`). Gradients are implicit.

    Raises ValueError, with the name of the block, for other shortcuts and merges and for branches that are random in
    training, and NotConverged if no solution is found.
    """
    for name, block in reversed(list(residuals(blocks))):
        y = _input(name, block, y, emb, tol, max_iterations)
    return y


def _input(name: str, block: Residual, y: Tensor, emb: Tensor | None, tol: float | None, max_iterations: int) -> Tensor:
    branch, h = euler_step(name, block)
    require_deterministic(branch)
    return implicit(
        lambda x: torch.sub(y, branch(x, emb) if block.takes_emb else branch(x), alpha=h),
        y,
        tol=tol,
        max_iterations=max_iterations,
        what=f"the inverse of {name}",
        advice="build the branch with lipschitz_branch and a bound below 1, or raise max_iterations or tol",
    )
