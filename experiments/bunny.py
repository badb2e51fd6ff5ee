"""Steps of an ODE solver on exponential growth, whose solution is known.

Claim: a residual block `x + f(x)` is a step of Euler's method; Euler's method underestimates growth, and better methods
or smaller steps mend it (E 2017; Haber and Ruthotto 2017; Chen et al. 2018). A population of 100 grows by half of
itself per month, and reaches 100 e after two months. Measured are values and errors of all methods over the step, and
the stability of Euler's method and backward Euler. Wrong orders, a value of Euler above the exact one, or a block that
differs from a step would refute it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, holds
from experiments.run import Settings, main
from residual import Add, Residual
from residual.ode import ODEBlock

RATE, MONTHS, START = 0.5, 2.0, 100.0
EXACT = START * math.e
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "backward_euler": 1}
STEPS = (2, 4, 8, 16, 32, 64)
RTOLS = (1e-3, 1e-6, 1e-9)


class Growth(nn.Module):
    """`rate · x`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return self.rate * x


def solve(rate: float, time: float, start: float = START, method: str = "euler", **options: float) -> tuple[float, int]:
    """The value after `time`, and the evaluations of the right side, in float64."""
    block = ODEBlock(Growth(rate), method, time=time, **options)  # type: ignore[arg-type]
    value = block(torch.tensor([[start]], dtype=torch.float64)).item()
    return value, block.evaluations


def measure(settings: Settings) -> Finding:
    """Values, errors, orders, the lower bound and the stability."""
    rows, errors = list[list[Any]](), dict[str, list[float]]()
    for method in ORDERS:
        for steps in STEPS:
            value, evaluations = solve(RATE, MONTHS, method=method, steps=steps)
            errors.setdefault(method, []).append(abs(value - EXACT))
            rows.append([method, steps, MONTHS / steps, value, value - EXACT, evaluations])
    for rtol in RTOLS:
        value, evaluations = solve(RATE, MONTHS, method="dopri5", rtol=rtol)
        rows.append(["dopri5", f"rtol {rtol:g}", "adaptive", value, value - EXACT, evaluations])
    adaptive = float(rows[-1][3])
    one = {method: solve(RATE, MONTHS, method=method, steps=2)[0] for method in ORDERS}
    orders = {method: math.log2(each[-2] / each[-1]) for method, each in errors.items()}
    months = [solve(RATE, month, steps=month)[0] for month in (1, 2)]
    bound, growth = lower_bound(settings.pick(1000, 100)), stability()
    fine = solve(RATE, MONTHS, method="backward_euler", steps=200)[0]
    right = all(abs(orders[method] - order) < 0.1 for method, order in ORDERS.items())
    exact = one["midpoint"] == one["heun"] == 264.0625 and abs(one["rk4"] - 271.7346) < 5e-5
    listed = ", ".join(f"{method} {order:.2f}" for method, order in orders.items())
    claims = [
        Claim(8, f"the exact value is {EXACT:.3f}; dopri5 finds {adaptive:.3f}", holds(abs(adaptive - EXACT) < 1e-5)),
        Claim(9, f"two Euler steps add the rate twice: {START:g} + 50 + 75 = {months[1]:g}", holds(months[1] == 225)),
        Claim(10, f"Euler: {START:g}, {months[0]:g}, {months[1]:g}", holds(months == [150, 225])),
        Claim(
            11,
            f"the largest (1 + h r)^n / exp(h n r) of random r and h is {bound:.6f}; errors fall with h",
            holds(bound <= 1 and errors["euler"] == sorted(errors["euler"], reverse=True)),
        ),
        Claim(
            12,
            f"one-month steps: midpoint and Heun {one['midpoint']:g}, RK4 {one['rk4']:.4f}; orders: {listed}",
            holds(right and exact),
        ),
        Claim(13, "n weight-tied residual blocks and ODEBlock are equal to the last bit", holds(same_bits())),
        Claim(35, "the branch scale h of a sum is the step length, to the last bit", holds(same_bits(0.25))),
        Claim(
            36,
            f"50 Euler steps multiply by {growth['euler', -1.9]:.3g} at hλ = -1.9, {growth['euler', -2.1]:.4g} at -2.1",
            holds(growth["euler", -1.9] < 1 < growth["euler", -2.1]),
        ),
        Claim(
            37,
            f"backward Euler: {one['backward_euler']:g} with h = 1, {fine:.3f} with h = 0.01; at hλ = -2.1 it "
            f"multiplies by {growth['backward_euler', -2.1]:.1e} in 50 steps",
            holds(abs(one["backward_euler"] - 400) < 1e-6 and growth["backward_euler", -2.1] < 1),
        ),
    ]
    sizes = [MONTHS / count for count in STEPS]
    panel = Panel(
        "step (months)",
        "error after two months (animals)",
        [Curve(f"{method}, order {orders[method]:.2f}", sizes, errors[method]) for method in ORDERS],
        "xy",
    )
    columns = {"method": "", "steps": "", "step": "months", "value": "animals", "error": "animals", "evaluations": ""}
    return Finding("Residual blocks are Euler steps: the error falls with the order", columns, rows, claims, [panel])


def lower_bound(count: int) -> float:
    """The largest ratio of Euler's value to the exact one, for random steps and rates with 1 + h r ≥ 0."""
    ratios = []
    for draw in torch.rand(count, 3, dtype=torch.float64).tolist():
        steps, time = 1 + int(10 * draw[0]), 0.01 + 4 * draw[1]
        rate = (4 * draw[2] - 1) * steps / time  # h r from -1 to 3
        ratios.append(solve(rate, time, steps=steps)[0] / START / math.exp(rate * time))
    return max(ratios)


def stability(steps: int = 50) -> dict[tuple[str, float], float]:
    """The factor of the value after 50 steps of length 1, by method and λ."""
    cases = [(method, rate) for method in ("euler", "backward_euler") for rate in (-1.9, -2.1)]
    return {(m, rate): abs(solve(rate, steps, start=1.0, method=m, steps=steps)[0]) for m, rate in cases}


def same_bits(h: float = 1.0, steps: int = 8) -> bool:
    """Whether weight-tied residual blocks with the branch scale h equal Euler's method to the last bit."""
    branch, x = nn.Sequential(nn.Linear(16, 16), nn.Tanh()), torch.randn(4, 16)
    blocks = nn.Sequential(*(Residual(branch, merge=Add(branch_scale=h)) for _ in range(steps)))
    return torch.equal(blocks(x), ODEBlock(branch, "euler", steps=steps, time=steps * h)(x))


if __name__ == "__main__":
    main(measure)
