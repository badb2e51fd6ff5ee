"""Whole processes: train.py against diffusers' `train_unconditional.py` with the same network, images and batch.

    python -m benchmarks.train_vs_script --script PATH/train_unconditional.py --rounds 3

The script is in diffusers' repository, not in its package (examples/unconditional_image_generation). Without it the
peer is `benchmarks.plain_loop --unet2d`: the same recipe, always in bf16, without its logging. Each process trains for
two lengths; the difference of the times, divided by that of the updates, is the time of an update. Start, the first
updates, sampling and saving cancel. The images are random PNG files; dropout is that of the network.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import unet
from benchmarks.paired import CONTROL, Plan, Timings, add_options, orders, start
from training.script import ScriptParser, command
from unet import UNetConfig

ROOT = Path(__file__).parents[1]
SHORT, LONG = 2, 6
"""epochs of the two lengths; both runs of diffusers' script draw images twice"""
Command = Callable[[int, Path], list[str]]
"""the arguments of Python for a run of so many epochs that writes into a folder"""


@command
def main(argv: Sequence[str]) -> None:
    """Compares and prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path, help="diffusers' train_unconditional.py")
    parser.add_argument("--preset", choices=unet.list_presets(), default="ddpm-cifar10", help="network")
    parser.add_argument("--batch", type=int, default=16, help="images per update")
    parser.add_argument("--updates", type=int, default=3, help="updates of an epoch")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="bf16", help="of train.py and script")
    add_options(parser, rounds=3)
    args = parser.parse_args(argv)
    config = unet.preset(args.preset)
    if not isinstance(config, UNetConfig):
        raise ValueError(f"--preset={args.preset} is not a network that diffusers has; give one of ddpm-*")
    if args.script is not None and not args.script.is_file():
        raise ValueError(f"--script={args.script} is no file; give diffusers' train_unconditional.py")
    if min(args.batch, args.updates) < 1:
        raise ValueError(f"--batch={args.batch} and --updates={args.updates} must be at least 1")
    plan = start(args)
    peer = ("train_unconditional.py", script) if args.script else ("plain_loop --unet2d, always bf16", plain_loop)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_inputs(work, config, args.batch * args.updates)
        commands = {"train.py": ours, CONTROL: ours, peer[0]: peer[1]}
        timings = measure(
            {name: partial(command, args, work) for name, command in commands.items()}, plan, args.updates, args.threads
        )
    print(timings.table(f"{args.preset}, an update of {args.batch}, whole processes, {args.precision}", args.batch))


def make_inputs(work: Path, config: UNetConfig, count: int) -> None:
    """Writes the images as PNG files, the network's config for diffusers, and that of the run for train.py."""
    (work / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (*config.size, 3), np.uint8)
        Image.fromarray(pixels).save(work / "images" / f"{number}.png")
    document = {"_class_name": "UNet2DModel", **unet.diffusers_config(config)}
    (work / "config.json").write_text(json.dumps(document), encoding="utf-8")


def ours(args: argparse.Namespace, work: Path, epochs: int, out: Path) -> list[str]:
    """train.py with the settings of diffusers' script, where they take time."""
    settings = {
        "run": out,
        "data.source": work / "images",
        "data.cache": work / "cache",
        "data.labels": "false",
        "model.preset": args.preset,
        "train.images": epochs * args.updates * args.batch,
        "train.batch": args.batch,
        "train.precision": args.precision,
        "train.log_every_images": args.batch,
        "optimizer.max_grad_norm": 1.0,
        "sample.num": 0,
    }
    return ["train.py", *flags(settings)]


def script(args: argparse.Namespace, work: Path, epochs: int, out: Path) -> list[str]:
    """diffusers' script; it draws and saves as little as it can."""
    settings = {
        "output_dir": out,
        "train_data_dir": work / "images",
        "model_config_name_or_path": work / "config.json",
        "cache_dir": work / "datasets",
        "resolution": unet.preset(args.preset).size[0],
        "train_batch_size": args.batch,
        "num_epochs": epochs,
        "mixed_precision": "bf16" if args.precision == "bf16" else "no",
        "eval_batch_size": 1,
        "ddpm_num_inference_steps": 1,
        "save_images_epochs": 1000,
        "save_model_epochs": 1000,
    }
    return [str(args.script.resolve()), "--use_ema", *flags(settings)]


def plain_loop(args: argparse.Namespace, work: Path, epochs: int, out: Path) -> list[str]:
    """The loop of `benchmarks.plain_loop` around diffusers' network."""
    config = work / "config.yaml"
    config.write_text(f"task: diffusion\nmodel: {{preset: {args.preset}}}\n", encoding="utf-8")
    settings = {
        "out": out,
        "config": config,
        "batch": args.batch,
        "images": epochs * args.updates * args.batch,
        "data.source": work / "images",
        "data.cache": work / "cache",
        "data.labels": "false",
    }
    return ["-m", "benchmarks.plain_loop", "--unet2d", *flags(settings)]


def flags(settings: Mapping[str, object]) -> list[str]:
    """Settings as flags of a command line."""
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def measure(calls: Mapping[str, Command], plan: Plan, updates: int, threads: int) -> Timings:
    """Seconds of an update of each candidate in each round. A first run of each fills the caches and is not counted."""
    for call in calls.values():
        seconds_of(call, SHORT, plan, threads)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for order in orders(list(calls), plan.rounds):
        for name in order:
            short, long = (seconds_of(calls[name], epochs, plan, threads) for epochs in (SHORT, LONG))
            times[name].append((long - short) / ((LONG - SHORT) * updates))
    return Timings({name: np.array(column) for name, column in times.items()}, plan.load)


def seconds_of(call: Command, epochs: int, plan: Plan, threads: int) -> float:
    """Seconds of a whole process. Raises ValueError with the last line of its output if it fails."""
    clock = children_time if plan.clock is time.process_time else plan.clock
    with tempfile.TemporaryDirectory() as folder:
        arguments, began = call(epochs, Path(folder) / "out"), clock()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
        seconds = clock() - began
    if done.returncode:
        raise ValueError(f"{arguments[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return seconds


def children_time() -> float:
    """Seconds of the CPU that ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
