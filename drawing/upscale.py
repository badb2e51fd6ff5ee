"""Enlarges pictures from the command line: `sample.py MODEL --upscale IMAGES`."""

import argparse
import csv
import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from drawing.job import choose_device
from drawing.options import DENOISING, denoising_options
from pictures.files import read_image, save_image
from pictures.grid import draw_grid
from pictures.pixel_format import BYTES
from pictures.tiles import Tiles
from pipelines.superresolution import DiffusionUpscaler, Upscaler, is_upscaler, load_upscaler, middles
from residual.names import amount
from residual.resample import bicubic
from storage.read import is_regular
from storage.show import printable
from storage.write import expand_home
from training.averages import RunAverages, load_average
from training.data import DataConfig
from training.data.sources.records import Item
from training.data.sources.source import find_source
from training.memory import explain_out_of_memory
from training.output_folder import OutputFolder, default_folder, weights_sha256
from training.precision import choose_precision, place
from training.processes import leave_processes, on_main, process_state
from training.progress import Bar, print_line
from training.script import VERSION, show_next

RECORD = "upscaled.json"
NAMES = ("images", "files.csv", "grid.png")
USED = {"model", "ema", "upscale", "tile", "overlap", "batch", "out", "grid", "precision", "device"}
"""options that have an effect with --upscale"""
USED_BY_DIFFUSION = {"seed", "label", "guidance_interval", *DENOISING}
"""further ones of a diffusion model"""
SHOWN = 4
"""pictures in the grid"""
Sizes = Sequence[tuple[str, int, int]]
"""name, height and width of each picture"""


def require_upscale(args: argparse.Namespace) -> None:
    """Raises ValueError for a model or options that need --upscale, which is not given."""
    if is_upscaler(args.model):
        raise ValueError(f"{args.model} enlarges pictures and draws none; give --upscale IMAGES")
    if args.tile is not None:
        raise ValueError(f"tile={args.tile} is that of pictures to enlarge; give --upscale, too")


