"""Which tiles make the Triton kernels of group norm fast: their share of a copy's bandwidth, over sizes of tiles.

    python -m benchmarks.norm_tiles

One row for each shape of images and each tile: channels of a program, values that it holds at a time, and warps. The
share is that of the least traffic: one reading and one writing forward, two readings and one writing backward. Kernels
are timed as a CUDA graph, so the time of the host does not count. The first row of a shape has the tiles in use.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu import graphed
from benchmarks.paired import Call, machine, seconds_of
from training.script import ScriptParser, command

SHAPES = ("512x128x32", "512x256x32", "512x256x16", "512x512x16", "512x256x8")
"""images, channels, side: where ddpm-cifar10 has most of its traffic"""
CHANNELS, VALUES, WARPS = (16, 32, 64), (2048, 4096, 8192, 16384), (4, 8, 16)


@dataclass(frozen=True)
class Tile:
    """The sizes of a program; see `residual/norm_triton.py`."""

    channels: int
    values: int
    warps: int


@command
def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="images x channels x side")
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20, help="calls of each kernel")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda, but PyTorch finds no GPU; run it on a machine with one")
    device = torch.device(args.device)
    copied = torch.empty(2**26 if device.type == "cuda" else 2**16, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(copied)
    rate = 2 * copied.nbytes / seconds(lambda: target.copy_(copied), args.repeats, device)
    print(f"{machine()}; a copy: {rate / 1e9:,.4g} GB/s\n\n| shape | tile | forward | backward |\n|---|---|---|---|")
    for shape in args.shapes:
        images, channels, side = map(int, shape.split("x"))
        x = torch.randn(images, channels, side, side, device=device).bfloat16()
        for tile, shares in measure(x.contiguous(memory_format=torch.channels_last), args.groups, args.repeats, rate):
            print(f"| {shape} | {tile} | {shares[0]:.0%} | {shares[1]:.0%} |", flush=True)


def measure(x: torch.Tensor, groups: int, repeats: int, rate: float) -> Iterator[tuple[Tile, tuple[float, float]]]:
    """The shares of the bandwidth `rate` of both kernels, for the tiles in use and for each other one."""
    from residual import norm_triton

    gain, offset = torch.rand(2, *x.shape[:2], device=x.device).unbind()
    dy = torch.randn_like(x)
    in_use = Tile(norm_triton._BLOCK, norm_triton._TILE, norm_triton._WARPS)
    try:
        for tile in (in_use, *itertools.starmap(Tile, itertools.product(CHANNELS, VALUES, WARPS))):
            norm_triton._BLOCK, norm_triton._TILE, norm_triton._WARPS = tile.channels, tile.values, tile.warps
            forward = partial(norm_triton._normalise, x, gain, offset, groups, 1e-5, True)
            backward = partial(norm_triton._backpropagate, x, gain, offset, dy, *forward()[1:], groups, True)
            took = [seconds(kernel, repeats, x.device) for kernel in (forward, backward)]
            yield tile, (2 * x.nbytes / rate / took[0], 3 * x.nbytes / rate / took[1])
    finally:
        norm_triton._BLOCK, norm_triton._TILE, norm_triton._WARPS = in_use.channels, in_use.values, in_use.warps


def seconds(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds of one of many calls; on a GPU, of the replays of a CUDA graph."""
    run = graphed(call) if device.type == "cuda" else call
    seconds_of(run)
    return seconds_of(run, repeats=repeats)


if __name__ == "__main__":
    main()
