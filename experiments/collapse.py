"""Layers that destroy information, with and without a shortcut.

Claim: a singular layer maps different inputs to the same output; with a shortcut the map is invertible, so inputs stay
distinct. It is true for the projection P, as I + P is invertible, but not for every branch: I - P is singular. A branch
with a Lipschitz constant below 1 suffices (Behrmann et al. 2019, i-ResNet). Measured are ranks, the recovered inputs,
and the rank and distance of features along random ReLU layers. A lower rank with shortcuts would refute it.
"""

from typing import Any

import torch
from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.run import Settings, main
from residual import Add, Residual, lipschitz_branch
from residual.ode import invert
from residual.probes.features import spreads
from training.random import seeded

PROJECTION = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
WIDTH, IMAGES = 64, 64


def measure(settings: Settings) -> Finding:
    """Ranks of powers and sums, inverses of blocks, and the rank of features by depth."""
    one = torch.eye(3, dtype=torch.float64)
    maps = {"P^20": torch.linalg.matrix_power(PROJECTION, 20), "I + P": one + PROJECTION, "I - P": one - PROJECTION}
    rank = {name: int(torch.linalg.matrix_rank(matrix)) for name, matrix in maps.items()}
    det = {name: float(torch.linalg.det(matrix)) for name, matrix in maps.items()}
    condition = float(torch.linalg.cond(maps["I + P"]))
    error = inverse_error()
    depth = settings.pick(48, 12)
    draws, kinds = settings.pick(16, 2), ("plain", "residual")
    found = {kind: [by_depth(kind, depth, draws, seed) for seed in range(settings.seeds)] for kind in kinds}
    ranks = {kind: [each[0] for each in seeds] for kind, seeds in found.items()}
    distances = {kind: [each[1] for each in seeds] for kind, seeds in found.items()}
    ends = {kind: [each[-1] for each in seeds] for kind, seeds in ranks.items()}
    apart = {kind: [each[-1] for each in seeds] for kind, seeds in distances.items()}
    rows: list[list[Any]] = [
        *([name, float(rank[name]), det[name]] for name in maps),
        ["error of the inverse of an i-ResNet block", error, "-"],
        *([f"effective rank after {depth} {kind} layers", seeds, "-"] for kind, seeds in ends.items()),
        *([f"relative distance after {depth} {kind} layers", seeds, "-"] for kind, seeds in apart.items()),
    ]
    claims = [
        Claim(
            19,
            f"rank of P^20: {rank['P^20']}; det(I + P) = {det['I + P']:g}, condition {condition:g}; but the rank of "
            f"I - P is {rank['I - P']} of 3. With Lipschitz constant 0.9 the input is recovered to {error:.1e}",
            holds(rank["P^20"] == 1 and rank["I + P"] == 3 and error < 1e-6, limit=rank["I - P"] < 3),
        ),
        Claim(
            20,
            f"effective rank of {IMAGES} inputs after {depth} random layers: plain {show(ends['plain'])}, "
            f"residual {show(ends['residual'])}; distance: plain {show(apart['plain'])}, "
            f"residual {show(apart['residual'])}",
            compare([b - a for kind in (ends, apart) for a, b in zip(kind["plain"], kind["residual"], strict=True)]),
        ),
    ]
    layers = list(range(1, depth + 1))
    curves = [
        [Curve(kind, layers, list(zip(*seeds, strict=True))) for kind, seeds in each.items()]
        for each in (ranks, distances)
    ]
    panels = [
        Panel("layer", f"effective rank of {IMAGES} inputs", curves[0]),
        Panel("layer", "distance of two inputs / their norm", curves[1], "y"),
    ]
    columns = {"quantity": "", "rank or value": "", "determinant": ""}
    title = "Random plain layers merge different inputs; shortcuts keep them apart"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def inverse_error() -> float:
    """The largest error of inputs that are recovered from the output of a block with a Lipschitz constant below 1."""
    branch = lipschitz_branch(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), 0.9).double()
    x = torch.randn(16, 8, dtype=torch.float64)
    return float((invert(Residual(branch), Residual(branch)(x)) - x).abs().max().detach())


def by_depth(kind: str, depth: int, draws: int, seed: int) -> list[list[float]]:
    """Effective rank and distance of random inputs behind each layer, means over random networks."""
    found = torch.zeros(2, depth)
    for draw in range(draws):
        with seeded(seed, draw, "collapse"):
            merge = Add(scale=0.5**0.5, branch_scale=0.5**0.5)
            blocks = [Residual(layer(), merge=merge) for _ in range(depth)]
            x = torch.randn(IMAGES, WIDTH)
        model = nn.Sequential(*(block.branch if kind == "plain" else block for block in blocks)).eval()
        each = spreads(model, x, [str(i) for i in range(depth)]).values()
        found += torch.tensor([[spread.effective_rank, spread.distance] for spread in each]).T / draws
    return found.tolist()


def layer() -> nn.Sequential:
    """ReLU and a linear map that keep the mean square of their input (He et al. 2015b)."""
    linear = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.kaiming_normal_(linear.weight)
    return nn.Sequential(nn.ReLU(), linear)


if __name__ == "__main__":
    main(measure)
