"""Trained networks without some of their blocks, or with them in another order.

Claim: removing one block of a residual network hardly changes its error, and the error grows smoothly with the number
of removed or exchanged blocks; a plain network fails with one block less (Veit et al. 2016, figures 3 to 5). Measured
are the networks of 56 layers of `degradation` on held-out digits. A plain network that does without a block as well
would refute it.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, limited, show
from experiments.nets import block_names, digits, error_rate, resnet
from experiments.run import Settings, main
from residual.probes.lesions import lesions, removed, reorderings

KINDS = {"plain": "none", "residual": "A"}
IMAGES = 400


def measure(settings: Settings) -> Finding:
    """Errors after removal of each block, of k random blocks, and after exchanges."""
    depth, counts = settings.pick((56, (1, 2, 4, 8, 16)), (8, (1, 2)))
    x, label = digits(settings, held_out=True, count=settings.pick(IMAGES, 64))
    seeds = range(settings.seeds)
    nets = {
        kind: [resnet(depth, s, settings, shortcut=shortcut).net for s in seeds] for kind, shortcut in KINDS.items()
    }
    names = block_names(nets["plain"][0])
    wrong = partial(is_wrong, label)
    intact = {kind: [error_rate(net, x, label) for net in each] for kind, each in nets.items()}
    single = {kind: [removals(net, x, wrong, names) for net in each] for kind, each in nets.items()}
    means = {kind: [statistics.mean(each) for each in found] for kind, found in single.items()}
    several = {
        kind: [[error_without(net, x, label, names, count, seed) for seed, net in enumerate(each)] for count in counts]
        for kind, each in nets.items()
    }
    orders = [reorderings(net, x, wrong, counts, seed=seed) for seed, net in enumerate(nets["residual"])]
    taus = [[order.tau for order in each] for each in orders]
    increases = [[100 * float(order.increase.mean()) for order in each] for each in orders]
    rows: list[list[Any]] = [[kind, "nothing", found] for kind, found in intact.items()]
    rows += [[kind, "one block, mean over the blocks", found] for kind, found in means.items()]
    rows += [
        [kind, f"{count} random blocks", [value - whole for value, whole in zip(found, intact[kind], strict=True)]]
        for kind, each in several.items()
        for count, found in zip(counts, each, strict=True)
    ]
    rows += [
        ["residual", f"{count} exchanges, τ = {show([each[i] for each in taus])}", [each[i] for each in increases]]
        for i, count in enumerate(counts)
    ]
    middle = {kind: [statistics.median(each) for each in found] for kind, found in single.items()}
    claims = [
        Claim(
            53,
            f"one block removed, mean increase of the error in points: residual {show(means['residual'])} (the median "
            f"block {show(middle['residual'])}, the worst {show([max(each) for each in single['residual']])}), plain "
            f"{show(means['plain'])} (the median block {show(middle['plain'])})",
            limited(
                compare([plain - res for plain, res in zip(means["plain"], means["residual"], strict=True)], least=1.0),
                max(means["residual"]) > 1,
            ),
        )
    ]
    panels = [
        Panel(
            "removed block",
            "increase of the error (points)",
            [
                Curve(kind, list(range(1, len(names) + 1)), list(zip(*found, strict=True)))
                for kind, found in single.items()
            ],
        ),
        Panel(
            "number of removed blocks",
            "error (%)",
            [Curve(kind, counts, found) for kind, found in several.items()],
            "x",
        ),
        Panel(
            "number of exchanges",
            "increase of the error (points)",
            [Curve("residual", counts, list(zip(*increases, strict=True)))],
            "x",
        ),
    ]
    columns = {"network": "", "changed": "", "error, or its increase": "points"}
    title = f"Without one block of {len(names)}: " + ", ".join(
        f"{kind} + {statistics.median(found):.1f} points of error" for kind, found in means.items()
    )
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def is_wrong(label: Tensor, logits: Tensor) -> Tensor:
    """1 for each image that is classified wrongly."""
    return (logits.argmax(dim=1) != label).float()


def removals(net: nn.Module, x: Tensor, wrong: partial[Tensor], names: Sequence[str]) -> list[float]:
    """The increase of the error, in points, without each block."""
    return [100 * float(each.mean()) for each in lesions(net, x, wrong, names).values()]


def error_without(net: nn.Module, x: Tensor, label: Tensor, names: Sequence[str], count: int, seed: int) -> float:
    """The error without `count` random blocks, mean over three choices."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(3):
        chosen = torch.randperm(len(names), generator=generator)[:count].tolist()
        with removed(net, [names[i] for i in chosen]):
            found.append(error_rate(net, x, label))
    return statistics.mean(found)


if __name__ == "__main__":
    main(measure)
