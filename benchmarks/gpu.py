"""What the U-Net reaches on one GPU, as a report in Markdown: one command, at most nine minutes.

    python -m benchmarks.gpu --out gpu.md

Needs PyTorch and accelerate; rows of diffusers are left out where it is not installed. The sections are: the rates of
the GPU (a large product of bf16 matrices, a copy), correctness (bf16 and CUDA graphs against float32 and eager), group
norm with SiLU as a share of the copy's bandwidth, training steps with images per second, MFU and peak memory, and
forward passes. MFU is the share of the rate of the large product. The report has the
reason where a section fails or no time is left for it. It is written after each section.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unet
from benchmarks.paired import CONTROL, Call, Plan, add_options, measure, seconds_of, show_seconds, start, synchronize
from benchmarks.steps import build, build_theirs, forward, our_step, train_calls
from residual import NormAct
from residual.count import multiply_adds
from storage.write import write_text
from training.script import ScriptParser, command
from unet import UNetConfig


@dataclass(frozen=True)
class Setup:
    """What is measured, and how."""

    config: UNetConfig
    large: UNetConfig
    """for the last section"""
    batches: tuple[int, ...]
    """of training steps; the last one is compiled, too"""
    device: torch.device
    plan: Plan
    drawn: tuple[int, ...] = (1, 64)
    """batches of forward passes and of sampling"""
    side: int = 8192
    """rows and columns of the matrices that are multiplied and copied"""

    @property
    def has_peer(self) -> bool:
        """Whether diffusers is installed."""
        return importlib.util.find_spec("diffusers") is not None

    def random(self, *shape: int) -> Tensor:
        """Standard normal numbers in bf16."""
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def product_rate(self) -> float:
        """Operations per second of a large product of bf16 matrices."""
        a, b = self.random(self.side, self.side), self.random(self.side, self.side)
        return 2 * self.side**3 / self.seconds(lambda: a @ b)

    def bandwidth(self) -> float:
        """Bytes per second, read and written, of a large copy."""
        source = self.random(self.side, self.side)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: target.copy_(source))

    def seconds(self, call: Call) -> float:
        """Seconds of one of many calls, after a few."""
        seconds_of(call, repeats=3)
        return seconds_of(call, repeats=10)


@command
def main(argv: Sequence[str]) -> None:
    """Measures and writes the report."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="file of the report")
    parser.add_argument("--minutes", type=float, default=9, help="sections that would take longer are left out")
    parser.add_argument("--batch", nargs="+", type=int, default=[128, 512], help="images of training steps")
    parser.add_argument("--device", default="cuda")
    add_options(parser, rounds=8)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda, but PyTorch finds no GPU; run it on a machine with one")
    config, large = unet.preset("ddpm-cifar10"), unet.preset("adm-imagenet64")
    assert isinstance(config, UNetConfig)
    assert isinstance(large, UNetConfig)
    setup = Setup(config, large, tuple(args.batch), torch.device(args.device), start(args))
    lines: list[str] = []
    for text in report(setup, time.monotonic() + 60 * args.minutes):
        print(text, flush=True)
        lines.append(text)
        write_text(args.out, "\n".join(lines))


def report(setup: Setup, deadline: float) -> Iterator[str]:
    """The sections, one after the other; `deadline` on the monotonic clock."""
    for section, minutes in SECTIONS.items():
        yield f"## {(section.__doc__ or '').splitlines()[0].rstrip('.')}\n"
        if time.monotonic() + 60 * minutes > deadline:
            yield f"Left out: it may take {minutes:g} minutes.\n"
            continue
        try:
            yield from section(setup)
        except (RuntimeError, ImportError, ValueError) as error:
            yield f"Failed: {type(error).__name__}: {str(error).splitlines()[0][:300]}\n"
        torch.compiler.reset()
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()


def rates(setup: Setup) -> Iterator[str]:
    """The GPU."""
    yield f"- a product of bf16 matrices of {setup.side}: {setup.product_rate() / 1e12:,.3g} TFLOP/s"
    yield f"- a copy of {2 * setup.side**2 / 1e6:,.3g} MB: {setup.bandwidth() / 1e9:,.4g} GB/s, read and written"
    yield f"- diffusers: {'installed' if setup.has_peer else 'not installed, so its rows are left out'}\n"


def correctness(setup: Setup) -> Iterator[str]:
    """Correctness."""
    config, device = replace(setup.config, dropout=0.0), setup.device
    net = build(config)
    x, t = torch.randn(4, config.in_channels, *config.size, device=device), torch.arange(4.0, device=device)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, last in (("float32", False), ("bf16", False), ("bf16, channels last", True)):
        layout = torch.channels_last if last else torch.contiguous_format
        copy: Any = build(config, net.state_dict()).to(device, memory_format=layout)  # type: ignore[call-overload]
        with torch.autocast(device.type, torch.bfloat16, enabled=name != "float32"):
            output = copy(x.contiguous(memory_format=layout), t)
        output.float().square().mean().backward()
        found[name] = output.detach().float(), torch.cat([weight.grad.flatten() for weight in copy.parameters()])
    yield "| relative error against float32 | output | gradient |\n|---|---|---|"
    for name, pair in found.items():
        errors = [(a - b).norm() / b.norm() for a, b in zip(pair, found["float32"], strict=True)]
        yield f"| {name} | {errors[0]:.1e} | {errors[1]:.1e} |"
    graphs = {"compile": True, "cuda_graphs": True} if device.type == "cuda" else {}
    losses = []
    for settings in ({}, graphs):
        step: Any = our_step(build(config, net.state_dict()), 8, "bf16", device, **settings)
        losses.append(torch.stack([step().loss.detach().clone() for _ in range(8)]))
    worst = ((losses[1] - losses[0]).abs() / losses[0]).max()
    yield f"\nLargest relative difference of 8 losses in bf16, CUDA graphs against eager: {worst:.1e}\n"


