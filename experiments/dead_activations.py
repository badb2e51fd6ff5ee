"""Blocks whose activation is never on.

Claim: a block whose ReLU is off for all inputs blocks the gradient of a plain network, while a residual block passes it
unchanged. Measured are the gradients through one layer with a bias of -100, and through a whole network in which the
share of dead blocks grows. A gradient that is lost behind a shortcut, or that passes without one, would refute it.
"""

import torch
from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, holds
from experiments.run import Settings, main
from residual import Residual
from residual.probes.gradients import input_gradients
from training.random import seeded

DEPTH, WIDTH = 16, 16


def measure(settings: Settings) -> Finding:
    """Gradients by the number of dead blocks."""
    counts = settings.pick((0, 1, 2, 4, 8, 16), (0, 1, 16))
    norms = {
        kind: [[gradient(kind, dead, seed) for seed in range(settings.seeds)] for dead in counts]
        for kind in ("plain", "residual")
    }
    plain, passed = one_block(nn.Sequential(layer(True))), one_block(nn.Sequential(Residual(layer(True))))
    rows = [[kind, dead, found] for kind, each in norms.items() for dead, found in zip(counts, each, strict=True)]
    lost = all(value == 0 for found in norms["plain"][1:] for value in found)
    kept = all(value > 0.5 for found in norms["residual"] for value in found)
    claims = [
        Claim(
            82,
            f"gradient through a dead layer: plain {float(plain.abs().max()):g}, residual {float(passed.min()):g}; "
            f"with all {DEPTH} blocks dead a residual network still passes {norms['residual'][-1][0]:g}",
            holds(bool((plain == 0).all()) and bool((passed == 1).all()) and lost and kept),
        )
    ]
    curves = [Curve(kind, counts, found) for kind, found in norms.items()]
    panel = Panel(f"dead blocks of {DEPTH}", "norm of the gradient at the input", curves)
    title = "One dead layer stops a plain network; residual blocks pass the gradient"
    columns = {"network": "", "dead blocks": "", "input gradient": ""}
    return Finding(title, columns, rows, claims, [panel], settings.seeds)


def layer(dead: bool) -> nn.Sequential:
    """A linear map and ReLU; a dead one has a bias that keeps its ReLU off."""
    linear = nn.Linear(WIDTH, WIDTH)
    nn.init.normal_(linear.weight, std=(1 / WIDTH) ** 0.5)
    nn.init.constant_(linear.bias, -100.0 if dead else 0.0)
    return nn.Sequential(linear, nn.ReLU())


def one_block(model: nn.Module) -> torch.Tensor:
    """The gradient of the sum of the outputs at the input: the sum of a column of the Jacobian."""
    return input_gradients(model.eval(), torch.randn(8, WIDTH), lambda y: y.sum(dim=1))


def gradient(kind: str, dead: int, seed: int) -> float:
    """The mean norm of the input gradient of a network whose last blocks are dead, along a unit vector."""
    with seeded(seed, "dead"):
        layers = [layer(i >= DEPTH - dead) for i in range(DEPTH)]
        x, direction = torch.randn(8, WIDTH), nn.functional.normalize(torch.randn(WIDTH), dim=0)
    model = nn.Sequential(*(layers if kind == "plain" else map(Residual, layers))).eval()
    return float(input_gradients(model, x, lambda y: y @ direction).norm(dim=1).mean())


if __name__ == "__main__":
    main(measure)
