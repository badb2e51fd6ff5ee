"""A new class for a trained diffusion model: by fine-tuning, or by residual adapters.

Claim: with adapters in its residual blocks, a frozen network learns a further task without forgetting (Rebuffi et al.
2018); here a U-Net that draws the digits 0 to 8 learns 9. Measured are the loss on held-out digits, and the share of
drawn images that a classifier recognises. An old loss that changes with the adapters off, or a 9 that is not learned,
would refute it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from experiments.finding import Claim, Curve, Finding, Panel, holds, show
from experiments.nets import Trained, classifier, denoiser, digits, trained, training_images
from experiments.run import Settings, main
from residual.adapters import Adapters, add_adapters
from tasks.denoising import DiffusionBatch
from tasks.diffusion import DiffusionRun
from training.data import DataConfig, Images
from training.random import GlobalRandom

NEW = 9
METHODS = ("before", "fine-tuning", "adapters on", "adapters off")


def measure(settings: Settings) -> Finding:
    """Losses and recognised images of old and new classes, by method."""
    updates, seeds = settings.pick((400, 150), (4, 2)), range(settings.seeds)
    draws = settings.pick(45, 9)
    judge = trained(classifier(settings.pick(200, 4)), settings.pick(200, 4), settings).net
    losses: dict[str, dict[str, list[float]]] = {"old": {}, "new": {}}
    drawn: dict[str, dict[str, list[float]]] = {"old": {}, "new": {}}
    labels = {"old": [i % NEW for i in range(draws)], "new": [NEW] * draws}
    share = 0.0
    for method in METHODS:
        for which in ("old", "new"):
            losses[which][method], drawn[which][method] = [], []
        for seed in seeds:
            one = model(settings, updates, seed, method)
            if method.startswith("adapters"):
                share = Adapters(one.net).share
            with Adapters(one.net).off() if method == "adapters off" else nullcontext():
                for which in ("old", "new"):
                    losses[which][method].append(loss(settings, one, which == "new"))
                    drawn[which][method].append(recognised(one, judge, labels[which]))
    same = losses["old"]["adapters off"] == losses["old"]["before"]
    rise = [b - a for a, b in zip(losses["old"]["before"], losses["old"]["fine-tuning"], strict=True)]
    gains = [b - a for a, b in zip(drawn["new"]["before"], drawn["new"]["adapters on"], strict=True)]
    claims = [
        Claim(
            32,
            f"diffusion: the old loss rises by {show(rise)} with fine-tuning from {show(losses['old']['before'])}; "
            f"with adapters off it is the same to the last bit: {same} ({100 * share:.0f} % more parameters)",
            holds(same and min(rise) > 0),
        ),
        Claim(
            32,
            f"diffusion: recognised as the new class are {show(drawn['new']['before'])} % of the drawings before, "
            f"{show(drawn['new']['adapters on'])} % with adapters, "
            f"{show(drawn['new']['fine-tuning'])} % after fine-tuning",
            holds(min(gains) > 20),
        ),
    ]
    rows = [
        [method, losses["old"][method], losses["new"][method], drawn["old"][method], drawn["new"][method]]
        for method in METHODS
    ]
    columns = {"model": "", "old loss": "", "new loss": "", "old recognised": "%", "new recognised": "%"}
    names = {"old": "0 to 8", "new": "9"}
    panels = [
        Panel(
            "model",
            label,
            [Curve(names[which], METHODS, [each[method] for method in METHODS]) for which, each in found.items()],
        )
        for label, found in (("loss on held-out digits", losses), ("recognised drawings (%)", drawn))
    ]
    title = "A diffusion model learns a new digit by adapters and keeps the old ones"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def run(updates: int, seed: int) -> DiffusionRun:
    """The run of a small U-Net with labels."""
    small = denoiser(updates, seed, blocks_per_level=1, attention_levels=())
    return replace(small, data=DataConfig(source="digits", validation=0.5))


def images(settings: Settings, new: bool) -> Images:
    """The training images of the old classes or of the new one, with the names of all."""
    found = training_images(DataConfig(source="digits", validation=0.5), settings)
    assert isinstance(found, Images)
    assert found.labels is not None
    return found.part(((found.labels == NEW) == new).nonzero()[0])


def model(settings: Settings, updates: tuple[int, int], seed: int, method: str) -> Trained:
    """The model of the old classes, or after it has learned the new one."""
    if method == "before":
        return trained(run(updates[0], seed), updates[0], settings, images=images(settings, False))
    edit = partial(prepare, settings=settings, updates=updates, seed=seed, adapters=method != "fine-tuning")
    return trained(run(updates[1], seed), updates[1], settings, edit=edit, images=images(settings, True))


def prepare(net: nn.Module, settings: Settings, updates: tuple[int, int], seed: int, adapters: bool) -> None:
    """Gives the weights of the model of the old classes to a fresh one, and adapters if wanted."""
    net.load_state_dict(model(settings, updates, seed, "before").net.state_dict())
    if adapters:
        add_adapters(net, "parallel", also=("embedding.label",))


def loss(settings: Settings, one: Trained, new: bool) -> float:
    """The mean training loss on held-out digits of the new class, or of the others, with the same noise for all."""
    x, label = digits(settings, held_out=True)
    batch = DiffusionBatch(x[(label == NEW) == new], label[(label == NEW) == new])
    rows = len(batch.image)
    random = (GlobalRandom(0, i, "task", rows, slice(None), "cpu") for i in range(4))
    return float(torch.stack([one.task.loss(one.net, batch, each).mean() for each in random]).mean())


def recognised(one: Trained, judge: nn.Module, labels: Sequence[int]) -> float:
    """The share of drawings, in percent, that the classifier recognises as their label."""
    drawn = one.task.diffusion.draw(range(len(labels)), list(labels), steps=20)  # type: ignore[attr-defined]
    return 100 * float((judge(drawn).argmax(dim=1) == torch.tensor(labels)).float().mean())


if __name__ == "__main__":
    main(measure)
