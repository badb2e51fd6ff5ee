"""Super-resolution: predicting the missing detail, or the whole image.

Claim: it is easier to learn the difference between the enlarged small image and the large one than the large one
itself (Kim et al. 2016; Lim et al. 2017). One network, with and without a shortcut from its input to its output,
learns to enlarge digits of 4×4 px to 8×8 px. Measured are the errors on held-out digits, and the updates until the
residual network reaches the final loss of the direct one. A direct network that is as good would refute it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.nets import digits, recipe, trained
from experiments.run import Settings, main
from residual import Chain, Residual, ZeroConv2d, edsr_branch
from training.data import DataConfig, ImageSet
from training.random import GlobalRandom, seeded
from training.run import Run
from training.task import Batch, Task

WINDOW = 10
"""updates over which a training loss is averaged"""


class EnlargeTask(Task[Batch]):
    """Learns images from their halved and enlarged versions, by the squared error."""

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Tensor:
        """The mean squared error of each image."""
        return (model(blurred(batch.image)) - batch.image).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class EnlargeRun(Run[EnlargeTask]):
    """Trains a small EDSR, whose output is added to its input or not. Its last layer starts at zero."""

    residual: bool = True

    def build(self, images: ImageSet) -> EnlargeTask:
        """The task, with its freshly initialised network."""
        with seeded(self.train.seed, "model"):
            blocks = {f"block{i}": Residual(edsr_branch(16)) for i in range(3)}
            head, tail = nn.Conv2d(1, 16, kernel_size=3, padding=1), ZeroConv2d(16, 1, kernel_size=3, padding=1)
            network = Chain(head=head, **blocks, tail=tail)
        return EnlargeTask(Residual(network) if self.residual else network)


def blurred(image: Tensor) -> Tensor:
    """The image at half its size, enlarged again."""
    return F.interpolate(F.avg_pool2d(image, 2), scale_factor=2.0, mode="bilinear", align_corners=False)


def measure(settings: Settings) -> Finding:
    """Signal-to-noise ratios after few and many updates, and the losses over time."""
    steps, seeds = settings.pick((30, 100, 300), (5, 20)), range(settings.seeds)
    x, _ = digits(settings, held_out=True)
    nets = {
        (name, updates): [
            trained(
                EnlargeRun(
                    data=DataConfig(source="digits", validation=0.5), residual=residual, **recipe(updates, seed)
                ),
                updates,
                settings,
            )
            for seed in seeds
        ]
        for name, residual in (("direct", False), ("residual", True))
        for updates in steps
    }
    found = {key: [decibels(one.net(blurred(x)), x) for one in each] for key, each in nets.items()}
    input_db = decibels(blurred(x), x)
    gains = {
        updates: [b - a for a, b in zip(found["direct", updates], found["residual", updates], strict=True)]
        for updates in steps
    }
    faster = [
        reached(smooth(b.losses), float(smooth(a.losses)[-1]))
        for a, b in zip(nets["direct", steps[-1]], nets["residual", steps[-1]], strict=True)
    ]
    claims = [
        Claim(
            1,
            f"the residual network is better by {show(gains[steps[0]])} dB after {steps[0]} updates, and by "
            f"{show(gains[steps[-1]])} dB after {steps[-1]}",
            compare([gain for each in gains.values() for gain in each], least=0.05),
        ),
        Claim(
            1,
            f"it reaches the final loss of the direct network after {show(faster)} of {steps[-1]} updates",
            compare([steps[-1] - updates for updates in faster], least=0.1 * steps[-1]),
        ),
    ]
    rows = [["enlarged input", 0, input_db], *([name, updates, each] for (name, updates), each in found.items())]
    last = {name: [smooth(one.losses) for one in nets[name, steps[-1]]] for name in ("direct", "residual")}
    shown = range(0, len(last["direct"][0]), max(len(last["direct"][0]) // 60, 1))
    curves = [
        Curve(name, [i + WINDOW for i in shown], [[float(each[i]) for each in losses] for i in shown])
        for name, losses in last.items()
    ]
    quality = [Curve(name, steps, [found[name, updates] for updates in steps]) for name in ("direct", "residual")]
    panels = [
        Panel("update", f"mean squared error (mean of {WINDOW} updates)", curves, "y"),
        Panel("updates in all", "held-out digits: signal-to-noise ratio (dB)", quality, "x"),
    ]
    columns = {"network": "", "updates": "", "peak signal-to-noise ratio": "dB"}
    title = "Super-resolution learns the missing detail faster than the whole image"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def decibels(output: Tensor, image: Tensor) -> float:
    """The peak signal-to-noise ratio of pixel values from -1 to 1."""
    return float(10 * torch.log10(4 / (output - image).square().mean()))


def smooth(losses: Tensor) -> Tensor:
    """Means over `WINDOW` updates."""
    return losses.unfold(0, WINDOW, 1).mean(dim=1)


def reached(losses: Tensor, target: float) -> float:
    """The number of updates until the mean loss is at most `target`, all if it never is."""
    below = (losses <= target).nonzero()
    return float(below[0] + WINDOW) if len(below) else float(len(losses) + WINDOW - 1)


if __name__ == "__main__":
    main(measure)
