"""How time, memory and cost grow with resolution, width and GPUs: the figures and the picture of docs/scaling.md.

    python -m benchmarks.scaling grow --times --picture docs/scaling.png
    ACCELERATE_USE_CPU=1 torchrun --standalone --nproc_per_node 2 -m benchmarks.scaling check
    python -m benchmarks.scaling predict
    python -m benchmarks.scaling cost --price 2.5

grow: multiply-adds, parameters and bytes that the backward pass keeps, counted on the meta device; with --times also
forward and backward passes on one thread of this machine. check: whether one update takes the time of its computation
and of its all-reduce, on the processes that torchrun starts. predict: hours and GPU-hours of the recipes in configs/.
cost: the fewest GPUs for each recipe within a day and within a week, and the cost.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

import unet
from residual.count import multiply_adds, on_meta, parameters
from tasks import RUNS
from tasks.diffusion import DiffusionRun
from training.cli import parse

SIDES, WIDTHS = (32, 64, 128, 256), (32, 64, 128, 256)
Curve = tuple[str, Sequence[float], Sequence[float]]
"""label, sizes and values"""
RECIPES = {
    "cifar10-ddpm": 32,
    "cifar10-edm": 32,
    "cifar10-edm2-small": 32,
    "ffhq64-edm": 64,
    "imagenet64-edm2-s": 64,
    "imagenet64-adm": 64,
    "lsun256-adm": 256,
}
"""configs that are costed, and the side of their images in pixels"""


@dataclass(frozen=True)
class Cluster:
    """The hardware in the cost model. The defaults are H200s; docs/scaling.md has their sources."""

    flops: float = 989e12
    """dense bf16 operations per second of a GPU, as published"""
    mfu: float = 0.17
    """share of them that training reaches beyond the fixed time of an update"""
    fixed_seconds: float = 0.030
    """of an update at any batch: launching kernels one by one, and the optimizer"""
    node: int = 8
    """GPUs of a machine"""
    inside: float = 300e9
    """bytes per second that a GPU exchanges with the others of its machine"""
    between: float = 40e9
    """the same with other machines"""

    def update_seconds(self, gpus: int, batch: int, multiply_adds: float, weights: float) -> float:
        """Time of one update of `batch` images over all GPUs, without overlap of computation and communication.

        Forward and backward pass are three times the forward pass, with two operations per multiply-add. A ring sends
        2 (n - 1) / n of the float32 gradients.
        """
        compute = math.ceil(batch / gpus) * 6 * multiply_adds / (self.flops * self.mfu)
        bandwidth = self.inside if gpus <= self.node else self.between
        return self.fixed_seconds + compute + 2 * (gpus - 1) / gpus * 4 * weights / bandwidth


def ddpm(**changes: Any) -> unet.UNetConfig:
    """The U-Net of Ho et al. 2020 with some fields changed."""
    config = unet.preset("ddpm-cifar10", **changes)
    assert isinstance(config, unet.UNetConfig)
    return config


def family(side: int, width: int) -> unet.UNetConfig:
    """The U-Net of Ho et al. 2020 with five levels, of which the one of 16x16 px has attention."""
    return ddpm(
        size=(side, side),
        base_channels=width,
        channel_multipliers=(1, 2, 2, 2, 2),
        attention_levels=(int(math.log2(side / 16)),),
    )


def inputs(config: unet.UNetConfig | unet.EDM2Config, images: int, device: str = "meta") -> tuple[Tensor, ...]:
    """Images, times and, for networks with classes, labels."""
    found = torch.randn(images, 3, *config.size, device=device), torch.zeros(images, device=device)
    return found if config.classes is None else (*found, found[1].long())


def kept_bytes(config: unet.UNetConfig) -> int:
    """Bytes of activations that the backward pass keeps for one image in float32, from the meta device."""
    net = on_meta(partial(unet.UNet, config))
    weights = {weight.untyped_storage()._cdata for weight in net.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # views of one tensor are kept once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), sdpa_kernel(SDPBackend.MATH):
        out = net(*inputs(config, 1))
    storages = [tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights]
    del out
    return sum(storages)


def seconds(config: unet.UNetConfig, images: int, repeats: int) -> float:
    """Median processor time of a forward and backward pass per image; waiting for other work does not count."""
    net, (x, t) = unet.UNet(config), inputs(config, images, "cpu")
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        net(x, t).square().mean().backward()
        times.append(time.process_time() - start)
    return float(np.median(times[1:])) / images


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a line through the logarithms (least squares)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def grow(timed: bool, picture: Path | None) -> None:
    """Prints the tables over side and width, and draws them."""
    rows: dict[str, tuple[Sequence[int], list[Curve]]] = {}
    for name, sizes, config in (
        ("side in px", SIDES, lambda side: family(side, 128)),
        ("width in channels", WIDTHS, lambda width: family(32, width)),
    ):
        configs = [config(size) for size in sizes]
        macs = [multiply_adds(on_meta(partial(unet.UNet, c)), *inputs(c, 1)) / 1e9 for c in configs]
        counts = [parameters(on_meta(partial(unet.UNet, c))) / 1e6 for c in configs]
        kept = [kept_bytes(c) / 1e6 for c in configs]
        curves: list[Curve] = [("10⁹ multiply-adds", sizes, macs), ("MB kept for backward", sizes, kept)]
        if name.startswith("width"):
            curves.append(("10⁶ parameters", sizes, counts))
        if timed:
            small = [size for size in sizes if size <= 128]
            take = [seconds(family(s, 32) if name.startswith("side") else family(32, s), 1, 2) for s in small]
            curves.append(("processor seconds", small, take))
        rows[name] = (sizes, curves)
        print(f"\n| {name} | " + " | ".join(map(str, sizes)) + " | exponent |\n|---|" + "---|" * (len(sizes) + 1))
        for label, at, values in curves:
            cells = [f"{round(value, -1):,.0f}" if value >= 1000 else f"{value:.3g}" for value in values] + [""] * (
                len(sizes) - len(values)
            )
            print(f"| {label} | " + " | ".join(cells) + f" | {exponent(at, values):.2f} |")
    if picture is not None:
        draw(rows, picture)


def draw(rows: dict[str, tuple[Sequence[int], list[Curve]]], file: Path) -> None:
    """Every curve relative to its first value, with its exponent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(9, 3.6), layout="constrained")
    for axis, (name, (sizes, curves)) in zip(axes, rows.items(), strict=True):
        for label, at, values in curves:
            label = f"{label.removeprefix('10⁹ ').removeprefix('10⁶ ')}: {exponent(at, values):.2f}"
            axis.loglog(at, np.divide(values, values[0]), "o-", label=label)
        axis.set_xticks(sizes, map(str, sizes))
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.set_ylabel(f"per image, relative to {sizes[0]}")
        axis.legend(title="exponent", frameon=False)
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=100)