def norm_node(setup: Setup) -> Iterator[str]:
    """Group norm with SiLU, in bf16, channels last."""
    bandwidth, batch = setup.bandwidth(), setup.batches[-1]
    yield "| channels, side | | forward | share of the copy | with backward | share |\n|---|---|---|---|---|---|"
    for depth, level in enumerate(setup.config.skeleton.levels[:3]):
        channels, side = level.channels, setup.config.size[0] >> depth
        x = setup.random(batch, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
        gradient = torch.randn_like(x)
        node = NormAct(channels, groups=setup.config.groups).to(setup.device, torch.bfloat16)
        plain = nn.Sequential(nn.GroupNorm(node.num_groups, channels), nn.SiLU()).to(setup.device, torch.bfloat16)
        for name, module in (("NormAct", node), ("GroupNorm, SiLU", plain)):
            once = setup.seconds(no_grad(module, x))
            both = setup.seconds(backward(module, x, gradient))
            shares = [count * x.nbytes / bandwidth / took for count, took in ((2, once), (5, both))]
            times = [show_seconds(once), show_seconds(both)]
            yield f"| {channels}, {side} | {name} | {times[0]} | {shares[0]:.0%} | {times[1]} | {shares[1]:.0%} |"
    yield "\nThe least traffic is one reading and one writing forward, two readings and one writing backward.\n"


def no_grad(module: nn.Module, x: Tensor) -> Call:
    """A call without gradients."""

    @torch.no_grad()
    def call() -> Tensor:
        return module(x)

    return call


def backward(module: nn.Module, x: Tensor, gradient: Tensor) -> Call:
    """A call with its backward pass."""
    return lambda: torch.autograd.grad(module(x), (x, *module.parameters()), gradient)


def training(setup: Setup) -> Iterator[str]:
    """Training steps of ddpm-cifar10, bf16."""
    for batch in setup.batches:
        yield training_table(setup, setup.config, batch, setup.has_peer, compiled=batch == setup.batches[-1])


def training_large(setup: Setup) -> Iterator[str]:
    """Training steps of adm-imagenet64, bf16."""
    yield training_table(setup, setup.large, setup.batches[0], theirs=False, compiled=True)


def training_table(setup: Setup, config: UNetConfig, batch: int, theirs: bool, compiled: bool) -> str:
    """Times, MFU and peak memory of training steps."""
    net, rate = build(replace(config, classes=None, learned_variance=False)), setup.product_rate()
    inputs = torch.empty(1, config.in_channels, *config.size), torch.zeros(1)
    operations = 3 * 2 * multiply_adds(net, *inputs) * batch
    calls = train_calls(net, batch, setup.device, True, compiled and setup.device.type == "cuda", theirs)
    timings = measure(calls, setup.plan)
    rows = ["| | MFU | peak memory of a step, GiB |", "|---|---|---|"]
    for name in timings.seconds:
        if name != CONTROL:
            mfu = operations / timings.median(name) / rate
            rows.append(f"| {name} | {mfu:.1%} | {peak_memory(calls[name], setup.device)} |")
    return "\n".join([timings.table(f"batch {batch}", batch), *rows, ""])


def peak_memory(call: Call, device: torch.device) -> str:
    """GiB that a call allocates at most; what a CUDA graph keeps is not among them."""
    if device.type != "cuda":
        return "not measured"
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronize()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.2f}"


def forward_passes(setup: Setup) -> Iterator[str]:
    """Forward passes of ddpm-cifar10, bf16."""
    net, device = build(setup.config), setup.device
    for batch in setup.drawn:
        calls: dict[str, Call] = {
            name: forward(build(net.config, net.state_dict()), batch, device, torch.bfloat16, False)
            for name in ("ours", CONTROL)
        }
        if device.type == "cuda":
            calls["ours as a CUDA graph"] = graphed(calls["ours"])
        if setup.has_peer:
            for name, last in (("UNet2DModel", False), ("UNet2DModel, channels last", True)):
                calls[name] = forward(build_theirs(net), batch, device, torch.bfloat16, last)
        yield measure(calls, setup.plan).table(f"batch {batch}", batch)


def graphed(call: Call) -> Call:
    """A call that replays the kernels of another one."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def samples(setup: Setup) -> Iterator[str]:
    """Sampling with ddim in 20 steps, float32; compiled: as CUDA graphs."""
    if not setup.has_peer:
        yield "Left out: it needs diffusers.\n"
        return
    from benchmarks.sampling import candidates

    for batch in setup.drawn:
        compiled = setup.device.type == "cuda"
        calls = candidates(build(setup.config), batch, 20, setup.device, "float32", compiled)
        yield measure(calls, setup.plan).table(f"batch {batch}", batch)


SECTIONS: dict[Callable[[Setup], Iterator[str]], float] = {
    rates: 0.1,
    correctness: 1.5,
    norm_node: 0.2,
    training: 3.5,
    forward_passes: 0.5,
    samples: 2.0,
    training_large: 2.5,
}
"""minutes that each may take"""


if __name__ == "__main__":
    main()
