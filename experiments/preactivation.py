"""Trained networks with their activations before the weights, after the sum, and with a norm after the sum.

Claim: pre-activation trains deep networks more easily than activation after the sum, and a norm after the sum is
worse than both (He et al. 2016, tables 1 and 2). Measured are final losses and errors of networks of 20 and 56
layers. A lower loss of the other orders in the deeper network would refute it.
"""

from typing import Any

from torch import nn

from experiments.degradation import final_loss
from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.nets import Edit, digits, error_rate, replace_parts, resnet
from experiments.run import Settings, main
from residual import Add, Chain


def norm_after_sum(net: nn.Module) -> None:
    """Moves the norms at the ends of the branches behind the sums."""
    for module in net.modules():
        if isinstance(module, Chain) and hasattr(module, "bn2"):
            module.bn2 = nn.Identity()
    replace_parts(net, lambda channels: Add(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())), "merge")


ORDERS: dict[str, tuple[dict[str, Any], Edit | None]] = {
    "ReLU after the sum": ({}, None),
    "pre-activation": ({"block": "preact_basic"}, None),
    "norm after the sum": ({}, norm_after_sum),
}


def measure(settings: Settings) -> Finding:
    """Final losses and test errors, by order and depth."""
    depths, seeds = settings.pick((20, 56), (8,)), range(settings.seeds)
    test = digits(settings, held_out=True)
    nets = {
        (order, depth): [resnet(depth, seed, settings, edit, **model) for seed in seeds]
        for order, (model, edit) in ORDERS.items()
        for depth in depths
    }
    loss = {key: [final_loss(one) for one in each] for key, each in nets.items()}
    error = {key: [error_rate(one.net, *test) for one in each] for key, each in nets.items()}
    deep = depths[-1]
    post, pre, after = (loss[order, deep] for order in ORDERS)
    claims = [
        Claim(
            55,
            f"final loss with {deep} layers: after the sum {show(post)}, pre-activation {show(pre)}",
            compare([a - b for a, b in zip(post, pre, strict=True)]),
        ),
        Claim(
            73,
            f"final loss with {deep} layers: norm before the sum {show(post)}, after it {show(after)}",
            compare([b - a for a, b in zip(post, after, strict=True)]),
        ),
    ]
    rows = [[*key, loss[key], error[key]] for key in nets]
    panels = [
        Panel("layers", y, [Curve(order, depths, [values[order, depth] for depth in depths]) for order in ORDERS])
        for y, values in (("final training loss", loss), ("error of held-out digits (%)", error))
    ]
    columns = {"order": "", "layers": "", "final loss": "", "test error": "%"}
    return Finding(claims[0].measured, columns, rows, claims, panels, settings.seeds)


if __name__ == "__main__":
    main(measure)
