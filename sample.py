"""Draw images with a trained diffusion model.

python sample.py RUN_OR_MODEL --num 64 --label 3
torchrun --nproc_per_node 4 -- sample.py RUN_OR_MODEL --num 50000 --npz --out DIR
"""

import argparse
import csv
import math
import os
import sys
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffusion import SAMPLERS, late_start
from diffusion.guidance import ALL_LEVELS
from diffusion.sampler import steps_made
from pictures.files import are_pictures, check_savable, picture_bytes, read_image, save_image
from pictures.grid import draw_samples, hidden_note, save_animation, value_ranges
from pipelines.diffusion import DiffusionModel, gather_drawn, load_model, require_finite
from residual.names import amount
from storage.show import printable
from storage.write import expand_home, remove
from training.averages import OPTION, RunAverages, load_average
from training.compile import compile_for_drawing, explain_compile_error, require_compiler
from training.data import DataConfig, Images, open_images
from training.disk_space import is_full, require_disk_space
from training.log import print_line
from training.memory import free_bytes, is_out_of_memory
from training.output_folder import OutputFolder, default_folder, weights_sha256
from training.precision import PRECISIONS, choose_precision, place
from training.processes import leave_processes, on_main, process_state
from training.report import activation_bytes
from training.script import VERSION, ScriptParser, command

MAX_IN_GRID = 256
MAX_FRAMES = 40
BATCH, BATCH_OF_CPU = 512, 64
"""images per forward pass where memory allows; more are not faster"""
MAX_OF_SEED = 1_000_000
"""images; more would be those of the next seed (see `image_seed`)"""
ALL = "all"
"""label for the classes in turn, unless a class has this name"""
LINE_EVERY_SECONDS = 30.0
"""where there is no terminal for a progress bar"""
MAX_TEXT = 200
"""characters of a name in the metadata of a picture"""
FORMULA = ("=", "+", "-", "@")
"""first characters of what a spreadsheet calculates"""
NOTABLE = 0.01
"""share of clipped values that is reported"""
COMPILE_OPTION = "compile=True", "leave it out"
"""the option that asks for compilation, and what to do without it"""
STRENGTH = 0.5
RECORD = "samples.json"
OPTIONAL = ("eta", "churn", "ema", "guidance_rescale", "guide", "guide_ema", "strength")
"""options that the metadata of a picture names only where they are given"""
NAMES = ("images", "labels.csv", "grid.png", "animation.gif", "samples.npz")

