"""Draw images with a trained diffusion model.

python sample.py RUN_OR_MODEL --num 64 --label 3 --out DIR
torchrun --nproc_per_node 4 -- sample.py RUN_OR_MODEL --num 50000 --out DIR
"""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffusion import SAMPLERS, late_start
from diffusion.guidance import ALL_LEVELS
from pictures.files import check_savable, hidden_note, save_image, to_uint8
from pictures.grid import draw_grid, save_animation
from pipelines.diffusion import DiffusionModel, gather_drawn, load_model
from training.processes import leave_processes, process_state
from training.script import ScriptParser, command

MAX_IN_GRID = 256
MAX_FRAMES = 40
MAX_FILES = 10_000_000
ALL = "all"
"""label for the classes in turn, unless a class has this name"""

Labels = Callable[[Sequence[int]], list[int] | None]
"""gives the labels of image numbers"""
Drawn = tuple[np.ndarray, list[np.ndarray]]
"""pixels of an image (h, w, c), and those of the frames before it"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = argparse.ArgumentDefaultsHelpFormatter
    p = ScriptParser(prog="sample.py", description=__doc__.splitlines()[0], formatter_class=text, allow_abbrev=False)
    p.add_argument("model", metavar="RUN_OR_MODEL", help="run folder of train.py (its averaged model), or model folder")
    p.add_argument("--num", type=int, default=64, help="number of images")
    p.add_argument(
        "--steps",
        type=int,
        default=50,
        help="steps of the sampler, at most the timesteps of the model (heun evaluates the network twice per step)",
    )
    p.add_argument("--sampler", help=f"one of: {', '.join(SAMPLERS)}; without it ddim for ddpm models, heun for others")
    p.add_argument("--eta", type=float, default=0.0, help="noise that ddim adds, from 0 (none) to 1 (as much as ddpm)")
    p.add_argument("--churn", type=float, default=0.0, help="noise that heun adds and removes again: S_churn of EDM")
    p.add_argument(
        "--label",
        help="a class, by its name, or by its number if no name is a number; all: the classes in turn, as by default; "
        "none: no label. A class that is called all or none comes first",
    )
    p.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="strength of the label: 0 none, 1 as trained, above 1 stronger (and twice the time)",
    )
    p.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        default=list(ALL_LEVELS),
        metavar=("LOW", "HIGH"),
        help="noise levels (sigma / alpha) within which guidance acts",
    )
    p.add_argument("--seed", type=int, default=0, help="image k of a seed is the same for every --num and --batch")
    p.add_argument("--batch", type=int, default=64, help="images per forward pass, on each process")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("samples"),
        metavar="DIR",
        help="folder for 000000.png … (.npy for models trained on arrays)",
    )
    p.add_argument(
        "--grid",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also write grid.png: the first {MAX_IN_GRID} images with the names of their classes",
    )
    p.add_argument("--animation", action="store_true", help="also write animation.gif, the grid as it is denoised")
    p.add_argument("--device", default="auto", help="cpu, cuda, mps, …; auto: the fastest available")
    return p


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, draws, writes."""
    args = parser().parse_args(argv)
    model = load_model(args.model)
    args.sampler = model.default_sampler if args.sampler is None else args.sampler
    labels = _check(args, model)
    device = _device(args.device)
    state = process_state()
    if state.is_main_process:
        seen = "" if model.images_seen is None else f" at {model.images_seen:,} images seen"
        print(f"model: {args.model}{seen}; {args.num} images, {args.sampler}, {args.steps} steps, seed {args.seed}")
        if warning := late_start(args.sampler, model.formulation, args.steps):
            print(f"note: {warning}")
    model.net.to(device)
    args.out.mkdir(parents=True, exist_ok=True)

    shown = gather_drawn(_draw(args, model, labels, device), args.num)
    if state.is_main_process:
        _write(args, model, labels, shown)
    leave_processes()


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `DiffusionModel.denoising` that stand in the command line."""
    names = ("sampler", "steps", "eta", "churn", "guidance")
    return {name: getattr(args, name) for name in names} | {"guidance_interval": tuple(args.guidance_interval)}


def _check(args: argparse.Namespace, model: DiffusionModel) -> Labels:
    """The labels of image numbers. Raises ValueError for options that do not suit the model."""
    for name in ("num", "batch"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}={getattr(args, name)} draws no image; give at least 1")
    if args.num > MAX_FILES:
        raise ValueError(f"num={args.num} is more than {MAX_FILES} files; draw them in parts, each with its own --seed")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"out={str(args.out)!r} is a file; give a folder")
    check_savable(model.shape[0], model.pixel_format)
    model.check(**_options(args))
    if args.label is None or (args.label == ALL and ALL not in (model.classes or ())):
        return model.cycle
    label = model.label(args.label)
    if args.guidance != 1 and label == model.null:
        raise ValueError(f"guidance={args.guidance:g} strengthens a label, but label is none; leave one of them out")
    return lambda numbers: [label] * len(numbers)


def _device(name: str) -> torch.device:
    """The device of this process. Raises ValueError if torch does not know it or cannot use it."""
    if name == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    state = process_state()
    if name == "auto" or state.num_processes > 1:
        return state.device
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r} cannot be used: {str(error).splitlines()[0]}") from None


def _draw(
    args: argparse.Namespace, model: DiffusionModel, labels: Labels, device: torch.device
) -> list[tuple[int, Drawn]]:
    """Draws and writes this process's images. Returns those that the grid and the animation show, by number."""
    state = process_state()
    shown = min(args.num, MAX_IN_GRID) if args.grid or args.animation else 0
    frame_steps = np.linspace(0, args.steps, min(MAX_FRAMES, args.steps + 1)).round().astype(int)
    wanted = set(frame_steps.tolist()) if args.animation else set()
    kept: list[tuple[int, Drawn]] = []
    frames: list[np.ndarray] = []
    batches = math.ceil(math.ceil(args.num / state.num_processes) / args.batch)
    share = model.draw_share(
        args.num,
        labels,
        batch=args.batch,
        rank=state.process_index,
        ranks=state.num_processes,
        seed=args.seed,
        device=device,
        **_options(args),
    )
    with tqdm(total=batches * args.steps, unit="step", disable=None if state.is_main_process else True) as bar:
        for numbers, step, x in share:
            bar.update(step > 0)
            frames = frames if step > 0 else []
            if step in wanted and numbers[0] < shown:
                frames.append(to_uint8(x))
            if step < args.steps:
                continue
            for i, number in enumerate(numbers):
                if number < args.num:
                    save_image(x[i].cpu(), model.pixel_format, args.out / f"{number:06d}.{model.pixel_format.file}")
                if number < shown:
                    kept.append((number, (to_uint8(x[i : i + 1])[0], [frame[i] for frame in frames])))
    return kept


def _write(args: argparse.Namespace, model: DiffusionModel, labels: Labels, shown: list[Drawn]) -> None:
    """Writes the pictures that show many images, and prints where everything is."""
    suffix = model.pixel_format.file
    print(f"images: {args.out / f'000000.{suffix}'} … {args.out / f'{args.num - 1:06d}.{suffix}'}")
    stale = sum(path.stem.isdecimal() and int(path.stem) >= args.num for path in args.out.glob(f"[0-9]*.{suffix}"))
    if stale:
        print(f"note: {args.out} also holds {stale} images that this command did not write")
    if shown and (note := hidden_note(model.shape[0])):
        print(f"note: {note}")
    names = model.names(labels(range(len(shown))))
    if args.animation:
        stacked = [np.stack(frame) for frame in zip(*(frames for _, frames in shown), strict=True)]
        save_animation([draw_grid(frame, names) for frame in stacked], args.out / "animation.gif")
        print(f"animation: {args.out / 'animation.gif'}")
    if args.grid:
        draw_grid(np.stack([pixels for pixels, _ in shown]), names).save(args.out / "grid.png")
        print(f"grid: {args.out / 'grid.png'}")


if __name__ == "__main__":
    main()
