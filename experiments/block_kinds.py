"""Kinds of residual blocks at about equal numbers of parameters.

Claim: bottlenecks have about the weights of narrower basic blocks (He et al. 2015, figure 5); groups (Xie et al. 2017),
channel attention (Hu et al. 2018), split attention (Zhang et al. 2020) and concatenation (Huang et al. 2017) are better
at equal budgets, or as good with fewer parameters. Networks of each kind with about 15,000 parameters, and a DenseNet
with fewer, are trained on the digits by one recipe. Measured are parameters, multiply-adds, and errors on held-out
digits. Errors above those of basic blocks, or of bottlenecks without such changes, would refute it.
"""

from typing import Any

from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.nets import classifier, digits, error_rate, recipe, trained
from experiments.run import Settings, main
from residual.count import multiply_adds, parameters
from resnet import DenseNetConfig
from tasks.classification import ClassificationRun
from training.data import DataConfig

BOTTLENECK: dict[str, Any] = {"block": "bottleneck", "widths": (16,), "stem_channels": 64}
KINDS: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": BOTTLENECK,
    "grouped": BOTTLENECK | {"groups": 4, "group_width": 24},
    "channel attention": {"se_reduction": 16},
    "split attention": BOTTLENECK | {"block": "split_attention", "widths": (12,), "stem_channels": 48},
}
"""changes of the config by kind; the bottleneck has about the parameters of three basic blocks"""
DENSE = DenseNetConfig(blocks_per_stage=(5,), growth=8, bottleneck=2, stem="conv3", stem_channels=16)


def measure(settings: Settings) -> Finding:
    """Budgets and errors by kind."""
    updates, seeds = settings.pick(300, 10), range(settings.seeds)
    x, label = digits(settings, held_out=True)
    runs = {kind: [classifier(updates, seed, **changes) for seed in seeds] for kind, changes in KINDS.items()}
    runs["dense"] = [
        ClassificationRun(data=DataConfig(source="digits", validation=0.5), model=DENSE, **recipe(updates, seed))
        for seed in seeds
    ]
    nets = {kind: [trained(run, updates, settings) for run in each] for kind, each in runs.items()}
    size = {kind: parameters(each[0].net) for kind, each in nets.items()}
    work = {kind: multiply_adds(each[0].net, x[:1]) / 1000 for kind, each in nets.items()}
    error = {kind: [error_rate(one.net, x, label) for one in each] for kind, each in nets.items()}
    loss = {kind: [float(one.losses[-settings.pick(50, 5) :].mean()) for one in each] for kind, each in nets.items()}

    def better(kind: str, than: str) -> list[float]:
        return [b - a for a, b in zip(error[kind], error[than], strict=True)]

    def compared(kind: str, than: str) -> str:
        return (
            f"{kind}: {size[kind]:,} parameters, error {show(error[kind])} %; {than}: {size[than]:,}, "
            f"{show(error[than])} %"
        )

    attention = size["channel attention"] / size["basic"] - 1
    claims = [
        Claim(43, compared("bottleneck", "basic"), holds(0.8 < size["bottleneck"] / size["basic"] < 1.25)),
        Claim(61, compared("grouped", "bottleneck"), compare(better("grouped", "bottleneck"), least=0.5)),
        Claim(62, compared("dense", "basic"), compare(better("dense", "basic"), least=0.5)),
        Claim(
            64,
            f"{compared('channel attention', 'basic')}; {100 * attention:.0f} % more parameters",
            compare(better("channel attention", "basic"), least=0.5),
        ),
        Claim(
            65, compared("split attention", "bottleneck"), compare(better("split attention", "bottleneck"), least=0.5)
        ),
    ]
    rows = [[kind, size[kind], work[kind], loss[kind], error[kind]] for kind in nets]
    columns = {"block": "", "parameters": "", "multiply-adds": "thousands", "training loss": "", "held-out error": "%"}
    kinds = list(nets)
    panels = [
        Panel(
            "kind of block", "error on held-out digits (%)", [Curve("error", kinds, [error[kind] for kind in kinds])]
        ),
        Panel("kind of block", "parameters (thousands)", [Curve("size", kinds, [size[kind] / 1000 for kind in kinds])]),
    ]
    title = "At equal budgets, kinds of blocks differ as little as seeds"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


if __name__ == "__main__":
    main(measure)
