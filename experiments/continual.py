"""Forgetting: a second task by fine-tuning, or by residual adapters on a frozen network.

Claim: with a frozen network and adapters in its residual blocks a further task is learned without any change of the
first (Rebuffi et al. 2017 and 2018). A network learns the digits 0 to 4; then it learns 5 to 9, or 0 to 4 with
inverted pixels, by fine-tuning all weights or by adapters and a classifier of their own. Measured are the errors on
both tasks. Old errors that rise with the adapters off, or adapters that do not learn the new task, would refute it.
"""

from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, holds, show
from experiments.nets import classifier, digits, error_rate, trained
from experiments.run import Settings, main
from residual.adapters import Adapters, add_adapters
from training.data import Images

TASKS = {"5 to 9": (5, False), "inverted 0 to 4": (0, True)}
"""the new tasks: first of five digits, and whether pixels are inverted"""
METHODS = ("fine-tuning", "parallel", "series")
ADAPTER_RATE = 0.01
"""learning rate of adapters, about three times that of all weights"""
CHANCE = 80.0
"""error of guessing one of five digits, in percent"""


def measure(settings: Settings) -> Finding:
    """Errors on old and new task by method, and whether the old logits are the same to the last bit."""
    updates, seeds = settings.pick((200, 300), (20, 10)), range(settings.seeds)
    old, old_label = task(settings, 0, False, held_out=True)
    logits = [trunk(settings, updates[0], seed)(old) for seed in seeds]
    before = [100 * float((each.argmax(dim=1) != old_label).float().mean()) for each in logits]
    rows: list[list[float | str | list[float]]] = []
    forgot: dict[str, list[float]] = {method: [] for method in METHODS}
    errors: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    same, share = True, 0.0
    for name, (first, inverted) in TASKS.items():
        new, new_label = task(settings, first, inverted, held_out=True)
        for method in METHODS:
            nets = [taught(settings, updates, seed, name, method) for seed in seeds]
            errors[method][name] = [error_rate(net, new, new_label) for net in nets]
            if method == "fine-tuning":
                after = [error_rate(net, old, old_label) for net in nets]
            else:
                after = []
                for net, each in zip(nets, logits, strict=True):
                    adapters = Adapters(net)
                    share = adapters.share
                    with adapters.off():
                        after.append(error_rate(net, old, old_label))
                        same &= torch.equal(net(old), each)
            forgot[method] += [a - b for a, b in zip(after, before, strict=True)]
            rows.append([name, method, errors[method][name], before, after])
    learned = max(max(each) for method in METHODS[1:] for each in errors[method].values())
    spread = {method: [value for each in found.values() for value in each] for method, found in errors.items()}
    claims = [
        Claim(
            32,
            f"old errors rise by {show(forgot['fine-tuning'])} points with fine-tuning; with the adapters off the old "
            f"logits are the same to the last bit: {same}; they are {100 * share:.0f} % more parameters",
            holds(same and min(forgot["fine-tuning"]) > 0),
        ),
        Claim(
            32,
            f"new errors: fine-tuning {show(spread['fine-tuning'])} %, parallel {show(spread['parallel'])} %, series "
            f"{show(spread['series'])} %",
            holds(learned < CHANCE / 2, limit=median(spread["parallel"]) > median(spread["fine-tuning"])),
        ),
    ]
    curves = [Curve(method, list(TASKS), list(errors[method].values())) for method in METHODS]
    count = len(TASKS)
    forgotten = [
        Curve(method, list(TASKS), [rows[i * len(METHODS) + j][4] for i in range(count)])
        for j, method in enumerate(METHODS)
    ]
    panels = [
        Panel("new task", "error on the new task (%)", curves),
        Panel("new task", "error on 0 to 4 (%)", forgotten),
    ]
    columns = {"new task": "", "method": "", "new error": "%", "old error before": "%", "old error after": "%"}
    title = "Adapters learn a new task and forget nothing; fine-tuning forgets"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def task(settings: Settings, first: int, inverted: bool, held_out: bool) -> tuple[Tensor, Tensor]:
    """Five digits from `first` on, with inverted pixels if wanted, and their labels."""
    x, label = digits(settings, held_out)
    chosen = (label >= first) & (label < first + 5)
    return (-x if inverted else x)[chosen], label[chosen]


def images(settings: Settings, first: int, inverted: bool) -> Images:
    """The training images of a task, with the names of all ten digits."""
    x, label = task(settings, first, inverted, held_out=False)
    pixels = ((x + 1) * 127.5).round().byte().numpy()
    return Images(pixels, label.numpy(), [str(digit) for digit in range(10)])


def trunk(settings: Settings, updates: int, seed: int) -> nn.Module:
    """A network that is trained on the digits 0 to 4."""
    return trained(classifier(updates, seed), updates, settings, images=images(settings, 0, False)).net


def taught(settings: Settings, updates: tuple[int, int], seed: int, name: str, method: str) -> nn.Module:
    """The network after it has learned a new task."""
    edit = partial(prepare, settings=settings, updates=updates[0], seed=seed, method=method)
    run = classifier(updates[1], seed)
    if method != "fine-tuning":
        run = replace(run, optimizer=replace(run.optimizer, learning_rate=ADAPTER_RATE))
    return trained(run, updates[1], settings, edit=edit, images=images(settings, *TASKS[name])).net


def prepare(net: nn.Module, settings: Settings, updates: int, seed: int, method: str) -> None:
    """Gives the weights of the trained network to a fresh one, and adapters if the method is a kind of them."""
    net.load_state_dict(trunk(settings, updates, seed).state_dict())
    if method != "fine-tuning":
        add_adapters(net, method, also=("fc",))


if __name__ == "__main__":
    main(measure)
