"""The skip connections of a diffusion U-Net, removed one at a time.

Claim: the skips from encoder to decoder carry detail past the lower levels (Ronneberger et al. 2015). In a trained
network the channels of one skip are replaced by zeros. Measured is the increase of the squared error of the predicted
noise by skip and noise level, and separately of its means over 2×2 squares and of the rest, the detail. Skips at full
size whose removal costs no more detail than that of skips at half size would refute it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.nets import Trained, denoiser, digits, trained
from experiments.run import Settings, main
from residual.probes.visit import noise_like
from unet import UNet

TIMES = (100, 400, 700)
"""timesteps of 1,000: little, medium and strong noise"""
Errors = tuple[float, float]
"""mean squared errors of a prediction: of its means over 2×2 squares, and of its detail"""


def measure(settings: Settings) -> Finding:
    """Increase of the error by removed skip."""
    updates, count, seeds = settings.pick(300, 5), settings.pick(256, 16), range(settings.seeds)
    x, _ = digits(settings, held_out=True, count=count)
    nets = [trained(denoiser(updates, seed), updates, settings) for seed in seeds]
    shapes = skip_shapes(nets[0], x[:1])
    found: dict[tuple[int, int], list[Errors]] = {}
    for t in TIMES:
        for entry in range(-1, len(shapes)):  # -1: the intact network
            found[t, entry] = [errors(one, x, t, entry, shapes[entry][0]) for one in nets]
    increase = {
        (t, i): [sum(cut) / sum(intact) for cut, intact in zip(found[t, i], found[t, -1], strict=True)]
        for t in TIMES
        for i in range(len(shapes))
    }
    size = max(side for _, side in shapes)
    large = [i for i, (_, side) in enumerate(shapes) if side == size]
    small = [i for i, (_, side) in enumerate(shapes) if side < size]

    def detail(entries: list[int], seed: int) -> float:
        """The mean increase of the error of the detail, as a factor, with little noise."""
        factors = [found[TIMES[0], i][seed][1] / found[TIMES[0], -1][seed][1] for i in entries]
        return sum(factors) / len(factors)

    of_large, of_small = ([detail(entries, seed) for seed in seeds] for entries in (large, small))
    claims = [
        Claim(
            66,
            f"with little noise, the error of the detail grows by a factor of {show(of_large)} when a skip at full "
            f"size is removed, of {show(of_small)} when one at half size is",
            compare([a - b for a, b in zip(of_large, of_small, strict=True)], least=0.1),
        )
    ]
    names = [f"{shapes[i][1]} px, {i + 1}" for i in range(len(shapes))]
    rows = [[name, shapes[i][0], *(increase[t, i] for t in TIMES)] for i, name in enumerate(names)]
    columns = {"skip (size, entry of the decoder)": "", "channels": ""} | {f"t = {t}": "times the error" for t in TIMES}
    curves = [Curve(f"t = {t}", names, [increase[t, i] for i in range(len(shapes))]) for t in TIMES]
    panel = Panel(
        "removed skip: size, entry of the decoder", "error of the noise over that of the intact network", curves, "y"
    )
    title = "Skips at full size carry the detail and the noise, those at half size little"
    return Finding(title, columns, rows, claims, [panel], settings.seeds)


def network(one: Trained) -> UNet:
    """The U-Net."""
    assert isinstance(one.net, UNet)
    return one.net


def skip_shapes(one: Trained, x: Tensor) -> list[tuple[int, int]]:
    """Channels and size in pixels of the skip that each entry of the decoder takes."""
    shapes: list[tuple[int, int]] = []

    def note(block: Any, inputs: Any, y: Tensor) -> None:
        shapes.append((y.shape[1], y.shape[2]))

    handles = [block.register_forward_hook(note) for block in network(one).encoder]
    one.net(x, 0.0)
    for handle in handles:
        handle.remove()
    return shapes[::-1]


@contextmanager
def without_skip(net: UNet, entry: int, channels: int) -> Iterator[None]:
    """In this context the last channels of an entry's input, the skip, are zeros. Entry -1: nothing is changed."""

    def cut(block: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        return (torch.cat([x[:, :-channels], torch.zeros_like(x[:, -channels:])], dim=1), *rest)

    handle = net.decoder[entry].register_forward_pre_hook(cut) if entry >= 0 else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def errors(one: Trained, x: Tensor, t: int, entry: int, channels: int) -> Errors:
    """The errors of the predicted noise at a timestep without one skip."""
    level = one.task.diffusion.formulation.level(torch.tensor([float(t)]))  # type: ignore[attr-defined]
    noise = noise_like(x, t)
    with without_skip(network(one), entry, channels):
        error = one.net(level.c_in * level.noisy(x, noise), level.c_noise) - noise
    means = F.interpolate(F.avg_pool2d(error, 2), scale_factor=2.0)
    return float(means.square().mean()), float((error - means).square().mean())


if __name__ == "__main__":
    main(measure)
