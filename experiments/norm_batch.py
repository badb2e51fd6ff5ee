"""Group norm against batch norm, by the number of images that are normalised together.

Claim: group norm is better where few images are normalised together, since batch norm depends on their statistics (Wu
and He 2018, figure 1). Networks are trained with batches of 64 in forward passes of 2 to 64 images, so only what a
batch norm sees changes. Measured are errors on held-out digits, and how much the outputs of both networks for one
image change with the others beside it. An error with group norm that rises as much as that with batch norm, where
fewer images are normalised together, would refute it.
"""

from copy import deepcopy
from dataclasses import replace
from statistics import median

from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.nets import classifier, digits, error_rate, trained
from experiments.run import Settings, main
from residual.probes.visit import norms

NORMS = ("batch", "group")
GROUPS = 4
"""of 16 channels"""


def measure(settings: Settings) -> Finding:
    """Errors by norm and images per forward pass, and the dependence on other images."""
    updates, seeds = settings.pick(120, 3), range(settings.seeds)
    sizes = settings.pick((2, 8, 64), (8, 64))
    x, label = digits(settings, held_out=True)
    error: dict[str, list[list[float]]] = {norm: [] for norm in NORMS}
    change: dict[str, list[float]] = {}
    for norm in NORMS:
        for size in sizes:
            nets = []
            for seed in seeds:
                run = classifier(updates, seed)
                run = replace(run, train=replace(run.train, micro_batch=size))
                nets.append(trained(run, updates, settings, edit=use_groups if norm == "group" else None).net)
            error[norm].append([error_rate(net, x, label) for net in nets])
        change[norm] = []
        for net in nets:
            training = deepcopy(net).train()
            alone, among = training(x[:2]), training(x[:64])[:2]
            change[norm].append(float((norms(alone - among) / norms(among)).mean()))
    rise = {norm: [few - many for few, many in zip(each[0], each[-1], strict=True)] for norm, each in error.items()}
    verdict = compare([a - b for a, b in zip(rise["batch"], rise["group"], strict=True)], least=0.5)
    if verdict == "holds" and median(error["group"][0]) > median(error["batch"][0]):
        verdict = "holds with a limit"
    claims = [
        Claim(
            60,
            f"{sizes[0]} instead of {sizes[-1]} images per forward pass raise the error by {show(rise['batch'])} "
            f"points with batch norm, by {show(rise['group'])} with group norm; after {updates} updates, errors "
            f"with {sizes[0]} images are {show(error['batch'][0])} % and {show(error['group'][0])} %",
            verdict,
        ),
        Claim(
            60,
            f"in training, the output for 2 images alone and among 64 differs by {show(change['batch'])} of its norm "
            f"with batch norm, by {show(change['group'])} with group norm",
            holds(max(change["group"]) < 1e-4 < min(change["batch"])),
        ),
    ]
    rows = [[norm, size, error[norm][i], change[norm]] for norm in NORMS for i, size in enumerate(sizes)]
    columns = {
        "norm": "",
        "images per forward pass": "",
        "held-out error": "%",
        "change of output with other images": "of its norm",
    }
    panel = Panel(
        "images per forward pass (batches of 64)",
        "error on held-out digits (%)",
        [Curve(f"{norm} norm", sizes, error[norm]) for norm in NORMS],
        "x",
    )
    title = "Batch norm depends on the images beside, group norm does not"
    return Finding(title, columns, rows, claims, [panel], settings.seeds)


def use_groups(net: nn.Module) -> None:
    """Replaces batch norms by group norms with `GROUPS` groups; one channel in each would lose the channel's mean."""
    for module in [*net.modules()]:
        for name, part in module.named_children():
            if isinstance(part, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(GROUPS, part.num_features))


if __name__ == "__main__":
    main(measure)