def upscale(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Opens and checks what the options name, enlarges all pictures on all processes, and writes the folder.

    Raises ValueError for pictures and options that do not suit the model, before any of them is enlarged.
    """
    for _ in upscaling(args, defaults):
        pass


def upscaling(args: argparse.Namespace, defaults: Mapping[str, Any]) -> Iterator[float]:
    """As `upscale`, with pauses: yields the share of the current picture that is done."""
    args.out = default_folder(args.model, "upscaled") if args.out is None else expand_home("out", args.out)
    average = None if args.ema is None else RunAverages(args.model).choose(args.ema)
    upscaler: Upscaler = load_average(load_upscaler, args.model, average)
    used = USED | USED_BY_DIFFUSION if isinstance(upscaler, DiffusionUpscaler) else USED
    if changed := [name for name, value in defaults.items() if getattr(args, name) != value and name not in used]:
        raise ValueError(f"{changed[0]} has no effect on this model with --upscale; leave it out")
    upscaler = _with_options(args, upscaler)
    upscaler.check()
    out = OutputFolder(args.out, args.model, RECORD, NAMES)
    out.check()
    device = choose_device(args.device)
    args.precision, _ = choose_precision(args.precision, device, "precision")
    sizes, digest = _check(args.upscale, upscaler)
    weights = weights_sha256(upscaler.net)
    lines = place(upscaler.net, device, args.precision)
    facts = {
        "written_by": f"sample.py of {VERSION}",
        "model": printable(str(args.model)),
        "model_folder": out.model,
        "images_seen": upscaler.images_seen,
        "ema": args.ema,
        "weights_sha256": weights,
        "upscale": printable(str(args.upscale)),
        "upscale_sha256": digest,
        "num": len(sizes),
        "scale": upscaler.scale,
        **{name: getattr(args, name) for name in sorted(used & USED_BY_DIFFUSION)},
        "tiles": asdict(upscaler.tiles),
        "device": device.type,
        "precision": args.precision,
    }
    if process_state().is_main_process:
        seen = "" if upscaler.images_seen is None else f" at {upscaler.images_seen:,} images seen"
        pixels = sum(height * width for _, height, width in sizes)
        print_line(f"model: {args.model}{seen}{f', {average.about}' if average else ''}; scale {upscaler.scale}")
        print_line(f"upscale: {amount(len(sizes), 'picture')} of {args.upscale}, {pixels / 1e6:.2f} million pixels")
        for line in lines:
            print_line(line)
    try:
        on_main(lambda: (out.begin(facts, keep=("images",), may_differ=("device",)) / "images").mkdir(exist_ok=True))
        with explain_out_of_memory(f"tile={upscaler.tiles.px}", "give a smaller --tile or --batch"):
            yield from _enlarge(args.upscale, upscaler, sizes, out.staging / "images")
        process_state().wait_for_everyone()
        if process_state().is_main_process:
            _write(args, upscaler, sizes, out, facts)
            if is_regular(Path(args.model, "config.yaml")):
                show_next(f"python evaluate.py {shlex.quote(args.model)}")
    except BaseException:
        out.leave()
        raise
    leave_processes()


def _with_options(args: argparse.Namespace, upscaler: Upscaler) -> Upscaler:
    """The model with the options of the command line. Raises ValueError for those out of range."""
    if isinstance(upscaler, DiffusionUpscaler):
        if not 0 <= args.seed < 2**32:
            raise ValueError(f"seed={args.seed} is out of range; give 0 or more, below 2^32")
        label = None if args.label is None else upscaler.model.label(args.label)
        upscaler = replace(upscaler, label=label, seed=args.seed, options=denoising_options(args))
    tiles = upscaler.tiles
    px = tiles.px if args.tile is None else args.tile
    overlap = min(tiles.overlap_px, px // 2) if args.overlap is None else args.overlap
    return upscaler.with_tiles(Tiles(px, overlap, tiles.batch if args.batch is None else args.batch))


def _items(source: str) -> Iterator[Item]:
    """The pictures that --upscale names. Raises ValueError if there are none, or arrays."""
    try:
        records = find_source(DataConfig(source=str(source), labels=False)).open()
    except ValueError as error:
        raise ValueError(f"upscale {str(source)!r}: {error}") from None
    if records.pixel_format != BYTES:
        raise ValueError(f"upscale {str(source)!r}: arrays cannot be enlarged; save pictures, such as PNG files")
    return records.items()


def _read(item: Item, upscaler: Upscaler) -> UInt8[np.ndarray, "c h w"]:
    assert isinstance(item.data, Path | bytes | np.ndarray), "arrays were refused"
    return upscaler.read(item.data, item.name)


def _check(source: str, upscaler: Upscaler) -> tuple[Sizes, str]:
    """Reads all pictures once: their names and sizes, and the SHA-256 of their pixels."""
    sizes, digest = list[tuple[str, int, int]](), hashlib.sha256()
    for item in _items(source):
        pixels = _read(item, upscaler)
        sizes.append((item.name, *pixels.shape[1:]))
        digest.update(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).data)
    if not sizes:
        raise ValueError(f"upscale {str(source)!r} holds no picture")
    return sizes, digest.hexdigest()


def _enlarge(source: str, upscaler: Upscaler, sizes: Sizes, folder: Path) -> Iterator[float]:
    """Enlarges and writes this process's share of the pictures, without those that are finished."""
    state = process_state()
    pairs = Bar(
        enumerate(_items(source)), total=len(sizes), unit="picture", disable=None if state.is_main_process else True
    )
    for number, item in pairs:
        path, (_, height, width) = folder / _file(number), sizes[number]
        shape = (upscaler.channels, upscaler.scale * height, upscaler.scale * width)
        if number % state.num_processes == state.process_index and not _finished(path, shape):
            low = BYTES.to_unit(torch.from_numpy(_read(item, upscaler)[None]))
            image = (yield from upscaler.enlarging(low, number))[0].cpu()
            if not image.isfinite().all():
                raise ValueError(f"{item.name} has values that are not finite when enlarged; take other weights")
            save_image(image, BYTES, path, {"Software": VERSION, "picture": printable(item.name)[:200]})


def _file(number: int) -> str:
    return f"{number:06d}.png"


def _finished(path: Path, shape: tuple[int, int, int]) -> bool:
    """Whether a file holds a whole picture of this shape."""
    try:
        return not path.is_symlink() and read_image(path).shape == shape
    except (ValueError, OSError):
        return False


def _write(
    args: argparse.Namespace, upscaler: Upscaler, sizes: Sizes, out: OutputFolder, facts: Mapping[str, Any]
) -> None:
    """Writes the table and the grid, puts the folder in its place, and prints where everything is."""
    folder = out.staging
    if missing := [number for number in range(len(sizes)) if not (folder / "images" / _file(number)).is_file()]:
        raise ValueError(f"{len(missing)} pictures are missing in {folder}; all machines need the same folder")
    with (folder / "files.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "picture", "height", "width"])
        table.writerows([_file(number), printable(name), *size] for number, (name, *size) in enumerate(sizes))
    lines = [f"images: {args.out / 'images' / _file(0)} … {args.out / 'images' / _file(len(sizes) - 1)}"]
    lines.append(f"files: {args.out / 'files.csv'}")
    if args.grid:
        draw_grid(_panels(args.upscale, upscaler, folder / "images"), columns=3).save(folder / "grid.png")
        lines.append(f"grid: {args.out / 'grid.png'}, small, by the bicubic filter, and enlarged")
    out.publish(facts)
    for line in lines:
        print_line(line)


def _panels(source: str, upscaler: Upscaler, folder: Path) -> UInt8[np.ndarray, "n h w c"]:
    """The middles of the first pictures: small, enlarged by the bicubic filter, and by the model."""
    panels = []
    for number, item in zip(range(SHOWN), _items(source), strict=False):
        low = BYTES.to_unit(torch.from_numpy(_read(item, upscaler)[None]))
        made = BYTES.to_unit(torch.from_numpy(read_image(folder / _file(number))[None].copy()))
        panels.append(middles(low, bicubic(low, (made.shape[2], made.shape[3])), made))
    side = [max(panel.shape[axis] for panel in panels) for axis in (1, 2)]
    padded = [
        np.pad(panel, [(0, 0), *((0, most - panel.shape[axis]) for axis, most in enumerate(side, 1)), (0, 0)],
               constant_values=255)
        for panel in panels
    ]  # fmt: skip
    return np.concatenate(padded)
