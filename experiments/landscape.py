"""Slices of the loss around trained weights.

Claim: without shortcuts the loss around the trained weights of a deep network is steep and rugged, with shortcuts it
is smooth (Li et al. 2018, figure 1). Measured is the mean loss along three filter-normalised random directions, of
networks of 20 and 56 layers. A plain network whose loss rises as slowly would refute it.
"""

import statistics

from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.nets import cross_entropy, digits, resnet
from experiments.run import Settings, main
from residual.probes.robustness import loss_landscape

KINDS = {"plain": "none", "residual": "A"}
NEAR = 0.1
"""distance, as a share of the filters' norms, at which the rise is compared"""


def measure(settings: Settings) -> Finding:
    """The loss along directions, by kind and depth."""
    depths, directions = settings.pick(((20, 56), 3), ((8,), 1))
    steps = [i * NEAR for i in range(-5, 6)]
    x, label = digits(settings, held_out=False, count=settings.pick(128, 32))

    def slice_of(net: nn.Module) -> list[float]:
        """The loss along the directions, mean over them."""
        found = [loss_landscape(net, x, cross_entropy(label), steps, seed=i) for i in range(directions)]
        return [statistics.mean(values) for values in zip(*(each.tolist() for each in found), strict=True)]

    slices = {
        (kind, depth): [
            slice_of(resnet(depth, seed, settings, shortcut=shortcut).net) for seed in range(settings.seeds)
        ]
        for depth in depths
        for kind, shortcut in KINDS.items()
    }
    middle = len(steps) // 2
    rise = {
        key: [(each[middle - 1] + each[middle + 1]) / 2 - each[middle] for each in found]
        for key, found in slices.items()
    }
    deep = depths[-1]
    claims = [
        Claim(
            74,
            f"rise of the loss at {NEAR:g} of the weights' norms, {deep} layers: plain {show(rise['plain', deep])}, "
            f"residual {show(rise['residual', deep])}",
            compare([a - b for a, b in zip(rise["plain", deep], rise["residual", deep], strict=True)]),
        )
    ]
    curves = [
        Curve(f"{kind}, {depth} layers", steps, list(zip(*found, strict=True)))
        for (kind, depth), found in slices.items()
    ]
    panel = Panel("distance from the trained weights (share of their norms)", "mean loss", curves)
    rows = [[*key, [each[middle] for each in found], rise[key]] for key, found in slices.items()]
    columns = {"network": "", "layers": "", "loss": "", f"rise at {NEAR:g}": ""}
    return Finding(claims[0].measured, columns, rows, claims, [panel], settings.seeds)


if __name__ == "__main__":
    main(measure)
