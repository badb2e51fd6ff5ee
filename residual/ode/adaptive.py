"""Adaptive steps of Dormand and Prince's method of order 5, with gradients by the adjoint equation (torchdiffeq)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from residual.ode.fixed_point import NotConverged, require_first_derivative
from residual.ode.steps import RightSide

MAX_STEPS = 1000


class _Dynamics:
    """The right side as torchdiffeq calls it. `callback_step` runs before every step, also of the adjoint equation."""

    def __init__(self, f: RightSide, rtol: float, times: Tensor) -> None:
        self.f = f
        self.rtol = rtol
        self.ends = times.tolist()
        self.steps = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.f(x)

    def callback_step(self, t: Tensor, x: Tensor | Sequence[Tensor], dt: Tensor) -> None:
        self.steps = 1 if t.item() in self.ends else self.steps + 1  # a pass begins at one of the ends
        finite = all(part.isfinite().all() for part in ([x] if isinstance(x, Tensor) else x))
        if not finite or self.steps > MAX_STEPS or t.abs() + dt == t.abs():
            raise NotConverged(
                f"dopri5 stopped at t={t.item():g} after {self.steps} steps, the last of length {dt.item():.1e}"
                f"{'' if finite else ', with values that are not finite'}; "
                f"raise rtol={self.rtol:g}, shorten the time, or bound the branch"
            )

    callback_step_adjoint = callback_step


def dopri5(f: RightSide, x: Tensor, time: float, rtol: float, adjoint: Sequence[Tensor] | None = None) -> Tensor:
    """The solution of `dx/dt = f(x)` at `time`, from x at 0, with absolute and relative tolerance `rtol` per step.

    The error is a mean over the batch, so all samples have the same steps. With `adjoint`, the tensors besides x that f
    depends on, gradients solve the adjoint equation backwards (Chen et al. 2018), and the memory does not grow with
    the number of steps. These gradients are wrong where the ODE is unstable backwards in time, and cannot be
    differentiated again.

    Raises ValueError if `rtol` is below the precision of x, and NotConverged after 1,000 steps, if a step becomes too
    short, or if values are not finite.
    """
    import torchdiffeq

    eps = torch.finfo(x.dtype).eps
    if rtol < eps:
        raise ValueError(f"rtol={rtol:g} is below {eps:.1e}, the precision of {x.dtype}: raise it, or use float64")
    times = torch.tensor([0, time], dtype=x.dtype, device=x.device)
    dynamics = _Dynamics(f, rtol, times)
    options: dict[str, Any] = {"rtol": rtol, "atol": rtol, "method": "dopri5"}
    if adjoint is None:
        return torchdiffeq.odeint(dynamics, x, times, **options)[1]
    y = torchdiffeq.odeint_adjoint(dynamics, x, times, adjoint_params=tuple(adjoint), **options)[1]
    if y.requires_grad:
        y.register_hook(require_first_derivative)
    return y
