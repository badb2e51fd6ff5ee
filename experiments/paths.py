"""Paths through a residual network, and the gradient that each carries.

Claim: L blocks are 2^L paths, whose lengths are binomial; most of the gradient comes through short ones (Veit et al.
2016, section 4.3). The gradient at a block's input is that at its output plus that through the branch (He et al.
2016, eq. 5), and within a stage the output is the input plus all branches (eq. 4). Measured are these identities in
float64, the gradient by path length, and the share of the branch, for pre-activation networks of 56 layers. Gradients
that peak at or above half of the length would refute it.
"""

import torch
from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.nets import block_names, cross_entropy, digits, resnet
from experiments.run import Settings, main
from residual.probes.gradients import path_gradients, utilisation
from residual.probes.visit import record, vjp


def measure(settings: Settings) -> Finding:
    """Gradients by path length; the identities of sum and gradient; shares of branches."""
    depth, seeds = settings.pick(56, 8), range(settings.seeds)
    x, label = digits(settings, held_out=True, count=settings.pick(64, 16))
    nets = [resnet(depth, seed, settings, block="preact_basic").net for seed in seeds]
    names, loss = block_names(nets[0]), cross_entropy(label)
    found = [
        path_gradients(net, x, loss, names=names, samples=settings.pick(4, 1), seed=seed)
        for seed, net in enumerate(nets)
    ]
    lengths = found[0].length.tolist()
    means = [float((each.length * each.share).sum()) for each in found]
    shares = [utilisation(net, x, loss, names) for net in nets]
    used = [[float(each.nanmean()) for each in one.values()] for one in shares]
    sums, gradients = identities(nets[0].double(), x.double(), names)
    half = len(names) / 2
    claims = [
        Claim(
            52,
            f"of {len(names)} blocks, mean length of a path {half:g}, weighted by gradient {show(means)}",
            compare([half - each for each in means]),
        ),
        Claim(39, f"|g_x - g_y - Jᵀ g_y| / |g_x| is at most {gradients:.0e}", holds(gradients < 1e-10)),
        Claim(
            51,
            f"the gradient of each block is that behind it plus the branch's, to {gradients:.0e}",
            holds(gradients < 1e-10),
        ),
        Claim(88, f"|x_L - x_0 - Σ F| / |x_L| is {sums:.0e}", holds(sums < 1e-10)),
        Claim(
            87,
            f"share of the branch in the gradient: first block {show([each[0] for each in used])}, last "
            f"{show([each[-1] for each in used])}",
            holds(all(0 < value < 1 for each in used for value in each)),
        ),
    ]
    log_paths = torch.lgamma(torch.tensor(len(names) + 1.0)) - torch.lgamma(found[0].length + 1.0)
    log_paths = log_paths - torch.lgamma(len(names) - found[0].length + 1.0)
    binomial = torch.softmax(log_paths, dim=0).tolist()
    panels = [
        Panel(
            "length of the path (blocks)",
            "share",
            [
                Curve("of the paths", lengths, binomial),
                Curve("of the gradient", lengths, torch.stack([each.share for each in found], dim=1).tolist()),
            ],
        ),
        Panel(
            "length of the path (blocks)",
            "gradient of one path",
            [Curve("trained", lengths, torch.stack([each.norm for each in found], dim=1).clamp_min(1e-30).tolist())],
            "y",
        ),
        Panel(
            "block",
            "share of the branch in the gradient",
            [Curve("trained", list(range(1, len(names) + 1)), list(zip(*used, strict=True)))],
        ),
    ]
    rows = [
        [k, binomial[k], [float(each.norm[k]) for each in found], [float(each.share[k]) for each in found]]
        for k in lengths
    ]
    columns = {"length": "blocks", "share of the paths": "", "gradient of one": "", "share of the gradient": ""}
    title = f"Paths of {len(names)} blocks: mean length {half:g}, weighted by gradient {sum(means) / len(means):.1f}"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def identities(net: nn.Module, x: torch.Tensor, names: list[str]) -> tuple[float, float]:
    """Relative errors, in float64, of the sum of all branches, and of the largest gradient of a block."""
    run = record(net, x, names, grad=True)
    first, last = run.visits[0], run.visits[-1]
    total = first.x + sum(visit.f for visit in run.visits)
    sums = float((last.y - total).detach().norm() / last.y.detach().norm())
    scalar, errors = run.output.square().sum(), []
    for visit in run.visits:
        g_x, g_y = vjp(scalar, [visit.x, visit.y])
        through = vjp(visit.f, [visit.x], g_y)[0]
        errors.append(float((g_x - g_y - through).norm() / g_x.norm()))
    return sums, max(errors)


if __name__ == "__main__":
    main(measure)