def check(images: int, width: int, rounds: int) -> None:
    """Prints the time of an update on all processes beside that of its parts, as medians of ratios within a round."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    config = ddpm(size=(16, 16), base_channels=width, dropout=0.0)
    net = unet.UNet(config)
    model = DistributedDataParallel(net, gradient_as_bucket_view=True)
    x, t = inputs(config, images, "cpu")
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    gradient = torch.zeros(parameters(net))

    def update(network: nn.Module) -> None:
        network(x, t).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    calls: dict[str, Callable[[], object]] = {
        "alone": lambda: update(net),
        "again": lambda: update(net),
        "together": lambda: update(model),
        "all-reduce": lambda: dist.all_reduce(gradient),
    }
    orders = itertools.cycle(itertools.permutations(calls))
    times = {name: np.empty(rounds + 2) for name in calls}
    for row, order in zip(range(rounds + 2), orders, strict=False):
        for name in order:
            dist.barrier()
            start = time.perf_counter()
            calls[name]()
            dist.barrier()  # the slowest process decides
            times[name][row] = time.perf_counter() - start
    if dist.get_rank() == 0:
        alone, again, together, reduce = (values[2:] for values in times.values())
        print(f"{dist.get_world_size()} processes, {images} images each, {len(gradient) / 1e6:.1f} million parameters")
        print("median seconds:", ", ".join(f"{name} {np.median(values[2:]):.3f}" for name, values in times.items()))
        for name, ratio in (
            ("update / (computation + all-reduce)", together / (alone + reduce)),
            ("update / computation", together / alone),
            ("computation / computation (control)", again / alone),
        ):
            low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
            print(f"{name:>36}: {middle:.3f}   quartiles {low:.3f} to {high:.3f}   over {rounds} rounds")
    dist.destroy_process_group()


@dataclass(frozen=True)
class Estimate:
    """A recipe, and the hours that it takes on each number of GPUs."""

    recipe: str
    weights: int
    multiply_adds: float
    images: int
    batch: int
    hours: dict[int, float]


def estimates(cluster: Cluster, numbers: Sequence[int]) -> Iterator[Estimate]:
    """The recipes, by the cost model."""
    for name, side in RECIPES.items():
        run = parse(RUNS, ["--config", f"configs/{name}.yaml"]).run
        assert isinstance(run, DiffusionRun)
        config, train = replace(run.model, size=(side, side)), run.train
        net = on_meta(partial(unet.build, config))
        weights, macs = parameters(net), multiply_adds(net, *inputs(config, 1))
        hours = {n: train.updates * cluster.update_seconds(n, train.batch, macs, weights) / 3600 for n in numbers}
        yield Estimate(name, weights, macs, train.images, train.batch, hours)


def show(value: float) -> str:
    """A number of the tables: one digit after the point below 100."""
    return f"{value:,.{1 if value < 100 else 0}f}"


def predict(cluster: Cluster, numbers: Sequence[int] = (1, 8, 64)) -> None:
    """Prints hours and GPU-hours of the recipes, by the cost model."""
    columns = " | ".join(f"hours on {gpus}" for gpus in numbers)
    bills = " | ".join(f"GPU-hours on {gpus}" for gpus in numbers[1:])
    print(f"| recipe | 10⁶ parameters | 10⁹ multiply-adds | 10⁶ images | batch | {columns} | {bills} |")
    print("|---" * (5 + 2 * len(numbers) - 1) + "|")
    for found in estimates(cluster, numbers):
        bill = [gpus * found.hours[gpus] for gpus in numbers[1:]]
        row = [f"`{found.recipe}`", f"{found.weights / 1e6:.1f}", f"{found.multiply_adds / 1e9:.1f}"]
        row += [f"{found.images / 1e6:,.0f}", str(found.batch), *map(show, [*found.hours.values(), *bill])]
        print("| " + " | ".join(row) + " |")


def cost(cluster: Cluster, price: float, numbers: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> None:
    """Prints the fewest GPUs with which each recipe ends within a day and within a week, and what that costs."""
    print("| recipe | within a day: GPUs | hours | cost | within a week: GPUs | hours | cost |")
    print("|---" * 7 + "|")
    for found in estimates(cluster, numbers):
        row = [f"`{found.recipe}`"]
        for limit in (24, 24 * 7):
            gpus = next((n for n in numbers if found.hours[n] <= limit), None)
            hours = 0.0 if gpus is None else found.hours[gpus]
            row += (
                [f"more than {numbers[-1]}", "", ""]
                if gpus is None
                else [str(gpus), show(hours), show(gpus * hours * price)]
            )
        print("| " + " | ".join(row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    growth = commands.add_parser("grow", help="counts over resolution and width")
    growth.add_argument("--times", action="store_true", help="also time small sizes on one thread of this machine")
    growth.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves into this PNG file")
    checked = commands.add_parser("check", help="an update of several processes against the cost model; by torchrun")
    checked.add_argument("--images", type=int, default=4, help="images of each process in an update")
    checked.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    checked.add_argument("--rounds", type=int, default=12, help="rounds of the comparison")
    predicted = commands.add_parser("predict", help="hours and GPU-hours of the recipes")
    bill = commands.add_parser("cost", help="the fewest GPUs for each recipe within a day and a week, and the cost")
    bill.add_argument("--price", type=float, default=1.0, help="of a GPU-hour; default: %(default)g")
    for setting, command in itertools.product(fields(Cluster), (predicted, bill)):
        flag = f"--{setting.name.replace('_', '-')}"
        command.add_argument(flag, type=type(setting.default), default=setting.default, help="default: %(default)g")
    args = vars(parser.parse_args())
    chosen = args.pop("command")
    torch.set_num_threads(1)
    if chosen == "grow":
        grow(args["times"], args["picture"])
    elif chosen == "check":
        check(**args)
    elif chosen == "cost":
        cost(price=args.pop("price"), cluster=Cluster(**args))
    else:
        predict(Cluster(**args))


if __name__ == "__main__":
    main()
