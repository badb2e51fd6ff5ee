"""One step of length h of `dx/dt = f(x)`, by several methods."""

from collections.abc import Callable

import torch
from torch import Tensor

from residual.ode.fixed_point import implicit

RightSide = Callable[[Tensor], Tensor]
Step = Callable[[RightSide, Tensor, float], Tensor]


def euler(f: RightSide, x: Tensor, h: float) -> Tensor:
    """`x + h f(x)`, a residual block. Order 1, stable for -2 < hλ < 0."""
    return torch.add(x, f(x), alpha=h)


def midpoint(f: RightSide, x: Tensor, h: float) -> Tensor:
    """`x + h f(x + h/2 f(x))`. Order 2, two evaluations, stable for -2 < hλ < 0."""
    return torch.add(x, f(euler(f, x, h / 2)), alpha=h)


def heun(f: RightSide, x: Tensor, h: float) -> Tensor:
    """`x + h/2 (k1 + k2)`, with the slopes at the start and at Euler's end. Order 2, two evaluations."""
    k1 = f(x)
    k2 = f(torch.add(x, k1, alpha=h))
    return torch.add(x, k1 + k2, alpha=h / 2)


def rk4(f: RightSide, x: Tensor, h: float) -> Tensor:
    """The classical Runge-Kutta method. Order 4, four evaluations, stable for -2.78 < hλ < 0."""
    k1 = f(x)
    k2 = f(torch.add(x, k1, alpha=h / 2))
    k3 = f(torch.add(x, k2, alpha=h / 2))
    k4 = f(torch.add(x, k3, alpha=h))
    return torch.add(x, k1 + 2 * (k2 + k3) + k4, alpha=h / 6)


def backward_euler(
    f: RightSide, x: Tensor, h: float, *, tol: float | None = None, max_iterations: int = 100, memory: int = 12
) -> Tensor:
    """The solution of `z = x + h f(z)`, for every sample. Order 1, stable for all hλ < 0.

    The equation is solved by `fixed_point`, the gradient by `implicit`. Raises NotConverged if either fails.
    """
    return implicit(
        lambda z: torch.add(x, f(z), alpha=h),
        x,
        tol=tol,
        max_iterations=max_iterations,
        memory=memory,
        what=f"a step of backward Euler with h={h:g}",
        advice="take more steps, or raise max_iterations, memory or tol",
    )


STEPS: dict[str, Step] = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "backward_euler": backward_euler,
}
"""steps by their names"""
EXPLICIT = (euler, midpoint, heun, rk4)
"""steps that call the branch a fixed number of times"""
