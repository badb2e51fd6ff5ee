"""Total variation of a function with a shortcut.

Claim: for a branch f on [0, 1] with total variation V, that of `x + f(x)` lies between |1 - V| and 1 + V. Measured are
random networks as branches, whose outputs are scaled over four orders of magnitude, and f = -x, which reaches the lower
bound. A value outside of the bounds would refute it.
"""

import torch
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, holds
from experiments.run import Settings, main
from residual import Residual
from residual.probes.features import Variation, total_variations

POINTS = 512
TOLERANCE = 1e-9


class Minus(nn.Module):
    """`-x`."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


def measure(settings: Settings) -> Finding:
    """The variation of random branches and of their sums with the input."""
    count = settings.pick(300, 30)
    found = [variation(random_branch(10 ** (4 * i / (count - 1) - 2))) for i in range(count)]
    reached = variation(Minus())
    outside = sum(not inside(each) for each in found)
    lowest = min(each.output - abs(1 - each.branch) for each in found)
    highest = min(1 + each.branch - each.output for each in found)
    rows = [
        ["random branches", float(count), outside, lowest, highest],
        ["f = -x", 1.0, int(not inside(reached)), reached.output - abs(1 - reached.branch), 2 - reached.output],
    ]
    claims = [
        Claim(
            23,
            f"{outside} of {count} random branches outside of the bounds; f = -x has variation {reached.output:g}, "
            "which is the lower bound",
            holds(outside == 0 and reached.output < TOLERANCE),
        ),
        Claim(
            90, f"the bound follows for any penalty of the variation of f: {outside} violations", holds(outside == 0)
        ),
    ]
    found = sorted(found, key=lambda each: each.branch)
    v = [each.branch for each in found]
    curves = [
        Curve("x + f(x), random networks f", v, [each.output for each in found]),
        Curve("|1 - V|", v, [abs(1 - value) for value in v]),
        Curve("1 + V", v, [1 + value for value in v]),
    ]
    panel = Panel("total variation V of the branch", "total variation of the block", curves, "xy")
    columns = {
        "branches": "",
        "number": "",
        "outside of the bounds": "",
        "least distance to |1 - V|": "",
        "least distance to 1 + V": "",
    }
    title = "The variation of x + f(x) stays between |1 - V| and 1 + V"
    return Finding(title, columns, rows, claims, [panel], 1)


def variation(branch: nn.Module) -> Variation:
    """Variations of the block of a branch on [0, 1]."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    (found,) = total_variations(Residual(branch).eval(), zero, one, points=POINTS).values()
    return found


def random_branch(size: float) -> nn.Module:
    """A random network of one variable whose output is scaled by `size`."""
    first, last = nn.Linear(1, 32), nn.Linear(32, 1)
    nn.init.normal_(first.weight, std=10)
    nn.init.normal_(last.weight, std=size)
    return nn.Sequential(first, nn.Tanh(), last).double()


def inside(found: Variation) -> bool:
    """Whether the bounds hold, up to rounding."""
    room = TOLERANCE * (1 + found.branch)
    return abs(1 - found.branch) - room <= found.output <= 1 + found.branch + room


if __name__ == "__main__":
    main(measure)
