"""Where in depth and noise level the blocks of a diffusion U-Net matter, and what dropping the least useful costs.

Claim: some blocks of a diffusion U-Net matter at some noise levels only, and the least useful may be left out. Measured
is the increase of the denoising loss without each block at five times, on held-out digits, then the loss and the
multiply-adds without the least useful blocks, chosen on training digits. Blocks whose ranks are the same at all times,
or that all cost more than 2 % of the loss, would refute it.
"""

import torch
from torch import Tensor, nn

from diffusion import DDPM
from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.nets import Trained, digits, unet
from experiments.run import Settings, main
from residual import Residual
from residual.count import multiply_adds_of_parts
from residual.probes.lesions import lesions, removed
from residual.probes.visit import FixedInputs
from tasks.denoising import DiffusionTask

TIMES = (50, 200, 400, 600, 800)


def measure(settings: Settings) -> Finding:
    """Increases by block and time; loss and cost without the least useful blocks."""
    nets = [unet(seed, settings) for seed in range(settings.seeds)]
    names = [name for name, module in nets[0].net.named_modules() if isinstance(module, Residual)]
    count = settings.pick(256, 16)
    held_out, train = (digits(settings, half, count)[0] for half in (True, False))
    table = [increases(one, held_out, names) for one in nets]  # [seed][time][block], relative
    chosen = [torch.tensor(increases(one, train, names)).mean(dim=0).argsort() for one in nets]
    drops = settings.pick((0, 2, 4, 6, 8, 10, 12), (0, 1))
    loss = [
        [without(one, held_out, [names[int(i)] for i in order[:k]]) for k in drops]
        for one, order in zip(nets, chosen, strict=True)
    ]
    saved = [
        [saving(one.net, [names[int(i)] for i in order[:k]]) for k in drops]
        for one, order in zip(nets, chosen, strict=True)
    ]
    cost = [[each / one[0] - 1 for each in one] for one in loss]
    grid = torch.tensor(table)
    worst, least = [float(each.max()) for each in grid], [float(each.mean(dim=0).min()) for each in grid]
    peaks = [TIMES[int(i)] for i in grid.mean(dim=0).argmax(dim=0)]
    correlations = [float(torch.corrcoef(each[[0, -1]].argsort(dim=1).argsort(dim=1).double())[0, 1]) for each in grid]
    last = next((i for i in reversed(range(len(drops))) if max(one[i] for one in cost) < 0.02), 0)
    claims = [
        Claim(
            99,
            f"ranks of the blocks by the loss at t = {TIMES[0]} and {TIMES[-1]} correlate by "
            f"{show(correlations)}; without the most useful block the loss grows by {show(worst)} of itself at its "
            f"worst time, without the least by {show(least)} on average",
            compare([0.5 - each for each in correlations]),
        ),
        Claim(
            100,
            f"without the {drops[last]} least useful of {len(names)} blocks the denoising loss grows by "
            f"{show([100 * one[last] for one in cost])} %, and {show([100 * one[last] for one in saved])} % of the "
            "multiply-adds are saved",
            holds(last > 0),
        ),
        Claim(58, f"the U-Net has {len(names)} blocks, all of class Residual", holds(len(names) > 0)),
    ]
    best = sorted(range(len(names)), key=lambda i: -float(grid.mean(dim=(0, 1))[i]))
    shown = [*best[:4], best[-1]]
    panels = [
        Panel(
            "t (0: clean, 1000: noise)",
            "relative increase of the loss",
            [
                Curve(names[i], TIMES, [[max(float(v), 1e-4) for v in grid[:, j, i]] for j in range(len(TIMES))])
                for i in shown
            ],
            "y",
        ),
        Panel(
            "dropped blocks, least useful first",
            "change (%)",
            [
                Curve("loss", drops, [[100 * one[i] for one in cost] for i in range(len(drops))]),
                Curve("multiply-adds saved", drops, [[100 * one[i] for one in saved] for i in range(len(drops))]),
            ],
        ),
    ]
    rows = [
        [names[i], *([float(v) for v in grid[:, j, i]] for j in range(len(TIMES))), peaks[i]] for i in range(len(names))
    ]
    columns = {"block": "", **{f"t = {t}": "relative increase" for t in TIMES}, "matters most at t": ""}
    return Finding(claims[1].measured, columns, rows, claims, panels, settings.seeds)


def problem(one: Trained, x0: Tensor, t: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network at time t as a function of noisy images; these, and the target of its output."""
    assert isinstance(one.task, DiffusionTask)
    formulation = one.task.diffusion.formulation
    assert isinstance(formulation, DDPM)
    level = formulation.level(torch.full((len(x0),), float(t)))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(t))
    return (
        FixedInputs(one.net, level.c_noise),
        level.c_in.view(-1, 1, 1, 1) * level.noisy(x0, noise),
        level.target(x0, noise),
    )


def increases(one: Trained, x0: Tensor, names: list[str]) -> list[list[float]]:
    """The increase of the denoising loss without each block, relative to the loss of the whole, by time."""
    found = []
    for t in TIMES:
        model, x, target = problem(one, x0, t)

        def loss(output: Tensor, target: Tensor = target) -> Tensor:
            return (output - target).square().mean(dim=(1, 2, 3))

        with torch.no_grad():
            whole = float(loss(model(x)).mean())
        found.append([float(each.mean()) / whole for each in lesions(model, x, loss, names).values()])
    return found


def without(one: Trained, x0: Tensor, names: list[str]) -> float:
    """The denoising loss without some blocks, mean over the times."""
    total = 0.0
    for t in TIMES:
        model, x, target = problem(one, x0, t)
        with torch.no_grad(), removed(model, names):
            total += float((model(x) - target).square().mean()) / len(TIMES)
    return total


def saving(net: nn.Module, names: list[str]) -> float:
    """The share of multiply-adds in the branches of some blocks."""
    counts = multiply_adds_of_parts(net, torch.zeros(1, 1, 8, 8), torch.zeros(1))
    return sum(counts.get(f"{name}.branch", 0) for name in names) / counts[""]


if __name__ == "__main__":
    main(measure)
