"""Depth as time: networks whose stage is an ODE, by method of integration and number of evaluations.

Claim: a stage of residual blocks may be an ODE that any method integrates, with one set of weights for all depths and
gradients by the adjoint equation in constant memory; discretised, it is a residual network again (Chen et al. 2018).
Networks with equal numbers of evaluations are trained on the digits. Measured are their errors, the difference between
an ODE and its steps of Euler's method, and the bytes that are kept for the gradient. An error that does not fall with
the number of steps, or memory that grows with the adjoint, would refute it.
"""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.nets import classifier, digits, error_rate, trained
from experiments.run import Settings, main
from residual import Add, Chain, Residual, edsr_branch
from residual.count import parameters
from residual.ode import ODEBlock
from resnet import ResNet
from training.random import seeded

EVALUATIONS = 8
METHODS: dict[str, dict[str, Any]] = {
    "euler": {"steps": EVALUATIONS},
    "midpoint": {"steps": EVALUATIONS // 2},
    "rk4": {"steps": EVALUATIONS // 4},
    "dopri5": {"rtol": 0.01, "adjoint": False},
}
TIME = 2.0
STEPS = (1, 2, 4, 8, 16, 32, 64)
RTOLS = (1e-2, 1e-4, 1e-6, 1e-8)


def measure(settings: Settings) -> Finding:
    """Errors by method, discretisation of the network trained with RK4, and memory for the gradient."""
    updates, seeds = settings.pick(250, 4), range(settings.seeds)
    x, label = digits(settings, held_out=True, count=settings.pick(None, 64))
    kinds = ["residual blocks", *METHODS]
    nets = {
        kind: [
            trained(
                classifier(updates, seed, blocks_per_stage=(1,)), updates, settings, edit=partial(stage, kind=kind)
            ).net
            for seed in seeds
        ]
        for kind in kinds
    }
    error = {kind: [error_rate(net, x, label) for net in each] for kind, each in nets.items()}
    evaluations: dict[str, list[float]] = {
        kind: [getattr(net.get_submodule("levels.1"), "evaluations", EVALUATIONS) for net in each]
        for kind, each in nets.items()
    }
    distances = [[discretised(net, x[:64], n) for n in STEPS] for net in nets["rk4"]]
    as_blocks = [error_rate(with_steps(net, EVALUATIONS), x, label) for net in nets["rk4"]]
    order = [-slope(STEPS[-3:], each[-3:]) for each in distances]
    exact = [tied_blocks_are_equal(net, x[:8]) for net in nets["euler"]]
    kept, gradient, agreement = adjoint()
    claims = [
        Claim(13, f"Euler's method and {EVALUATIONS} tied residual blocks are equal: {all(exact)}", holds(all(exact))),
        Claim(
            15,
            f"gradients by the adjoint equation and through the steps differ by {gradient:.0e}, dopri5 and fine steps "
            f"of RK4 by {agreement:.0e} (float64)",
            holds(gradient < 1e-4 and agreement < 1e-5),
        ),
        Claim(
            15,
            f"errors: rk4 {show(error['rk4'])} %, euler {show(error['euler'])} %, dopri5 {show(error['dopri5'])} % "
            f"with {show(evaluations['dopri5'])} evaluations instead of {EVALUATIONS}",
            compare([a - b for a, b in zip(error["euler"], error["rk4"], strict=True)], least=0.5),
        ),
        Claim(
            56,
            f"from rtol={RTOLS[0]:g} to {RTOLS[-1]:g} the adjoint keeps {kept['adjoint'][-1] / kept['adjoint'][0]:.1f} "
            f"times, the steps {kept['steps'][-1] / kept['steps'][0]:.1f} times as many bytes; an ODE has "
            f"{parameters(nets['rk4'][0])} parameters, {EVALUATIONS} blocks {parameters(nets['residual blocks'][0])}",
            holds(kept["adjoint"][-1] == kept["adjoint"][0] < kept["steps"][0] < kept["steps"][-1]),
        ),
        Claim(
            57,
            f"as n residual blocks, the ODE trained with RK4 differs like n to the power of -{show(order)}; with "
            f"{EVALUATIONS} blocks its error is {show(as_blocks)} % instead of {show(error['rk4'])} %",
            holds(all(0.8 < each < 1.2 for each in order)),
        ),
    ]
    rows = [[kind, parameters(nets[kind][0]), evaluations[kind], error[kind]] for kind in kinds]
    columns = {"stage": "", "parameters": "", "evaluations": "", "held-out error": "%"}
    difference = Curve("features, trained with RK4", STEPS, [list(each) for each in zip(*distances, strict=True)])
    panels = [
        Panel("stage", "error on held-out digits (%)", [Curve("error", kinds, [error[kind] for kind in kinds])]),
        Panel("residual blocks", "relative difference from the ODE", [difference], "xy"),
        Panel(
            "rtol of dopri5", "kept for the gradient (kB)", [Curve(n, RTOLS, each) for n, each in kept.items()], "xy"
        ),
    ]
    title = "An ODE of one block is a network of any depth"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def stage(net: nn.Module, kind: str) -> None:
    """Replaces the stage by blocks of their own, or by an ODE of one branch."""
    if kind == "residual blocks":
        scale = TIME / EVALUATIONS
        blocks = {f"block{i}": Residual(branch(), merge=Add(branch_scale=scale)) for i in range(EVALUATIONS)}
        put(net, Chain(**blocks))
    else:
        put(net, ODEBlock(branch(), kind, time=TIME, **METHODS[kind]))


def put(net: nn.Module, block: nn.Module) -> None:
    """Replaces the stage."""
    assert isinstance(net, ResNet)
    net.levels[1] = block


def branch() -> nn.Module:
    """A smooth branch without norms."""
    return edsr_branch(16, nn.Tanh)


def ode(net: nn.Module) -> ODEBlock:
    """The stage."""
    found = net.get_submodule("levels.1")
    assert isinstance(found, ODEBlock)
    return found


def with_steps(net: nn.Module, steps: int) -> nn.Module:
    """A copy of the network whose ODE is so many residual blocks."""
    copied = deepcopy(net)
    put(copied, ode(net).to_residuals(steps))
    return copied


def discretised(net: nn.Module, x: Tensor, steps: int) -> float:
    """The relative difference of the features of so many residual blocks from those of the ODE."""
    features = net.get_submodule("levels.0")(x)
    fine = ODEBlock(ode(net).branch, "rk4", steps=64, time=TIME)(features)
    return float((ode(net).to_residuals(steps)(features) - fine).norm() / fine.norm())


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """The slope of a line through the first and the last point of logarithms."""
    ends = torch.tensor([[x[0], x[-1]], [y[0], y[-1]]]).log().diff(dim=1)
    return float(ends[1] / ends[0])


def tied_blocks_are_equal(net: nn.Module, x: Tensor) -> bool:
    """Whether the ODE and the residual blocks of its steps are equal to the last bit."""
    features = net.get_submodule("levels.0")(x)
    return torch.equal(ode(net)(features), ode(net).to_residuals()(features))


def adjoint() -> tuple[dict[str, list[float]], float, float]:
    """What is kept for the gradient, in kB by tolerance, with the adjoint and without; the largest difference of their
    gradients, over the largest gradient; and the largest difference of dopri5 from fine steps of RK4."""
    with seeded(0, "adjoint"):
        right, x = branch().double(), torch.randn(4, 16, 8, 8, dtype=torch.float64)
    kept: dict[str, list[float]] = {"adjoint": [], "steps": []}
    gradients: dict[str, Tensor] = {}
    for name in kept:
        for rtol in RTOLS:
            block = ODEBlock(right, "dopri5", rtol=rtol, adjoint=name == "adjoint")
            sizes: list[int] = []
            with saved_tensors_hooks(partial(weigh, sizes), lambda tensor: tensor):
                y = block(x)
            kept[name].append(sum(sizes) / 1000)
        found = torch.autograd.grad(y.square().sum(), list(right.parameters()))
        gradients[name] = torch.cat([each.flatten() for each in found])
    fine = ODEBlock(right, "rk4", steps=64)(x)
    difference = (gradients["adjoint"] - gradients["steps"]).abs().max() / gradients["steps"].abs().max()
    return kept, float(difference), float((y - fine).detach().abs().max())


def weigh(sizes: list[int], tensor: Tensor) -> Tensor:
    """Notes the bytes of a tensor that is kept."""
    sizes.append(tensor.numel() * tensor.element_size())
    return tensor


if __name__ == "__main__":
    main(measure)
