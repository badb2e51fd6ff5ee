"""Lipschitz constants of residual networks over depth.

Claim: a block whose branch has the Lipschitz constant r changes distances by factors from 1 - r to 1 + r, so that L
blocks change them by (1 - r)^L to (1 + r)^L. The upper bound cannot exclude vanishing: the lower one does, for r below
1 (Behrmann et al. 2019). Measured are sampled ratios of distances, Jacobian norms and certified bounds of chains with
limited branches, and the variance behind scaled sums. A ratio outside of the bounds would refute it.
"""

from typing import Any

import torch
from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, holds, show
from experiments.run import Settings, main
from residual import Add, Residual, lipschitz_branch
from residual.probes.jacobians import eigenvalues, fixed_points, jacobian_norms, lipschitz_bounds, lipschitz_samples
from training.random import seeded

WIDTH = 16
RATES = (0.1, 0.5, 0.9)


def measure(settings: Settings) -> Finding:
    """Ratios, norms and bounds by depth and rate; a fixed point; variances of sums."""
    depths = settings.pick((1, 2, 4, 8, 16), (1, 4))
    rows, panels = list[list[Any]](), list[Panel]()
    ok = True
    for rate in RATES:
        low, high, jacobian, certified = (dict[int, list[float]]() for _ in range(4))
        for depth in depths:
            for seed in range(settings.seeds):
                model, x = chain(rate, depth, seed)
                whole = nn.Sequential(model).eval()
                ratios = lipschitz_samples(whole, x, ["0"], samples=32, radius=0.5)["0"]
                norms = jacobian_norms(model, x)
                bound = float(torch.tensor(list(lipschitz_bounds(model).values())).prod())
                values = (float(ratios.min()), float(ratios.max()), float(norms.end_to_end.max()), bound)
                for each, value in zip((low, high, jacobian, certified), values, strict=True):
                    each.setdefault(depth, []).append(value)
                room = 1e-4
                ok &= (1 - rate) ** depth <= values[0] * (1 + room) and values[1] <= bound * (1 + room)
                ok &= bound <= (1 + rate) ** depth * (1 + room)
                ok &= bool((norms.end_to_end <= norms.product * (1 + room)).all()) and values[2] <= bound * (1 + room)
            rows.append(
                [rate, depth, (1 - rate) ** depth, low[depth], high[depth], jacobian[depth], (1 + rate) ** depth]
            )
        panels.append(
            Panel(
                f"blocks (r = {rate})",
                "ratio of distances",
                [
                    Curve("(1 + r)^L", depths, [(1 + rate) ** depth for depth in depths]),
                    Curve("largest sampled ratio", depths, list(high.values())),
                    Curve("least sampled ratio", depths, list(low.values())),
                    Curve("(1 - r)^L", depths, [(1 - rate) ** depth for depth in depths]),
                ],
                "xy",
            )
        )
    x, x2 = torch.randn(2, 100_000, 1)
    half = 0.5**0.5
    kept = float(Add(scale=half, branch_scale=half)(x, x2).var())
    grown = float(Add()(x, x2).var())
    rest, largest = equilibrium()
    deepest = [row for row in rows if row[1] == depths[-1]]
    claims = [
        Claim(
            27,
            f"{depths[-1]} blocks: "
            + "; ".join(f"r = {r[0]}: {r[2]:.2g} ≤ {show(r[3])} … {show(r[4])} ≤ {r[6]:.3g}" for r in deepest),
            holds(ok, limit=True),
        ),
        Claim(
            26,
            f"the product of the blocks' norms bounds the end-to-end norm, e.g. {show(deepest[-1][5])} at r = 0.9",
            holds(ok),
        ),
        Claim(
            83,
            "the norm of the end-to-end Jacobian is at most the product of the blocks' norms in all cases",
            holds(ok),
        ),
        Claim(
            28,
            f"sums of independent signals of variance 1 have variance {kept:.3f} with scales √½, {grown:.3f} without",
            holds(abs(kept - 1) < 0.02),
        ),
        Claim(29, f"|F(x)| at the fixed point of a block: {rest:.0e}", holds(rest < 1e-6)),
        Claim(
            89,
            f"largest |eigenvalue| at a fixed point of x + F with F = -x/2 + limited: {largest:.3f}, so it is stable",
            holds(largest < 1),
        ),
    ]
    columns = {
        "r": "",
        "blocks": "",
        "(1 - r)^L": "",
        "least ratio": "",
        "largest ratio": "",
        "Jacobian norm": "",
        "(1 + r)^L": "",
    }
    title = "Distances change by factors between (1 - r)^L and (1 + r)^L"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def chain(rate: float, depth: int, seed: int) -> tuple[nn.Sequential, torch.Tensor]:
    """Blocks whose branches have a Lipschitz constant of at most `rate`, in float64, and random inputs."""
    with seeded(seed, "lipschitz"):
        blocks = [Residual(branch(rate)) for _ in range(depth)]
        return nn.Sequential(*blocks).double().eval().requires_grad_(False), torch.randn(8, WIDTH, dtype=torch.float64)


def branch(bound: float) -> nn.Module:
    """A random network with a limited Lipschitz constant, whose weights reach the limit."""
    layers = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=2)
    return lipschitz_branch(nn.Sequential(layers[0], nn.Tanh(), layers[1]), bound)


class Pull(nn.Module):
    """`f(x) - x / 2`: a branch with one zero, since f is limited to Lipschitz constant 0.4."""

    def __init__(self) -> None:
        super().__init__()
        self.f = branch(0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x) - x / 2


def equilibrium() -> tuple[float, float]:
    """The norm of the branch at the fixed point of a block, and the largest absolute eigenvalue of the block there."""
    block = Residual(Pull()).double().eval().requires_grad_(False)
    (point,) = fixed_points(block, torch.randn(4, WIDTH, dtype=torch.float64)).values()
    (values,) = eigenvalues(block, point).values()
    return float(block.branch(point).norm(dim=1).max()), float(values.abs().max())


if __name__ == "__main__":
    main(measure)
