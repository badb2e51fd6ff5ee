"""What a linear map reads of the input from the features by depth, and the rank of the features.

Claim: deep plain networks forget their input, while shortcuts carry it to the last block (He et al. 2016, section 3),
and the representations of plain networks collapse (Daneshmand et al. 2020). Measured are the R² of a linear map from
the output of each block to the image, and the effective rank, of fresh and trained networks of 56 layers. Features of
plain networks that hold as much of the image would refute it.
"""

import torch
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.nets import block_names, digits, resnet
from experiments.run import Settings, main
from residual.probes.features import decodability, spreads
from residual.probes.robustness import batch_norm_statistics

KINDS = {"plain": "none", "residual": "A"}


def measure(settings: Settings) -> Finding:
    """R² and rank by depth, of fresh and trained networks."""
    depth, count = settings.pick((56, 512), (8, 64))
    x, _ = digits(settings, held_out=True, count=count)
    found = {
        (kind, state): [
            by_depth(fresh(depth, seed, settings, shortcut) if state == "fresh" else net, x)
            for seed, net in enumerate(trained_nets)
        ]
        for kind, shortcut in KINDS.items()
        for trained_nets in [[resnet(depth, s, settings, shortcut=shortcut).net for s in range(settings.seeds)]]
        for state in ("fresh", "trained")
    }
    scores = {key: [each[0] for each in seeds] for key, seeds in found.items()}
    ranks = {key: [each[1] for each in seeds] for key, seeds in found.items()}
    rows = [[*key, [each[-1] for each in scores[key]], [each[-1] for each in ranks[key]]] for key in found]

    def gain(values: dict[tuple[str, str], list[list[float]]], state: str) -> list[float]:
        """Residual minus plain at the last block, per seed."""
        return [b[-1] - a[-1] for a, b in zip(values["plain", state], values["residual", state], strict=True)]

    def text(values: dict[tuple[str, str], list[list[float]]], state: str) -> str:
        return ", ".join(f"{kind} {show([each[-1] for each in values[kind, state]])}" for kind in KINDS)

    claims = [
        Claim(
            4,
            f"R² of the image behind the last of {depth} layers: fresh {text(scores, 'fresh')}; trained "
            f"{text(scores, 'trained')}",
            compare([*gain(scores, "fresh"), *gain(scores, "trained")]),
        ),
        Claim(
            20,
            f"effective rank of {count} digits behind the last block: fresh {text(ranks, 'fresh')}; trained "
            f"{text(ranks, 'trained')}",
            compare([*gain(ranks, "fresh"), *gain(ranks, "trained")]),
        ),
    ]
    blocks = list(range(1, len(next(iter(scores.values()))[0]) + 1))
    panels = [
        Panel(
            "block",
            y,
            [Curve(", ".join(key), blocks, list(zip(*seeds, strict=True))) for key, seeds in values.items()],
        )
        for y, values in (("R² of the image", scores), ("effective rank", ranks))
    ]
    columns = {"network": "", "state": "", "R² at the last block": "", "effective rank": ""}
    return Finding(claims[0].measured, columns, rows, claims, panels, settings.seeds)


def by_depth(net: nn.Module, x: Tensor) -> tuple[list[float], list[float]]:
    """The R² of the image, and the effective rank, behind each block."""
    names = block_names(net)
    ranks = [spread.effective_rank for spread in spreads(net, x, names).values()]
    return list(decodability(net, x, names=names, ridge=1e-2).values()), ranks


def fresh(depth: int, seed: int, settings: Settings, shortcut: str) -> nn.Module:
    """A fresh network whose batch norms have the statistics of training digits."""
    net = resnet(depth, seed, settings, updates=0, shortcut=shortcut).net
    images, _ = digits(settings, held_out=False, count=256)
    with torch.no_grad():
        net.load_state_dict(batch_norm_statistics(net, [images]), strict=False)
    return net


if __name__ == "__main__":
    main(measure)
