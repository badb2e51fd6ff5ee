"""Kinds of shortcuts in trained networks of three stages.

Claim: projections where shapes change (B) or everywhere (C) are slightly better than zeros (A); scaled and gated
shortcuts are worse than identities (He et al. 2015, table 3; He et al. 2016, table 1). Measured are final losses,
errors and parameters of the same network of 20 layers with each kind. A scaled or gated shortcut that trains better
would refute it.
"""

from functools import partial

from torch import nn

from experiments.degradation import final_loss
from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.nets import Edit, digits, error_rate, replace_parts, resnet
from experiments.run import Settings, main
from residual import Add, Gate, LearnedScale, projection
from residual.count import parameters


def project_everywhere(net: nn.Module) -> None:
    """Makes all identity shortcuts projections (option C)."""
    replace_parts(net, lambda channels: projection(channels, channels, norm=nn.BatchNorm2d), "shortcut")


def scale(net: nn.Module, factor: float) -> None:
    """Scales all identity shortcuts by a constant."""
    replace_parts(net, lambda _: Add(nn.ReLU(), scale=factor), "merge")


def learn_scale(net: nn.Module) -> None:
    """Gives all identity shortcuts a learned scale that starts at 1."""
    replace_parts(net, lambda _: LearnedScale(1.0), "shortcut")


def gate(net: nn.Module) -> None:
    """Replaces the sums of all blocks with identity shortcuts by gates."""
    replace_parts(net, Gate, "merge")


KINDS: dict[str, tuple[str, Edit | None]] = {
    "none": ("none", None),
    "A": ("A", None),
    "B": ("B", None),
    "C": ("B", project_everywhere),
    "scaled 0.5": ("A", partial(scale, factor=0.5)),
    "learned scale": ("A", learn_scale),
    "gated": ("A", gate),
}


def measure(settings: Settings) -> Finding:
    """Final losses and test errors by kind of shortcut."""
    blocks, seeds = settings.pick((3, 3, 3), (1, 1, 1)), range(settings.seeds)
    test = digits(settings, held_out=True)
    nets = {
        kind: [
            resnet(
                20,
                seed,
                settings,
                edit,
                blocks_per_stage=blocks,
                widths=(8, 16, 32),
                stem_channels=8,
                shortcut=shortcut,
            )
            for seed in seeds
        ]
        for kind, (shortcut, edit) in KINDS.items()
    }
    loss = {kind: [final_loss(one) for one in each] for kind, each in nets.items()}
    error = {kind: [error_rate(one.net, *test) for one in each] for kind, each in nets.items()}
    rows = [[kind, parameters(each[0].net), loss[kind], error[kind]] for kind, each in nets.items()]

    def worse(kind: str, than: str = "A") -> list[float]:
        return [a - b for a, b in zip(loss[kind], loss[than], strict=True)]

    listed = ", ".join(f"{kind} {show(values)}" for kind, values in loss.items())
    claims = [
        Claim(86, f"final loss: {listed}; projections (B) against zeros (A)", compare(worse("A", "B"))),
        Claim(
            28,
            f"final loss: shortcuts scaled by 0.5 {show(loss['scaled 0.5'])}, identities {show(loss['A'])}",
            compare(worse("scaled 0.5")),
        ),
        Claim(91, f"final loss: gates {show(loss['gated'])}, identities {show(loss['A'])}", compare(worse("gated"))),
    ]
    panels = [
        Panel("shortcut", y, [Curve("seeds' median and range", list(KINDS), list(values.values()))])
        for y, values in (("final training loss", loss), ("error of held-out digits (%)", error))
    ]
    columns = {"shortcut": "", "size": "parameters", "final loss": "", "test error": "%"}
    return Finding(claims[1].measured, columns, rows, claims, panels, settings.seeds)


if __name__ == "__main__":
    main(measure)
