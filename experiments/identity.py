"""Learning a correction of the input instead of the whole output.

Claim: a residual block whose branch is zero is the identity, so it has only to learn the difference F = H - x between
the wanted output and the input (He et al. 2015, section 3.1). Measured are zero branches, the worked example
x = (2, 1.5, 0.8), H = (2.3, 1.4, 1), F = (0.3, -0.1, 0.2), and the updates that a residual and a plain linear map need
to learn a small correction of random inputs. A plain map that is as fast would refute it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.nets import recipe, trained
from experiments.run import Settings, main
from residual import Identity, Residual, ZeroConv2d
from resnet import create_model
from training.data import Images, ImageSet, PixelFormat
from training.random import GlobalRandom
from training.run import Run
from training.task import Batch, Task

INPUT, WANTED, CORRECTION = (2.0, 1.5, 0.8), (2.3, 1.4, 1.0), (0.3, -0.1, 0.2)
UNIT = PixelFormat(dtype="float32", low=-1.0, high=1.0, file="npy")


class AddTask(Task[Batch]):
    """Learns `x + correction` by the squared error."""

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Tensor:
        """The mean squared error of each triple."""
        correction = torch.tensor(CORRECTION).view(3, 1, 1)
        return (model(batch.image) - batch.image - correction).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class AddRun(Run[AddTask]):
    """Trains a linear map of three numbers that starts at zero, with or without a shortcut."""

    shortcut: bool = True

    def build(self, images: ImageSet) -> AddTask:
        """The task, with its map of zeros."""
        branch = ZeroConv2d(3, 3, kernel_size=1)
        return AddTask(Residual(branch) if self.shortcut else branch)


def measure(settings: Settings) -> Finding:
    """Exact identities, the worked example, and the losses of both maps."""
    updates, seeds = settings.pick(400, 60), range(settings.seeds)
    exact = {
        name: zero_branches_are_identities(name) for name in settings.pick(("resnet20", "resnet50"), ("resnet20",))
    }
    nets = {
        name: [
            trained(
                AddRun(shortcut=shortcut, **recipe(updates, seed, learning_rate=0.02)),
                updates,
                settings,
                images=points(),
            )
            for seed in seeds
        ]
        for name, shortcut in (("plain", False), ("residual", True))
    }
    first, last = ({name: [float(one.losses[i]) for one in each] for name, each in nets.items()} for i in (0, -1))
    x, wanted, correction = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (INPUT, WANTED, CORRECTION))
    block = nets["residual"][0].net
    assert isinstance(block, Residual)
    with torch.no_grad():
        (shortcut, branch), output = block.parts(x), block(x)
    error = float((output - wanted).abs().max())
    claims = [
        Claim(
            2,
            f"blocks with zero branches are the identity to the last bit: {', '.join(exact)}",
            holds(all(exact.values())),
        ),
        Claim(
            80,
            f"a zero branch starts with loss {show(first['residual'])}, that of the correction alone; a zero plain map "
            f"with {show(first['plain'])}",
            compare([plain - residual for plain, residual in zip(first["plain"], first["residual"], strict=True)]),
        ),
        Claim(94, "H - x is the worked example's F, and x + F its H", holds(torch.allclose(x + correction, wanted))),
        Claim(
            95,
            f"trained by {updates} updates on random inputs, the branch gives {rounded(branch)} for {INPUT}; the "
            f"output is {WANTED} within {error:.0e}",
            holds(error < 1e-3),
        ),
        Claim(
            96,
            "the parts of a block are its input and its branch; their sum is its output",
            holds(torch.equal(shortcut + branch, output)),
        ),
        Claim(
            94,
            f"loss after {updates} updates: plain {show(last['plain'])}, residual {show(last['residual'])}",
            compare([plain - residual for plain, residual in zip(last["plain"], last["residual"], strict=True)]),
        ),
    ]
    shown = range(0, updates, max(updates // 100, 1))
    curves = [
        Curve(name, [i + 1 for i in shown], [[max(float(one.losses[i]), 1e-12) for one in each] for i in shown])
        for name, each in nets.items()
    ]
    panel = Panel("update", "mean squared error", curves, "y")
    rows = [[name, first[name], last[name]] for name in nets]
    columns = {"map": "", "first loss": "", "last loss": ""}
    title = "A residual block starts at the identity and learns only the correction"
    return Finding(title, columns, rows, claims, [panel], settings.seeds)


def zero_branches_are_identities(name: str) -> bool:
    """Whether blocks of a network of the zoo with identity shortcuts return their input if their last norm is zero."""
    for block in create_model(name, zero_init=True).eval().modules():
        if isinstance(block, Residual) and isinstance(block.shortcut, Identity):
            x = torch.rand(2, block.branch.get_parameter("conv1.weight").shape[1], 8, 8)  # behind a ReLU
            with torch.no_grad():
                if not torch.equal(block(x), x):
                    return False
    return True


def points() -> Images:
    """Random triples of numbers from -3 to 3, as images of one pixel."""
    values = np.random.default_rng(0).uniform(-3, 3, (1024, 3, 1, 1)).astype(np.float32)
    return Images(values, pixel_format=UNIT)


def rounded(x: Tensor) -> tuple[float, ...]:
    """Three numbers with three decimals."""
    return tuple(round(value, 3) for value in x.flatten().tolist())


if __name__ == "__main__":
    main(measure)
