"""Draw images with a trained diffusion model.

python sample.py RUN_OR_MODEL --num 64 --label 3 --out DIR
torchrun --nproc_per_node 4 -- sample.py RUN_OR_MODEL --num 50000 --out DIR
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from diffusion import SAMPLERS
from diffusion.sampler import late_start
from pipelines.diffusion import DiffusionModel, load_model
from pipelines.grid import draw_grid, save_animation
from pipelines.pictures import check_savable, hidden_note, save_image, to_uint8
from training.processes import leave_processes, process_state
from training.script import ScriptParser, command

MOST_IN_GRID = 256
MOST_FRAMES = 40
MOST_FILES = 10_000_000

Shown = tuple[int, np.ndarray, list[np.ndarray]]
"""number of an image, its pixels (h, w, c), and those of the frames before it"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = argparse.ArgumentDefaultsHelpFormatter
    p = ScriptParser(prog="sample.py", description=__doc__.splitlines()[0], formatter_class=text, allow_abbrev=False)
    p.add_argument(
        "model", metavar="RUN_OR_MODEL", help="a run folder of train.py (its averaged model), or a model folder"
    )
    p.add_argument("--num", type=int, default=64, help="how many images")
    p.add_argument(
        "--steps",
        type=int,
        default=50,
        help="steps of the sampler, up to the timesteps of the model (heun calls the network twice in each)",
    )
    p.add_argument("--sampler", default="ddim", help=f"one of: {', '.join(SAMPLERS)}")
    p.add_argument("--eta", type=float, default=0.0, help="noise that ddim adds, from 0 (none) to 1 (as much as ddpm)")
    p.add_argument(
        "--label",
        default="all",
        help="a class, by name or number; all: each in turn, image k of class k modulo their number; none: no label",
    )
    p.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="strength of the label: 0 none, 1 as learned, more exaggerates it (and takes twice the time)",
    )
    p.add_argument("--seed", type=int, default=0, help="image k of a seed is the same for every --num and --batch")
    p.add_argument("--batch", type=int, default=64, help="images per forward pass, on each process")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("samples"),
        metavar="DIR",
        help="where 000000.png … are written (.npy where arrays were trained on)",
    )
    p.add_argument(
        "--grid",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also write grid.png, with the names of the classes (of the first {MOST_IN_GRID} images)",
    )
    p.add_argument("--animation", action="store_true", help="also write animation.gif, the grid as it is denoised")
    p.add_argument("--device", default="auto", help="such as cpu, cuda, mps; auto: the best there is")
    return p


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, draws, writes."""
    args = parser().parse_args(argv)
    model = load_model(args.model)
    labels = _check(args, model)
    device = _device(args.device)
    state = process_state()
    if state.is_main_process:
        seen = "" if model.images_seen is None else f" at {model.images_seen:,} images seen"
        print(f"model: {args.model}{seen}; {args.num} images, {args.sampler}, {args.steps} steps, seed {args.seed}")
        if warning := late_start(args.sampler, args.steps, model.schedule):
            print(f"note: {warning}")
    model.net.to(device)
    args.out.mkdir(parents=True, exist_ok=True)

    shown = min(args.num, MOST_IN_GRID) if args.grid or args.animation else 0
    kept: list[Shown] = []
    mine = range(state.process_index, args.num, state.num_processes)
    for image, x, frames in _draw(args, model, labels, mine, shown, device, quiet=not state.is_main_process):
        save_image(x, model.pixels, args.out / f"{image:06d}.{model.pixels.file}")
        if image < shown:
            kept.append((image, to_uint8(x[None])[0], frames))
    gathered = sorted(gather_object(kept), key=lambda drawn: drawn[0])
    if state.is_main_process:
        _write(args, model, labels, gathered)
    leave_processes()


def _check(args: argparse.Namespace, model: DiffusionModel) -> list[int] | None:
    """The label of each image. Raises ValueError for whatever cannot be drawn."""
    for name in ("num", "batch"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}={getattr(args, name)} makes no image; give at least 1")
    if args.num > MOST_FILES:
        raise ValueError(
            f"num={args.num} is more than {MOST_FILES} files; draw them in parts, each with its own --seed"
        )
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"out={str(args.out)!r} is a file; give a folder")
    check_savable(model.shape[0], model.pixels)
    model.check(sampler=args.sampler, steps=args.steps, eta=args.eta, guidance=args.guidance)
    if args.label == "all" and "all" not in (model.classes or ()):
        return model.cycle(range(args.num))
    label = model.label(args.label)
    if args.guidance != 1 and label == model.null:
        raise ValueError(f"guidance={args.guidance:g} strengthens a label, but label is none; leave one of them out")
    return [label] * args.num


def _device(name: str) -> torch.device:
    """The device of this process. Raises ValueError if torch does not know it, or it is not there."""
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
    args: argparse.Namespace,
    model: DiffusionModel,
    labels: list[int] | None,
    images: range,
    shown: int,
    device: torch.device,
    quiet: bool,
) -> Iterator[tuple[int, Tensor, list[np.ndarray]]]:
    """This process's images (number, in [-1, 1]), batch by batch, with the frames of those that are shown."""
    wanted = set(np.linspace(0, args.steps, min(MOST_FRAMES, args.steps + 1)).round().astype(int).tolist())
    wanted = wanted if args.animation else set()
    batches = [images[start : start + args.batch] for start in range(0, len(images), args.batch)]
    with tqdm(total=len(batches) * args.steps, unit="step", disable=quiet) as bar:
        for batch in batches:
            frames: list[np.ndarray] = []
            chain = model.denoising(
                batch,
                None if labels is None else [labels[k] for k in batch],
                seed=args.seed,
                guidance=args.guidance,
                device=device,
                sampler=args.sampler,
                steps=args.steps,
                eta=args.eta,
            )
            for step, x in enumerate(chain):
                bar.update(step > 0)
                if step in wanted and batch[0] < shown:
                    frames.append(to_uint8(x))
            for i, (image, drawn) in enumerate(zip(batch, x.cpu(), strict=True)):
                yield image, drawn, [frame[i] for frame in frames]


def _write(args: argparse.Namespace, model: DiffusionModel, labels: list[int] | None, drawn: list[Shown]) -> None:
    """The pictures that show many images, and what was written where."""
    suffix = model.pixels.file
    print(f"images: {args.out / f'000000.{suffix}'} … {args.out / f'{args.num - 1:06d}.{suffix}'}")
    stale = sum(path.stem.isdecimal() and int(path.stem) >= args.num for path in args.out.glob(f"[0-9]*.{suffix}"))
    if stale:
        print(f"note: {args.out} also holds {stale} images that are not of this command")
    if drawn and (note := hidden_note(model.shape[0])):
        print(f"note: {note}")
    shown_names = model.names(None if labels is None else labels[: len(drawn)])
    if args.animation:
        stacked = [np.stack(frame) for frame in zip(*(frames for _, _, frames in drawn), strict=True)]
        save_animation([draw_grid(frame, shown_names) for frame in stacked], args.out / "animation.gif")
        print(f"animation: {args.out / 'animation.gif'}")
    if args.grid:
        draw_grid(np.stack([pixels for _, pixels, _ in drawn]), shown_names).save(args.out / "grid.png")
        print(f"grid: {args.out / 'grid.png'}")


if __name__ == "__main__":
    main()
