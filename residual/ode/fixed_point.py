"""Fixed points `z = g(z)` by Anderson acceleration, and their gradients by implicit differentiation."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class NotConverged(ValueError):
    """A solver has stopped before it reached its tolerance. The message names the residual and what to change."""


@torch.no_grad()
def fixed_point(
    g: Callable[[Tensor], Tensor],
    start: Float[Tensor, "b *n"],
    *,
    tol: float | None = None,
    max_iterations: int = 100,
    memory: int = 12,
    what: str = "the fixed point",
    advice: str = "raise max_iterations or tol",
) -> Float[Tensor, "b *n"]:
    """The point z with `|g(z) - z| ≤ tol (|start| + |g(start) - start|)` for every sample, in the Euclidean norm.

    Anderson acceleration (Anderson 1965; Walker and Ni 2011, eq. 2.2) combines the last `memory` differences of each
    sample; `memory=0` is the plain iteration z ← g(z). The default of `tol` is `default_tol(start)`. Raises ValueError
    for numbers out of range, and NotConverged, with `what` and `advice`, after `max_iterations` evaluations or as soon
    as a value is not finite.
    """
    eps = torch.finfo(start.dtype).eps
    tol = default_tol(start) if tol is None else tol
    if not eps <= tol < 1:
        raise ValueError(f"tol={tol:g} must be below 1 and at least {eps:.1e}, the precision of {start.dtype}")
    if max_iterations < 1 or memory < 0:
        raise ValueError(f"max_iterations={max_iterations} must be at least 1, and memory={memory} at least 0")
    z = start
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    for iteration in range(1, max_iterations + 1):
        r = g(z) - z
        if not points:
            scale = (_norm(start) + _norm(r)).clamp_min(torch.finfo(start.dtype).tiny)
        relative = (_norm(r) / scale).max().item()
        if relative <= tol:
            return z
        if iteration == max_iterations or not math.isfinite(relative):
            break
        points, residuals = [*points, z][-memory - 1 :], [*residuals, r][-memory - 1 :]
        z = z + r if len(points) == 1 else _accelerated(points, residuals)
    raise NotConverged(
        f"{what} did not converge: relative residual {relative:.1e} after {iteration} iterations, tol={tol:.1e}; "
        f"{advice}"
    )


def default_tol(x: Tensor) -> float:
    """ε^⅔ of the dtype, that of autocast if it is on: 4e-11 in float64, 2e-5 in float32, 4e-2 in bfloat16."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return torch.finfo(dtype).eps ** (2 / 3)


def _norm(x: Tensor) -> Float[Tensor, "b"]:
    return torch.linalg.vector_norm(_rows(x), dim=1)


def _rows(x: Tensor) -> Float[Tensor, "b n"]:
    return x.reshape(len(x), -1)


def _accelerated(points: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """The next iterate: the affine combination of `z + r` whose combined residual is the smallest, for each sample."""
    z, r = points[-1], residuals[-1]
    dtype = torch.promote_types(z.dtype, torch.float32)
    with torch.autocast(z.device.type, enabled=False):
        dz, dr = (torch.stack([_rows(b - a) for a, b in pairwise(row)], -1).to(dtype) for row in (points, residuals))
        size = torch.linalg.vector_norm(dr, dim=1, keepdim=True).clamp_min(torch.finfo(dr.dtype).tiny)
        unit = dr / size  # columns of one size give the Gram matrix the best condition
        weights = torch.linalg.pinv(unit.mT @ unit, hermitian=True) @ (unit.mT @ _rows(r).unsqueeze(-1).to(dtype))
        step = (dz + dr) @ (weights / size.mT)
    return z + r - step.view_as(z).to(z.dtype)


def implicit(g: Callable[[Tensor], Tensor], start: Float[Tensor, "b *n"], **options: Any) -> Float[Tensor, "b *n"]:
    """The fixed point of `g`, with gradients to all tensors that `g` uses, by implicit differentiation.

    With J the Jacobian of g at the solution, the gradient v of the output becomes `w = v + Jᵀ w`, a fixed point as
    well, which is passed on to one evaluation of g (Bai et al. 2019, theorem 1). The memory does not grow with the
    number of iterations. `g` must be deterministic. `options` are those of `fixed_point`, for both solutions.

    Raises what `fixed_point` raises, in both passes, and ValueError for second derivatives.
    """
    if options.get("tol") is None:
        options["tol"] = default_tol(start)  # also for the backward pass, which is outside of autocast
    z = fixed_point(g, start, **options).detach()
    if not torch.is_grad_enabled():
        return g(z)
    z.requires_grad_()
    return _ImplicitGradient.apply(g(z), z, options)


def require_first_derivative(*_: Tensor) -> None:
    """Called in a backward pass: raises ValueError if the pass builds a graph, that is for second derivatives."""
    if torch.is_grad_enabled():
        raise ValueError("implicit and adjoint gradients have no derivatives of their own: leave out create_graph=True")


class _ImplicitGradient(torch.autograd.Function):
    """The identity of `value = g(z)`, whose backward pass solves `w = v + Jᵀ w`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, z: Tensor, options: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(value, z)
        ctx.options = options
        return value.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        require_first_derivative()
        value, z = ctx.saved_tensors

        def transposed(w: Tensor) -> Tensor:
            return v + torch.autograd.grad(value, z, w, retain_graph=True, materialize_grads=True)[0]

        what = f"the gradient of {ctx.options.get('what', 'the fixed point')}"
        return fixed_point(transposed, v, **ctx.options | {"what": what}), None, None
