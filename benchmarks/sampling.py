"""Drawing images with ours and with diffusers' `DDIMPipeline`: the same weights, noise, steps and precision.

    python -m benchmarks.sampling

By default 64 images of the network of configs/digits.yaml, without classes, which the pipeline does not take, in 50
steps, with random weights. `--preset` gives a published network instead. The largest difference of the images is
printed first. The last row is the time of the convolutions and matrix products of all steps alone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import unet
from benchmarks.paired import CONTROL, Call, add_options, measure, start
from benchmarks.steps import PRODUCTS, Products, autocast, build, build_theirs
from diffusion import DDPM, generators
from diffusion.sampler import SCHEDULERS
from pipelines.diffusion import DiffusionModel
from tasks import RUNS
from tasks.diffusion import DiffusionRun
from training.cli import parse
from training.compile import compile_for_drawing
from training.precision import place
from training.script import ScriptParser, command
from unet import UNet, UNetConfig

ROOT = Path(__file__).parents[1]


@command
def main(argv: Sequence[str]) -> None:
    """Compares and prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=unet.list_presets(), help="network; without it that of the digits")
    parser.add_argument("--num", type=int, default=64, help="images, drawn at once")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler ddim")
    parser.add_argument(
        "--precision",
        choices=["float32", "bf16"],
        default="float32",
        help="of the network; in bf16 the pipeline runs under autocast",
    )
    parser.add_argument("--compile", action="store_true", help="also compiled, as sample.py --compile draws")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    add_options(parser, rounds=20)
    args = parser.parse_args(argv)
    config = digits() if args.preset is None else unet.preset(args.preset)
    if not isinstance(config, UNetConfig):
        raise ValueError(f"--preset={args.preset} is not a network that diffusers has; give one of ddpm-*")
    plan = start(args)
    net, device = build(config), torch.device(args.device)
    calls = candidates(net, args.num, args.steps, device, args.precision, args.compile)
    print(f"largest difference of the images: {difference(calls):.1e}\n")
    title = f"{args.num} images in {args.steps} steps, {args.precision}"
    print(measure(calls, plan).table(title, args.num))


def digits() -> UNetConfig:
    """The network of configs/digits.yaml, without classes."""
    run = parse(RUNS, ["--config", str(ROOT / "configs" / "digits.yaml")]).run
    assert isinstance(run, DiffusionRun)
    assert isinstance(run.model, UNetConfig)
    return replace(run.model, in_channels=1, out_channels=1, size=(8, 8))


def candidates(
    net: UNet, num: int, steps: int, device: torch.device, precision: str, compiled: bool = False
) -> dict[str, Call]:
    """Calls that draw images 0 to `num` - 1 of seed 0: by ours, twice, and by the pipeline in both layouts; `Products`.

    The tensors that they return are in [-1, 1] for ours, and an array (n, h, w, c) in [0, 1] for the pipeline.
    """
    from diffusers import DDIMPipeline, DDIMScheduler

    formulation, (_, settings) = DDPM(), SCHEDULERS["ddim"]
    calls: dict[str, Call] = {}

    def ours(net: UNet, compile: bool = False) -> Call:
        place(net, device, precision)
        if compile:
            compile_for_drawing(net, device)
        model = DiffusionModel(net.eval(), formulation)
        return lambda: model.draw(range(num), None, steps=steps, device=device)

    def theirs(net: Any, layout: torch.memory_format) -> Call:
        scheduler = DDIMScheduler.from_config(formulation.scheduler_config(), **settings)
        pipeline = DDIMPipeline(net.to(device, memory_format=layout).eval(), scheduler)
        pipeline.set_progress_bar_config(disable=True)

        def call() -> Any:
            with autocast(device, precision == "bf16"):  # it cannot return images of a network with weights in bf16
                return pipeline(
                    num, generators(0, range(num)), num_inference_steps=steps, output_type="np", return_dict=False
                )[0]

        return call

    calls["ours"] = ours(net)
    calls[CONTROL] = ours(build(net.config, net.state_dict()))
    if compiled:
        calls["ours compiled"] = ours(build(net.config, net.state_dict()), compile=True)
    calls["DDIMPipeline"] = theirs(build_theirs(net), torch.contiguous_format)
    calls["DDIMPipeline, channels last"] = theirs(build_theirs(net), torch.channels_last)
    products = Products(net.config, num, device, torch.bfloat16 if precision == "bf16" else torch.float32, False)

    def of_all_steps() -> None:
        for _ in range(steps):
            products()

    calls[PRODUCTS] = of_all_steps
    return calls


def difference(calls: dict[str, Call]) -> float:
    """The largest difference between the images of ours and of the pipeline, whose range is 2."""
    ours: Any = calls["ours"]()
    theirs: Any = calls["DDIMPipeline"]()
    return float((ours.float().cpu() - (2 * torch.from_numpy(theirs).permute(0, 3, 1, 2) - 1)).abs().max())


if __name__ == "__main__":
    main()
