"""Our U-Net against diffusers' `UNet2DModel` with the same weights and dropout, in one process.

    python -m benchmarks.unet_vs_diffusers --what train --batch 16 --rounds 20

A training step is that of `benchmarks.steps`; a forward pass is without gradients, all numbers in the precision; a
sampling step is a step of ddim. diffusers' network runs as its script runs it (float32, without tuning) and in its
best eager forms: in the precision, in both layouts, with fused AdamW and averages. With --compile it is also compiled,
and so is ours. The last row is the time of the convolutions and matrix products alone, in a training step with their
gradients.
"""

import argparse
from collections.abc import Sequence

import torch

import unet
from benchmarks import sampling
from benchmarks.paired import CONTROL, Call, add_options, measure, start
from benchmarks.steps import PRODUCTS, Products, build, build_theirs, forward, train_calls
from residual import native
from training.memory import keep_freed_memory
from training.precision import choose_memory_format
from training.script import ScriptParser, command
from unet import UNet, UNetConfig

STEPS = 4
"""of a sampling that is timed"""


@command
def main(argv: Sequence[str]) -> None:
    """Compares and prints one table for each kind of work and batch."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=unet.list_presets(), default="ddpm-cifar10", help="network")
    parser.add_argument("--what", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of work")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64], help="images per call")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="bf16")
    parser.add_argument("--compile", action="store_true", help="also compiled networks, which takes minutes")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    add_options(parser, rounds=20)
    args = parser.parse_args(argv)
    config = unet.preset(args.preset)
    if not isinstance(config, UNetConfig):
        raise ValueError(f"--preset={args.preset} is not a network that diffusers has; give one of ddpm-*")
    if min(args.batch) < 1:
        raise ValueError(f"--batch={min(args.batch)} is too small; give at least 1")
    plan, device = start(args), torch.device(args.device)
    for what in args.what:
        for batch in args.batch:
            calls = KINDS[what](build(config), batch, device, args.precision == "bf16", args.compile)
            timings = measure(calls, plan)
            images = batch * (STEPS if what == "sample" else 1)
            print(timings.table(f"{args.preset}, {what}, batch {batch}, {args.precision}", images), flush=True)


def forward_calls(net: UNet, batch: int, device: torch.device, bf16: bool, compiled: bool) -> dict[str, Call]:
    """Forward passes. The process keeps freed memory, as in sample.py."""
    weights, dtype = net.state_dict(), torch.bfloat16 if bf16 else torch.float32
    native.load()
    keep_freed_memory()
    last = choose_memory_format(device, bf16, compiled=False) is torch.channels_last

    def ours(compile: bool = False) -> Call:
        copy = build(net.config, weights)
        if compile:
            copy.compile()
        return forward(copy, batch, device, dtype, last or compile)

    calls = {"ours": ours(), CONTROL: ours()}
    calls["UNet2DModel in float32"] = forward(build_theirs(net), batch, device, torch.float32, False)
    for name, last_of in (("tuned", False), ("tuned, channels last", True)):
        calls[f"UNet2DModel {name}"] = forward(build_theirs(net), batch, device, dtype, last_of)
    if compiled:
        theirs = build_theirs(net)
        theirs.compile()
        calls["ours compiled"] = ours(compile=True)
        calls["UNet2DModel compiled, channels last"] = forward(theirs, batch, device, dtype, True)
    calls[PRODUCTS] = Products(net.config, batch, device, dtype, backward=False)
    return calls


def sample_calls(net: UNet, batch: int, device: torch.device, bf16: bool, compiled: bool) -> dict[str, Call]:
    """Sampling with few steps."""
    return sampling.candidates(net, batch, STEPS, device, "bf16" if bf16 else "float32", compiled)


KINDS = {"forward": forward_calls, "train": train_calls, "sample": sample_calls}


if __name__ == "__main__":
    main()
