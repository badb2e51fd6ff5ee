"""Correlation of input gradients over the distance of inputs.

Claim: in deep plain networks the gradients of neighbouring inputs are uncorrelated like white noise; with shortcuts
they stay correlated (Balduzzi et al. 2017, figure 1). Measured is the autocorrelation of the gradient of fresh ReLU
networks over 256 points of a line, by depth. Gradients of plain networks that stay correlated would refute it.
"""

import torch
from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.run import Settings, main
from residual import Add, Residual
from residual.probes.gradients import gradient_autocorrelation
from residual.probes.robustness import batch_norm_statistics
from residual.probes.visit import line
from training.random import seeded

POINTS, LAGS = 256, 15
NETS = (("plain", 2), ("plain", 24), ("plain", 50), ("residual", 24), ("residual", 50))
BRANCH_SCALE = 0.1**0.5


def measure(settings: Settings) -> Finding:
    """The autocorrelations at lag 1, and over the lags."""
    width, draws = settings.pick((200, 16), (64, 2))
    found = {net: [autocorrelation(*net, width, draws, seed) for seed in range(settings.seeds)] for net in NETS}
    first = {net: [each[1] for each in seeds] for net, seeds in found.items()}
    claims = [
        Claim(
            75,
            "correlation of neighbours: "
            + ", ".join(f"{kind} {depth}: {show(first[kind, depth])}" for kind, depth in NETS),
            compare(
                [
                    b - abs(a)
                    for depth in (24, 50)
                    for a, b in zip(first["plain", depth], first["residual", depth], strict=True)
                ]
            ),
        )
    ]
    lags = list(range(LAGS + 1))
    curves = [
        Curve(f"{kind}, {depth} layers", lags, list(zip(*seeds, strict=True))) for (kind, depth), seeds in found.items()
    ]
    panel = Panel(f"lag (of {POINTS} points of a line)", "autocorrelation of the gradient", curves)
    rows = [[kind, depth, seeds, [each[LAGS] for each in found[kind, depth]]] for (kind, depth), seeds in first.items()]
    columns = {"network": "", "layers": "", "lag 1": "", f"lag {LAGS}": ""}
    title = "Gradients of deep plain networks are white noise; shortcuts keep them correlated"
    return Finding(title, columns, rows, claims, [panel], settings.seeds)


def autocorrelation(kind: str, depth: int, width: int, draws: int, seed: int) -> list[float]:
    """The mean autocorrelation, over random networks, of the gradient along a line of scalar inputs from -2 to 2."""
    found, start, end = [], torch.tensor([-2.0]), torch.tensor([2.0])
    for draw in range(draws):
        with seeded(seed, draw, "shattered"):
            first, last = nn.Linear(1, width), nn.Linear(width, 1)
            model = nn.Sequential(first, *(layer(kind, width) for _ in range(depth)), last).eval()
        statistics = batch_norm_statistics(model, [line(start, end, POINTS)])
        model.load_state_dict(statistics, strict=False)
        found.append(gradient_autocorrelation(model, start, end, lambda y: y[:, 0], points=POINTS, lags=LAGS))
    return torch.stack(found).mean(dim=0).tolist()


def layer(kind: str, width: int) -> nn.Module:
    """Batch norm, ReLU and a linear map (He et al. 2015b), as a layer or as the branch of a block."""
    linear = nn.Linear(width, width, bias=False)
    nn.init.kaiming_normal_(linear.weight)
    branch = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), linear)
    return branch if kind == "plain" else Residual(branch, merge=Add(branch_scale=BRANCH_SCALE))


if __name__ == "__main__":
    main(measure)
