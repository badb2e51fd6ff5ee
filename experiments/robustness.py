"""Errors on adversarial images of plain, residual, scaled and spectrally normalised networks.

Claim: shortcuts make a network robust, since a change of the input grows by at most 1 + r per block, where r is the
Lipschitz constant of the branch (Goodfellow et al. 2015; Cisse et al. 2017). Measured are the errors of trained
networks without norms, with equal branches, on images that FGSM and PGD change by up to a radius. Errors of residual
networks that rise as much over their clean errors as those of plain networks would refute it.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, Verdict, compare, show
from experiments.nets import classifier, digits, error_rate, trained
from experiments.run import Settings, main
from residual import Add, Residual, edsr_branch, lipschitz_branch
from residual.probes.robustness import attacked_outputs

RADII = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2)
"""in units of pixel values from -1 to 1"""
MERGES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Add(nn.ReLU(), scale=0.0),
    "residual": lambda: Add(nn.ReLU()),
    "scaled": lambda: Add(nn.ReLU(), scale=0.5**0.5, branch_scale=0.5**0.5),
    "spectral": lambda: Add(nn.ReLU()),
}
BOUND = 0.9
"""Lipschitz constant of a spectrally normalised branch"""


def measure(settings: Settings) -> Finding:
    """Errors by network and radius, of both attacks."""
    updates, count, steps = settings.pick((600, 256, 8), (20, 32, 2))
    blocks, seeds = 4, range(settings.seeds)
    x, label = digits(settings, held_out=True, count=count)
    loss = partial(F.cross_entropy, target=label, reduction="none")
    errors: dict[str, dict[str, list[list[float]]]] = {"FGSM": {}, "PGD": {}}
    clean = {}
    for kind in MERGES:
        nets = [
            trained(
                classifier(updates, seed, blocks_per_stage=(blocks,)),
                updates,
                settings,
                edit=partial(change, kind=kind),
            ).net
            for seed in seeds
        ]
        clean[kind] = [error_rate(net, x, label) for net in nets]
        for attack, number in (("FGSM", 1), ("PGD", steps)):
            found = [attacked_outputs(net, x, loss, RADII, steps=number).argmax(dim=2) != label for net in nets]
            errors[attack][kind] = [
                [100 * float(wrong[i].float().mean()) for wrong in found] for i in range(len(RADII))
            ]
    middle = len(RADII) // 2
    rise = {kind: [b - a for a, b in zip(clean[kind], errors["PGD"][kind][middle], strict=True)] for kind in MERGES}
    described = f"PGD of radius {RADII[middle]} raises the error " + ", ".join(
        f"of {kind} networks by {show(rise[kind])} points from {show(clean[kind])} %" for kind in MERGES
    )
    claims = [
        Claim(30, described, smaller_rise("residual", "plain", rise, clean)),
        Claim(
            30,
            f"the rise is smaller by {show([a - b for a, b in zip(rise['residual'], rise['spectral'], strict=True)])} "
            f"points where the Lipschitz constant of each branch is at most {BOUND}",
            smaller_rise("spectral", "residual", rise, clean),
        ),
    ]
    rows = [
        [kind, clean[kind], *(errors[attack][kind][i] for attack in errors for i in (1, middle))] for kind in MERGES
    ]
    columns = {"network": "", "clean": "%"} | {
        f"{attack}, radius {RADII[i]}": "%" for attack in errors for i in (1, middle)
    }
    curves = [Curve(kind, RADII, found) for kind, found in errors["PGD"].items()]
    panel = Panel("radius (pixel values from -1 to 1)", "error under PGD (%)", curves)
    title = "Small changes of the image fool all networks, those with shortcuts less"
    return Finding(title, columns, rows, claims, [panel], settings.seeds)


def smaller_rise(kind: str, than: str, rise: dict[str, list[float]], clean: dict[str, list[float]]) -> Verdict:
    """Whether the error of one kind of network rises less: within a limit if clean errors differ by over 2 points."""
    verdict = compare([a - b for a, b in zip(rise[than], rise[kind], strict=True)], least=2.0)
    apart = max(abs(a - b) for a, b in zip(clean[kind], clean[than], strict=True)) > 2
    return "holds with a limit" if verdict == "holds" and apart else verdict


def change(net: nn.Module, kind: str) -> None:
    """Gives every block a branch without norms, and the merge of the kind."""
    for block in net.modules():
        if isinstance(block, Residual):
            branch = edsr_branch(16)
            block.branch = lipschitz_branch(branch, BOUND) if kind == "spectral" else branch
            block.merge = MERGES[kind]()


if __name__ == "__main__":
    main(measure)
