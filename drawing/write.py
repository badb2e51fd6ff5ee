"""Writes what shows or lists the images: grids, an animation, the table of labels, an array for evaluators."""

import csv
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drawing.job import Job
from pictures.files import are_pictures, picture_bytes, read_image
from pictures.grid import draw_samples, hidden_note, save_animation, value_ranges
from pipelines.diffusion import DiffusionModel
from storage.show import printable
from training.log import print_line

FORMULA = ("=", "+", "-", "@")
"""first characters of what a spreadsheet calculates"""
NOTABLE = 0.01
"""share of clipped values that is reported"""

Read = Callable[[int], np.ndarray]
"""gives the values of an image by its number"""


def write(job: Job, frames: list[list[np.ndarray]], facts: Mapping[str, Any]) -> None:
    """Writes what shows or lists the images, puts the folder in its place, and prints where everything is."""
    args, model, labels, folder = job.args, job.model, job.labels, job.out.staging
    missing = args.num - sum(1 for _ in (folder / "images").iterdir())
    if missing:
        raise ValueError(f"{missing} of {args.num} images are missing in {folder}; all machines need the same folder")
    read = lambda number: read_image(folder / "images" / job.file(number))  # noqa: E731
    lines = [f"images: {args.out / 'images' / job.file(0)} … {args.out / 'images' / job.file(args.num - 1)}"]
    if model.classes is not None:
        _write_labels(folder / "labels.csv", job)
        lines.append(f"labels: {args.out / 'labels.csv'}")
    if args.npz:
        _write_npz(folder / "samples.npz", job, read)
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
        shown = np.stack([read(number) for number in range(job.in_grid)])
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
    job.out.publish({**facts, "clipped_share": clipped})
    for line in lines:
        print_line(line)


def _write_labels(path: Path, job: Job) -> None:
    """A table of file, label and name of the class.

    Names that a spreadsheet would calculate, such as =1+1, begin with an apostrophe, its mark of a text.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "class"])
        for number in range(job.args.num):
            for label in job.labels([number]) or []:
                (name,) = map(printable, job.model.names([label]) or [""])
                table.writerow([job.file(number), label, f"'{name}" if name.startswith(FORMULA) else name])


def _write_npz(path: Path, job: Job, read: Read) -> None:
    """The images as one array, as the evaluator of guided-diffusion reads it; written one by one."""
    count = job.args.num
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *job.model.shape[1:], 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for number in range(count):
                pixels = picture_bytes(read(number))
                file.write(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1).tobytes())
        if (numbers := job.labels(range(count))) is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, np.array(numbers, np.int64), allow_pickle=False)


def _clipped_share(count: int, model: DiffusionModel, read: Read) -> float:
    """The share of all values that are at an end of the range."""
    low, high = model.pixel_format.from_unit(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)).ravel()
    return float(np.mean([np.mean((values <= low) | (values >= high)) for values in map(read, range(count))]))