Labels = Callable[[Sequence[int]], list[int] | None]
"""gives the labels of image numbers"""
Frames = list[tuple[int, list[np.ndarray]]]
"""values (c, h, w) of an image at several steps, by its number"""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of an option to its help, if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    about = __doc__.splitlines()[0]
    p = ScriptParser(prog="sample.py", description=about, formatter_class=HelpFormatter, allow_abbrev=False)
    p.add_argument("model", metavar="RUN_OR_MODEL", help="run folder of train.py (its averaged model), or model folder")
    p.add_argument("--ema", type=float, metavar="WIDTH|IMAGES", help=OPTION)
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
    p.add_argument(
        "--guidance-rescale",
        type=float,
        default=0.0,
        help="share of a guided image whose contrast is set to that without guidance, from 0 to 1",
    )
    p.add_argument(
        "--guide",
        metavar="RUN_OR_MODEL",
        help="a worse model of the same images, such as a smaller or less trained one: --guidance moves away from it, "
        "not from the images without a label (autoguidance)",
    )
    p.add_argument(
        "--from",
        dest="origin",
        metavar="IMAGES",
        help="change images instead of drawing new ones: a folder, file or table of them; image k starts at picture k, "
        "and after the last picture at the first one again. They are scaled and cropped to the size of the model",
    )
    p.add_argument(
        "--strength",
        type=float,
        default=None,
        help="share of the steps with which --from changes the images, above 0 (hardly) to 1 (nearly new images); "
        f"without it {STRENGTH:g}",
    )
    p.add_argument("--guide-ema", type=float, metavar="WIDTH|IMAGES", help="that average of the run in --guide")
    p.add_argument("--seed", type=int, default=0, help="image k of a seed is the same for every --num and --batch")
    p.add_argument(
        "--batch",
        type=int,
        help=f"images per forward pass, on each process; without it {BATCH_OF_CPU} on a CPU, {BATCH} on other devices, "
        "or as many as fit into free memory. Halved while it does not fit",
    )
    p.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the network; bf16 is faster on most hardware that has it, but rounds images otherwise on each device; "
        "auto: bf16 if the hardware has it",
    )
    p.add_argument(
        "--compile",
        action="store_true",
        help="compile the network before it draws, which takes half a minute and more; then it draws faster",
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for images/000000.png … (.npy for models trained on arrays); replaced as a whole if it holds an "
        "earlier output with this model; without it drawn in the folder of the run or model",
    )
    p.add_argument(
        "--grid",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also write grid.png: the first {MAX_IN_GRID} images with the names of their classes",
    )
    p.add_argument("--animation", action="store_true", help="also write animation.gif, the grid as it is denoised")
    p.add_argument(
        "--npz",
        action="store_true",
        help="also write samples.npz for evaluators: arr_0, RGB of 8 bits (n, h, w, 3), and arr_1, the labels",
    )
    p.add_argument("--device", default="auto", help="cpu, cuda, mps, …; auto: the fastest available")
    return p


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, draws, writes."""
    args = parser().parse_args(argv)
    args.out = default_folder(args.model, "drawn") if args.out is None else expand_home("out", args.out)
    average = None if args.ema is None else RunAverages(args.model).choose(args.ema)
    model = load_average(load_model, args.model, average)
    if args.guide is not None:
        worse = None if args.guide_ema is None else RunAverages(args.guide).choose(args.guide_ema)
        model = model.guided_by(load_average(load_model, args.guide, worse))
    elif args.guide_ema is not None:
        raise ValueError(f"guide_ema={args.guide_ema:g} is an average of the guide; give --guide, too")
    out = OutputFolder(args.out, args.model, RECORD, NAMES)
    out.check()
    args.sampler = model.default_sampler if args.sampler is None else args.sampler
    labels = _check(args, model)
    device = _device(args.device)
    args.precision, _ = choose_precision(args.precision, device, "precision")
    lines = require_compiler(*COMPILE_OPTION, device) if args.compile else []
    origin = _open_origin(args, model)
    facts = _facts(args, model, out, device) | {"from_sha256": None if origin is None else origin.fingerprint}
    args.batch = _batch(model, device, args.guidance) if args.batch is None else args.batch
    for net in (model.net,) if model.guide is None else (model.net, model.guide):
        lines += place(net, device, args.precision, args.compile)
        if args.compile:
            compile_for_drawing(net, device)
    if process_state().is_main_process:
        seen = "" if model.images_seen is None else f" at {model.images_seen:,} images seen"
        options = f"{amount(args.num, 'image')}, {args.sampler}, {amount(args.steps, 'step')}, seed {args.seed}"
        print_line(f"model: {args.model}{seen}{f', {average.about}' if average else ''}; {options}")
        if origin is not None:
            print_line(f"from: {origin}; {amount(steps_made(args.steps, args.strength), 'step')} change them")
        elif warning := late_start(args.sampler, model.formulation, args.steps):
            print_line(f"note: {warning}")
        for line in dict.fromkeys(lines):
            print_line(line)

    with _kept(args, model, out), explain_compile_error(*COMPILE_OPTION):
        on_main(lambda: _begin(args, model, out, facts))
        frames = gather_drawn(_draw(args, model, labels, device, out, origin), args.num)
        if process_state().is_main_process:
            _write(args, model, labels, frames, out, facts)
    leave_processes()


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `DiffusionModel.denoising` that stand in the command line."""
    names = ("sampler", "steps", "eta", "churn", "guidance", "guidance_rescale")
    return {name: getattr(args, name) for name in names} | {"guidance_interval": tuple(args.guidance_interval)}


def _check(args: argparse.Namespace, model: DiffusionModel) -> Labels:
    """The labels of image numbers. Raises ValueError for options that do not suit the model."""
    for name in ("num", "batch"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"{name}={value} draws no image; give at least 1")
    if args.num > MAX_OF_SEED:
        raise ValueError(f"num={args.num} is more than {MAX_OF_SEED}; draw them in parts, each with its own --seed")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"seed={args.seed} is out of range; give 0 or more, below 2^32")
    check_savable(model.shape[0], model.pixel_format)
    if args.npz and not are_pictures(model.shape[0], model.pixel_format):
        raise ValueError("npz is for evaluators of pictures, but this model draws arrays; read the .npy files instead")
    model.check(**_options(args))
    if args.label is None or (args.label == ALL and ALL not in (model.classes or ())):
        return model.cycle
    label = model.label(args.label)
    if args.guidance != 1 and label == model.null and model.guide is None:
        raise ValueError(f"guidance={args.guidance:g} strengthens a label, but label is none; leave one of them out")
    return lambda numbers: [label] * len(numbers)


