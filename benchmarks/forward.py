"""Forward time of our U-Net against diffusers' `UNet2DModel` with the same weights, side by side in one process.

    python -m benchmarks.forward --preset ddpm-cifar10 --batch 4 --pairs 40

Ours, theirs and a second copy of ours (the A/A control) run in turn, in an order that changes each round; what is
printed is the median of the ratios within a round, with its quartiles. Nothing inside the control's spread is a win.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import nn

import unet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset",
        default="ddpm-cifar10",
        choices=[name for name in unet.list_presets() if isinstance(unet.preset(name), unet.UNetConfig)],
        help="network to time",
    )
    parser.add_argument("--batch", type=int, default=4, help="images per forward pass")
    parser.add_argument("--size", type=int, help="side of the images in pixels; the preset's own by default")
    parser.add_argument("--pairs", type=int, default=40, help="rounds of the comparison")
    parser.add_argument("--threads", type=int, default=1, help="threads; one gives the steadiest verdict")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="type of all numbers")
    parser.add_argument("--channels-last", action="store_true", help="lay images and weights out as NHWC, for both")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    config = unet.preset(args.preset)
    assert isinstance(config, unet.UNetConfig)
    theirs = UNet2DModel(**unet.diffusers_config(config))
    ours, twin = unet.UNet(config), unet.UNet(config)
    for net in (ours, twin):
        net.import_weights(theirs.state_dict(), layout="diffusers")
    height, width = (args.size, args.size) if args.size else config.size
    dtype = getattr(torch, args.dtype)
    x = torch.randn(args.batch, 3, height, width, device=args.device, dtype=dtype).contiguous(memory_format=layout)
    t = torch.randint(0, 1000, (args.batch,), device=args.device)
    nets: list[nn.Module] = [n.to(args.device, dtype, memory_format=layout).eval() for n in (ours, twin, theirs)]  # type: ignore[call-overload]
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: nets[0](x, t),
        lambda: nets[1](x, t),
        lambda: nets[2](x, t, return_dict=False)[0],
    ]

    with torch.inference_mode():
        error = (calls[0]() - calls[2]()).abs().max() / calls[2]().std()
        times = measure(calls, args.pairs)
    where = f"{args.device}, {args.threads} thread(s)"
    print(f"{args.preset}, {height}x{width} px, batch {args.batch}, {args.dtype}, {where}")
    print(f"largest difference of the outputs: {error.item():.1e} of their standard deviation")
    for name, column in (("ours", 0), ("UNet2DModel", 2)):
        print(f"{name:>12}: {1e3 * np.median(times[:, column]) / args.batch:8.2f} ms per image")
    for name, column in (("theirs / ours", 2), ("ours / ours (control)", 1)):
        low, middle, high = np.quantile(times[:, column] / times[:, 0], [0.25, 0.5, 0.75])
        print(f"{name:>22}: {middle:.3f}   quartiles {low:.3f} to {high:.3f}   over {args.pairs} rounds")


def measure(calls: list[Callable[[], torch.Tensor]], rounds: int) -> np.ndarray:
    """Seconds of each call in each round, in an order that changes; three rounds of warm-up are left out."""
    orders = itertools.cycle(itertools.permutations(range(len(calls))))
    times = np.empty((rounds + 3, len(calls)))
    for row, order in zip(times, orders, strict=False):
        for i in order:
            start = time.perf_counter()
            float(calls[i]().flatten()[0])  # waits for the device
            row[i] = time.perf_counter() - start
    return times[3:]


if __name__ == "__main__":
    main()
