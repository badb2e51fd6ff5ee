"""Gates of Highway networks against the identity shortcut.

Claim: with `T f + (1 - T) x` the gate decides how much passes; saturated open it is a plain network with its vanishing
gradients, and an identity shortcut cannot be closed (Srivastava et al. 2015; He et al. 2016, section 3.1). Measured is
the gradient at the input of fresh networks of 50 layers over the initial bias of the gates, with the same branches. A
gradient that an open gate keeps would refute it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, holds, show
from experiments.nets import digits
from experiments.run import Settings, main
from residual import Add, Gate, Residual, highway_branch
from residual.probes.gradients import input_gradients
from resnet import HighwayConfig, build
from training.random import seeded

BIASES = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
CLOSED = 1e4
"""a bias that closes or opens a gate exactly"""


def measure(settings: Settings) -> Finding:
    """Norms of input gradients by bias, and the two limits of the gate."""
    depth, seeds = settings.pick(50, 20), range(settings.seeds)
    norms = {bias: [gradient(depth, seed, settings, bias) for seed in seeds] for bias in BIASES}
    identity = [gradient(depth, seed, settings, None) for seed in seeds]
    x = torch.randn(2, 8, 8, 8)
    branch = highway_branch(8)
    with torch.no_grad():
        shut = torch.equal(Residual(branch, merge=Gate(8, -CLOSED))(x), x)
        plain = torch.equal(Residual(branch, merge=Gate(8, CLOSED))(x), branch(x))
    share = [(high / low) for low, high in zip(norms[-4.0], norms[4.0], strict=True)]
    rows = [[f"gate bias {bias:g}", found] for bias, found in norms.items()] + [["identity shortcut", identity]]
    claims = [
        Claim(24, f"a bias of -∞ gives the input exactly: {shut}; +∞ gives the branch: {plain}", holds(shut and plain)),
        Claim(
            25,
            f"{depth} layers: input gradient with bias 4 over that with bias -4: {show(share)}",
            holds(max(share) < 0.1),
        ),
        Claim(
            69,
            f"a bias of -4 passes {show([a / b for a, b in zip(norms[-4.0], identity, strict=True)])} of the gradient "
            "of an identity shortcut",
            holds(min(norms[-4.0]) > max(norms[4.0]), limit=True),
        ),
        Claim(
            91,
            f"input gradient: identity {show(identity)}, gates from {show(norms[4.0])} to {show(norms[-4.0])}",
            holds(min(identity) > max(norms[4.0]), limit=max(identity) > 100 * max(norms[-4.0])),
        ),
    ]
    level = [identity] * len(BIASES)
    curves = [Curve("gate", BIASES, list(norms.values())), Curve("identity shortcut", BIASES, level)]
    panel = Panel("initial bias of the gates", "norm of the gradient at the input", curves, "y")
    title = f"Open gates lose the gradient over {depth} layers, closed ones pass it"
    return Finding(title, {"merge": "", "input gradient": ""}, rows, claims, [panel], settings.seeds)


def gradient(depth: int, seed: int, settings: Settings, bias: float | None) -> float:
    """The mean norm of the input gradient of a fresh network; no bias: the same branches with identity shortcuts."""
    with seeded(seed, "gates"):
        config = HighwayConfig(
            in_channels=1, blocks_per_stage=(depth,), widths=(8,), gate_bias=bias or 0.0, dropout=0.0
        )
        net: nn.Module = build(config)
    for block in net.modules() if bias is None else ():
        if isinstance(block, Residual):
            block.merge = Add()
    x, label = digits(settings, held_out=True, count=64)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, label, reduction="none")

    return float(input_gradients(net.eval(), x, loss).flatten(1).norm(dim=1).mean())


if __name__ == "__main__":
    main(measure)