def _facts(args: argparse.Namespace, model: DiffusionModel, out: OutputFolder, device: torch.device) -> dict[str, Any]:
    """What determines the images, for samples.json."""
    interval = None if tuple(args.guidance_interval) == ALL_LEVELS else list(args.guidance_interval)
    names = ("num", "seed", "label", "sampler", "steps", "eta", "churn", "guidance", "guidance_rescale", "guide_ema")
    return {
        "written_by": f"sample.py of {VERSION}",
        "model": printable(str(args.model)),
        "model_folder": out.model,
        "images_seen": model.images_seen,
        "ema": args.ema,
        "weights_sha256": weights_sha256(model.net),
        **{name: getattr(args, name) for name in names},
        "guidance_interval": interval,
        "from": None if args.origin is None else printable(str(args.origin)),
        "strength": args.strength,
        "guide": None if args.guide is None else printable(str(args.guide)),
        "guide_sha256": None if model.guide is None else weights_sha256(model.guide),
        "classes": None if model.classes is None else len(model.classes),
        "shape": list(model.shape),
        "pixel_format": asdict(model.pixel_format),
        "device": device.type,
        "precision": args.precision,
        "compile": args.compile,
    }


def _open_origin(args: argparse.Namespace, model: DiffusionModel) -> Images | None:
    """The images of --from in the format of the model; None without it. Raises ValueError if they do not fit."""
    if args.origin is None:
        if args.strength is not None:
            raise ValueError(f"strength={args.strength:g} is that of images to change; give --from, too")
        return None
    args.strength = STRENGTH if args.strength is None else args.strength
    if not 0 < args.strength <= 1:
        raise ValueError(f"strength={args.strength:g} is out of range; give a share of the steps above 0, at most 1")
    kept, (channels, *size) = model.pixel_format, model.shape
    as_trained: dict[str, Any] = {"channels": channels, "labels": False, "bits": 16 if kept.dtype == "uint16" else 8}
    if kept.file == "npy":
        as_trained |= {"range": (kept.low, kept.high), "bits": 8}
    config = DataConfig(source=str(args.origin), size=(size[0], size[1]), **as_trained)
    try:
        images = open_images(config, on_main=on_main)
    except ValueError as error:
        raise ValueError(f"from {str(args.origin)!r}: {error}") from None
    assert isinstance(images, Images), "they are not streamed"
    if images.shape != model.shape:
        raise ValueError(
            f"from {str(args.origin)!r}: images of shape {images.shape}, but the model's are {model.shape}"
        )
    return images


