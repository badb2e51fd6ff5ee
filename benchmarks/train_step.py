"""Time of one training step of our U-Net against diffusers' `UNet2DModel` with the same weights, in one process.

    python -m benchmarks.train_step --preset ddpm-cifar10 --batch 128 --device cuda --precision bf16 --compile

A step is forward pass, mean squared error, backward pass and a fused AdamW. Reading images and averaging weights are
left out, as they are the same for both. Ours, theirs and a second copy of ours (the A/A control) take turns, in an
order that changes each round. Printed are images per second, the peak of the GPU's memory, and the median ratio within
a round with its quartiles.
"""

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

import unet

WARM_UP = 4
"""rounds that are not counted: compilation, cuDNN's choice of algorithms"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ddpm-cifar10", help="network to time")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the comparison")
    parser.add_argument("--steps", type=int, default=5, help="steps of each network in a round")
    parser.add_argument("--precision", choices=["float32", "tf32", "bf16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="compile all networks with torch.compile")
    parser.add_argument("--channels-last", action="store_true", help="lay images and weights out as NHWC, for all")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    config = unet.preset(args.preset)
    assert isinstance(config, unet.UNetConfig)
    theirs = UNet2DModel(**unet.diffusers_config(config))
    ours, twin = unet.UNet(config), unet.UNet(config)
    for net in (ours, twin):
        net.import_weights(theirs.state_dict(), layout="diffusers")
    x = torch.randn(args.batch, 3, *config.size, device=args.device).contiguous(memory_format=layout)
    t = torch.randint(0, 1000, (args.batch,), device=args.device)
    nets: list[nn.Module] = [n.to(args.device, memory_format=layout).train() for n in (ours, twin, theirs)]  # type: ignore[call-overload]
    forwards: list[Callable[[], Tensor]] = [
        lambda: nets[0](x, t),
        lambda: nets[1](x, t),
        lambda: nets[2](x, t, return_dict=False)[0],
    ]
    steps = [
        TrainStep(net, call, x, args.precision == "bf16", args.compile)
        for net, call in zip(nets, forwards, strict=True)
    ]
    times, peaks = measure(steps, args.rounds, args.steps)

    what = f"{args.precision}{', compiled' if args.compile else ''}{', channels last' if args.channels_last else ''}"
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(f"{args.preset}, batch {args.batch}, {what}, {name}, torch {torch.__version__}")
    for label, column in (("ours", 0), ("UNet2DModel", 2)):
        rate = args.batch * args.steps / np.median(times[:, column])
        memory = f"   {peaks[column] / 2**30:.2f} GiB at the peak" if peaks[column] else ""
        print(f"{label:>22}: {rate:8.1f} images per second{memory}")
    for label, column in (("theirs / ours", 2), ("ours / ours (control)", 1)):
        low, middle, high = np.quantile(times[:, column] / times[:, 0], [0.25, 0.5, 0.75])
        print(f"{label:>22}: {middle:.3f}   quartiles {low:.3f} to {high:.3f}   over {args.rounds} rounds")


class TrainStep:
    """One training step of a network: `step()`."""

    def __init__(self, net: nn.Module, forward: Callable[[], Tensor], target: Tensor, bf16: bool, compiled: bool):
        self.forward, self.target = forward, target
        self.autocast = torch.autocast(target.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
        if compiled:
            net.compile()

    def __call__(self) -> None:
        with self.autocast:
            loss = nn.functional.mse_loss(self.forward().float(), self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(steps: list[TrainStep], rounds: int, repeats: int) -> tuple[np.ndarray, list[int]]:
    """Seconds of `repeats` steps of each network in each round, and the bytes that a step allocates at its peak."""
    cuda = steps[0].target.device.type == "cuda"
    orders = itertools.cycle(itertools.permutations(range(len(steps))))
    times, peaks = np.empty((rounds + WARM_UP, len(steps))), [0] * len(steps)
    for row, order in zip(times, orders, strict=False):
        for i in order:
            before = 0
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            for _ in range(repeats):
                steps[i]()
            if cuda:
                torch.cuda.synchronize()
                peaks[i] = torch.cuda.max_memory_allocated() - before
            row[i] = time.perf_counter() - start
    return times[WARM_UP:], peaks


if __name__ == "__main__":
    main()
