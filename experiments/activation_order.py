"""The gradient through a block with its activation after the sum, and before the weights.

Claim: the expected squared gradient of a pre-activation block `x + w relu(x)` is larger than that of a post-activation
block `relu(x + w x)` (He et al. 2016). For a symmetric scalar input the difference is 1/2 for every w. It is no general
theorem: the difference is P(x ≤ 0), which goes to 0 if inputs are mostly positive, as they are behind a ReLU. Measured
is it by Monte Carlo over w and over the share of positive inputs. Another difference would refute it.
"""

import torch
from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, holds
from experiments.run import Settings, main
from residual import Add, Residual
from residual.probes.gradients import input_gradients

WEIGHTS = (-0.5, 0.0, 0.5, 0.9, 1.5)
SHIFTS = (0.0, 0.5, 1.0, 2.0, 3.0)


def measure(settings: Settings) -> Finding:
    """Mean squared gradients by weight, and their difference by the share of positive inputs."""
    count = settings.pick(1_000_000, 20_000)
    x = torch.randn(count // 2, 1, dtype=torch.float64)
    x = torch.cat([x, -x])  # exactly symmetric
    rows, differences = [], []
    for w in WEIGHTS:
        post, pre = squared_gradients(w, x)
        rows.append([w, 0.5, post, pre, pre - post])
        differences.append(pre - post)
    shares, shifted = [], []
    for shift in SHIFTS:
        post, pre = squared_gradients(0.9, x + shift)
        shares.append(float((x + shift > 0).double().mean()))
        shifted.append(pre - post)
        if shift:
            rows.append([0.9, shares[-1], post, pre, pre - post])
    off = max(abs(each - 0.5) for each in differences)
    expected = max(abs(1 - share - each) for share, each in zip(shares, shifted, strict=True))
    claims = [
        Claim(
            84,
            f"symmetric scalar inputs: a difference of 1/2 to {off:.1e} for every w; at {100 * shares[-1]:.1f} % of "
            f"positive inputs it is {shifted[-1]:.4f}",
            holds(off < 1e-9 and expected < 1e-9, limit=shifted[-1] < 0.01),
        )
    ]
    panels = [
        Panel(
            "weight w of the branch",
            "mean squared gradient",
            [
                Curve(name, WEIGHTS, [row[i] for row in rows[: len(WEIGHTS)]])
                for i, name in ((2, "post-activation"), (3, "pre-activation"))
            ],
        ),
        Panel(
            "share of positive inputs",
            "difference, w = 0.9",
            [Curve("pre minus post", shares, shifted), Curve("P(x ≤ 0)", shares, [1 - share for share in shares])],
        ),
    ]
    columns = {"w": "", "positive inputs": "", "post-activation": "", "pre-activation": "", "difference": ""}
    title = "Pre-activation passes 1/2 more squared gradient for symmetric inputs, and nothing more for positive ones"
    return Finding(title, columns, rows, claims, panels, 1)


def squared_gradients(w: float, x: torch.Tensor) -> tuple[float, float]:
    """The mean squared gradients of the two blocks at the inputs."""
    linear = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(linear.weight, w)
    post, pre = Residual(linear, merge=Add(nn.ReLU())), Residual(nn.Sequential(nn.ReLU(), linear))
    first, second = (
        float(input_gradients(block.eval(), x, lambda y: y[:, 0]).square().mean()) for block in (post, pre)
    )
    return first, second


if __name__ == "__main__":
    main(measure)