def _batch(model: DiffusionModel, device: torch.device, guidance: float) -> int:
    """Images per forward pass where none are given: as many as certainly fit into free memory, up to a limit.

    The activations that training would store are more than a forward pass needs.
    """
    most = BATCH_OF_CPU if device.type == "cpu" else BATCH
    if (free := free_bytes(device)) is None:
        return most
    inputs = torch.zeros(1, *model.shape), torch.zeros(1), *([] if model.classes is None else [torch.zeros(1).long()])
    needed = max(1, activation_bytes(model.net, *inputs))
    return max(1, min(most, free // (needed if guidance == 1 else 2 * needed)))


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


def _begin(args: argparse.Namespace, model: DiffusionModel, out: OutputFolder, facts: Mapping[str, Any]) -> None:
    """Prepares the staging folder, in which the finished images of an interrupted command of this kind stay."""
    folder = out.begin(facts, keep=("images",), may_differ=("num", "device")) / "images"
    folder.mkdir(exist_ok=True)
    wanted = {_file(model, number) for number in range(args.num)} if any(folder.iterdir()) else set()
    for path in folder.iterdir():
        if path.name not in wanted or not _finished(path, model):
            remove(path)
    if left := sum(1 for _ in folder.iterdir()):
        print_line(f"continuing: {left:,} of {args.num:,} images are already in {folder}")
    if model.pixel_format.file == "npy":
        needed = math.prod(model.shape) * np.dtype(model.pixel_format.dtype).itemsize * (args.num - left)
        require_disk_space(folder, needed, amount(args.num - left, "image"))


def _file(model: DiffusionModel, number: int) -> str:
    return f"{number:06d}.{model.pixel_format.file}"


def _finished(path: Path, model: DiffusionModel) -> bool:
    """Whether a file holds a whole image of the model."""
    try:
        return not path.is_symlink() and read_image(path).shape == model.shape
    except (ValueError, OSError):
        return False


@contextmanager
def _kept(args: argparse.Namespace, model: DiffusionModel, out: OutputFolder) -> Iterator[None]:
    """Turns errors of drawing and writing into one line, and reports the finished images that stay."""
    try:
        yield
    except BaseException as error:
        count = sum(1 for _ in (out.staging / "images").glob(f"[0-9]*.{model.pixel_format.file}"))
        out.leave(discard=count == 0)
        kept = f"{count:,} of {args.num:,} images are kept in {str(out.staging)!r}; the same command goes on with them"
        kept = kept if count else "nothing was written"
        if is_out_of_memory(error):
            raise ValueError(
                f"batch={args.batch}, halved to 1 image, needs more memory than there is; use a larger machine; {kept}"
            ) from None
        if is_full(error):
            raise ValueError(f"the disk of {str(args.out)!r} is full, free some space; {kept}") from None
        if isinstance(error, KeyboardInterrupt) and process_state().is_main_process:
            print(printable(kept), file=sys.stderr)
        raise


def _draw(
    args: argparse.Namespace,
    model: DiffusionModel,
    labels: Labels,
    device: torch.device,
    out: OutputFolder,
    origin: Images | None,
) -> Frames:
    """Draws and writes this process's images, without those that are finished. Returns the frames of an animation.

    The batches do not depend on what is finished, so that an interrupted command ends with the same bits. With an
    animation, the images in it are drawn again. A batch is written while the next one is drawn. If one does not fit
    into memory, it and all further ones are halved. For a compiled network, which has code for one size, the last batch
    is filled up.
    """
    state, folder = process_state(), out.staging / "images"
    shown = min(args.num, MAX_IN_GRID) if args.animation else 0
    steps = args.steps if origin is None else steps_made(args.steps, args.strength)
    wanted = set(np.linspace(0, steps, min(MAX_FRAMES, steps + 1)).round().astype(int).tolist())
    share = range(state.process_index, args.num, state.num_processes)
    names = set(os.listdir(folder))
    split = [share[start : start + args.batch] for start in range(0, len(share), args.batch)]
    left = deque(batch for batch in split if batch[0] < shown or any(_file(model, k) not in names for k in batch))
    size = len(split[0]) if split else 0
    drawn, printed = list[tuple[int, list[np.ndarray]]](), time.monotonic()
    done, count = 0, sum(map(len, left))
    options: dict[str, Any] = {"seed": args.seed, "device": device, **_options(args)}
    if origin is not None:
        options["strength"] = args.strength

    def save(numbers: Sequence[int], images: torch.Tensor) -> None:
        for number, image in zip(numbers, images, strict=True):
            text = _text(args, model, number, labels([number]))
            save_image(image, model.pixel_format, folder / _file(model, number), text)

    with (
        tqdm(total=len(left) * steps, unit="step", disable=None if state.is_main_process else True) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        written = writer.submit(lambda: None)
        while left:
            if state.is_main_process and bar.disable and time.monotonic() > printed + LINE_EVERY_SECONDS:
                printed = time.monotonic()
                print_line(f"drawing: {done / count:.1%}")
            numbers, frames, fits = left.popleft(), list[np.ndarray](), True
            try:
                filled = [*numbers, *[numbers[-1]] * (size - len(numbers))] if args.compile else numbers
                if origin is not None:
                    stored = origin.read(np.array(filled) % len(origin))
                    options["origin"] = origin.pixel_format.to_unit(torch.from_numpy(stored))
                for step, x in enumerate(model.denoising(filled, labels(filled), **options)):
                    bar.update(step > 0)
                    if step in wanted and numbers[0] < shown:
                        frames.append(model.pixel_format.from_unit(x[: len(numbers)]))
                images = x[: len(numbers)].cpu()
            except Exception as error:
                if not is_out_of_memory(error) or len(numbers) == 1:
                    raise
                fits = False
            if not fits:
                size = half = (len(numbers) + 1) // 2
                print_line(f"note: {amount(len(numbers), 'image')} do not fit into memory; drawing {half:,} at a time")
                left = deque(part for whole in (numbers, *left) for part in (whole[:half], whole[half:]) if part)
                bar.total = bar.n + len(left) * steps
                continue
            require_finite(numbers, images, args.guidance)
            written.result()
            written = writer.submit(save, numbers, images)
            drawn += [(k, [frame[i] for frame in frames]) for i, k in enumerate(numbers) if k < shown]
            done += len(numbers)
        written.result()
    return drawn


def _text(args: argparse.Namespace, model: DiffusionModel, number: int, labels: list[int] | None) -> dict[str, str]:
    """The metadata of a picture."""
    names = ("seed", "sampler", "steps", "guidance")
    text = {"Software": VERSION, "model": str(args.model), "image": number}
    text |= {name: getattr(args, name) for name in names}
    text |= {name: getattr(args, name) for name in OPTIONAL if getattr(args, name)}
    text |= {"precision": args.precision} if args.precision != "float32" else {}
    text |= {"compile": "True"} if args.compile else {}
    if labels is not None:
        text |= {"label": labels[0], "class": (model.names(labels) or [""])[0]}
    return {name: printable(str(value))[:MAX_TEXT] for name, value in text.items()}


def _write(
    args: argparse.Namespace,
    model: DiffusionModel,
    labels: Labels,
    frames: list[list[np.ndarray]],
    out: OutputFolder,
    facts: Mapping[str, Any],
) -> None:
    """Writes what shows or lists the images, puts the folder in its place, and prints where everything is."""
    folder = out.staging
    missing = args.num - sum(1 for _ in (folder / "images").iterdir())
    if missing:
        raise ValueError(f"{missing} of {args.num} images are missing in {folder}; all machines need the same folder")
    read = lambda number: read_image(folder / "images" / _file(model, number))  # noqa: E731
    lines = [f"images: {args.out / 'images' / _file(model, 0)} … {args.out / 'images' / _file(model, args.num - 1)}"]
    if model.classes is not None:
        _write_labels(folder / "labels.csv", args, model, labels)
        lines.append(f"labels: {args.out / 'labels.csv'}")
    if args.npz:
        _write_npz(folder / "samples.npz", args.num, model, labels, read)
        lines.append(f"npz: {args.out / 'samples.npz'}")
    clipped = None
    if not are_pictures(model.shape[0], model.pixel_format):
        clipped = _clipped_share(args.num, model, read)
        if clipped >= NOTABLE:
            ends = f"{model.pixel_format.low:g} … {model.pixel_format.high:g}"
            lines.append(
                f"note: {clipped:.1%} of the values are at the ends of the range {ends}, where they are clipped"
            )
    if args.grid or args.animation:
        shown = np.stack([read(number) for number in range(min(args.num, MAX_IN_GRID))])
        names = model.names(labels(range(len(shown))))
        if note := hidden_note(len(shown), model.shape, model.pixel_format):
            lines.append(f"note: {note}")
        if args.animation:
            ranges = value_ranges(shown)
            steps = [np.stack(frame) for frame in zip(*frames, strict=True)]
            pictures = [draw_samples(values, model.pixel_format, names, ranges) for values in steps]
            save_animation(pictures, folder / "animation.gif")
            lines.append(f"animation: {args.out / 'animation.gif'}")
        if args.grid:
            draw_samples(shown, model.pixel_format, names).save(folder / "grid.png")
            lines.append(f"grid: {args.out / 'grid.png'}")
    out.publish({**facts, "clipped_share": clipped})
    for line in lines:
        print_line(line)


def _write_labels(path: Path, args: argparse.Namespace, model: DiffusionModel, labels: Labels) -> None:
    """A table of file, label and name of the class.

    Names that a spreadsheet would calculate, such as =1+1, begin with an apostrophe, its mark of a text.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "class"])
        for number in range(args.num):
            for label in labels([number]) or []:
                (name,) = map(printable, model.names([label]) or [""])
                table.writerow([_file(model, number), label, f"'{name}" if name.startswith(FORMULA) else name])


def _write_npz(
    path: Path, count: int, model: DiffusionModel, labels: Labels, read: Callable[[int], np.ndarray]
) -> None:
    """The images as one array, as the evaluator of guided-diffusion reads it; written one by one."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *model.shape[1:], 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for number in range(count):
                pixels = picture_bytes(read(number))
                file.write(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1).tobytes())
        if (numbers := labels(range(count))) is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, np.array(numbers, np.int64), allow_pickle=False)


def _clipped_share(count: int, model: DiffusionModel, read: Callable[[int], np.ndarray]) -> float:
    """The share of all values that are at an end of the range."""
    low, high = model.pixel_format.from_unit(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)).ravel()
    return float(np.mean([np.mean((values <= low) | (values >= high)) for values in map(read, range(count))]))


if __name__ == "__main__":
    main()
