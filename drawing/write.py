"""Writes what shows or lists the images: grids, an animation, the table of labels, an array for evaluators."""

import csv
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drawing.job import NETCDF, Job
from drawing.nearest import write_nearest
from drawing.netcdf import write_netcdf
from pictures.files import are_pictures, picture_bytes, read_image
from pictures.grid import draw_samples, hidden_note, save_animation, value_ranges
from pictures.pixel_format import PixelFormat
from pictures.units import AnyFormat
from pipelines.diffusion import DiffusionModel
from residual.names import amount
from storage.show import printable

FORMULA = ("=", "+", "-", "@")
"""first characters of what a spreadsheet calculates"""
COLUMNS, MAX_COLUMNS = 10, 16
SERIES_MS = 200
"""milliseconds of a frame of between.gif"""
NOTABLE = 0.01
"""share of clipped values that is reported"""

Read = Callable[[int], np.ndarray]
"""gives the values of an image by its number"""


def write(job: Job, frames: list[list[np.ndarray]], facts: Mapping[str, Any]) -> list[str]:
    """Writes what shows or lists the images, and puts the folder in its place. Returns lines that name the files."""
    args, model, labels, folder = job.args, job.model, job.labels, job.out.staging
    missing = len(job) - sum(1 for _ in (folder / "images").iterdir())
    if missing:
        raise ValueError(f"{missing} of {len(job)} images are missing in {folder}; all machines need the same folder")
    read = lambda number: _read(folder / "images" / job.file(number), model.output_format)  # noqa: E731
    lines = [f"images: {args.out / 'images' / job.file(0)} … {args.out / 'images' / job.file(len(job) - 1)}"]
    if model.classes is not None and job.toward is None:
        _write_labels(folder / "labels.csv", job)
        lines.append(f"labels: {args.out / 'labels.csv'}")
    if job.conditions.images is not None:
        _write_conditions(folder / "conditions.csv", job)
        lines.append(f"conditions: {args.out / 'conditions.csv'}")
    if model.coordinates is not None:
        reason = write_netcdf(folder, job, read)
        lines.append(f"note: {reason}" if reason else f"netcdf: {args.out / NETCDF}")
    if args.npz:
        _write_npz(folder / "samples.npz", job, read)
        lines.append(f"npz: {args.out / 'samples.npz'}")
    found: dict[str, Any] = {"clipped_share": None}
    if isinstance(model.output_format, PixelFormat) and not are_pictures(model.output_shape[0], model.output_format):
        found["clipped_share"] = clipped = _clipped_share(len(job), model, read)
        if clipped >= NOTABLE:
            ends = f"{model.output_format.low:g} … {model.output_format.high:g}"
            lines.append(
                f"note: {clipped:.1%} of the values are at the ends of the range {ends}, where they are clipped"
            )
    if args.invert:
        found["psnr"], line = _psnr(job, read)
        lines.append(line)
    if job.observations is not None:
        found["misfit"], line = _misfit(job, read)
        lines.append(line)
    if args.between or args.morph:
        frames_between = np.stack([read(number) for number in range(job.in_grid)])
        ranges = value_ranges(frames_between)
        pictures = [draw_samples(values[None], model.output_format, None, ranges) for values in frames_between]
        save_animation(pictures, folder / "between.gif", SERIES_MS)
        lines.append(f"animation: {args.out / 'between.gif'}")
    if job.training is not None:
        files = list(map(job.file, range(len(job))))
        lines.append(write_nearest(folder, files, read, job.training, job.in_grid))
        lines.append(f"nearest: {args.out / 'nearest.png'}, {args.out / 'nearest.csv'}")
    if args.grid or args.animation:
        tiles = [(*job.beside(number), read(number)) for number in range(job.in_grid)]
        shown = np.stack([image for tile in tiles for image in tile])
        if note := hidden_note(len(job) * len(tiles[0]), model.output_shape, model.output_format, len(shown)):
            lines.append(f"note: {note}")
        names = job.series.names() or (None if job.series.frames else model.names(labels(range(job.in_grid))))
        if args.animation:
            ranges = value_ranges(shown)
            steps = [np.stack(frame) for frame in zip(*frames, strict=True)]
            pictures = [draw_samples(values, model.output_format, names, ranges) for values in steps]
            save_animation(pictures, folder / "animation.gif")
            lines.append(f"animation: {args.out / 'animation.gif'}")
        if args.grid:
            each = len(tiles[0])
            named = None if names is None else [name for name in names for _ in range(each)]
            draw_samples(shown, model.output_format, named, columns=_columns(job, each)).save(folder / "grid.png")
            lines.append(f"grid: {args.out / 'grid.png'}")
    job.out.publish({**facts, **found})
    return lines


def _read(path: Path, pixel_format: AnyFormat) -> np.ndarray:
    """The values of a written image; colour pictures of 16 bits have been written with 8."""
    values = read_image(path)
    return values.astype(np.uint16) * 257 if (values.dtype, pixel_format.dtype) == (np.uint8, "uint16") else values


def _columns(job: Job, each: int) -> int | None:
    """Columns of a grid whose images stand beside `each` - 1 others; None: as many as make it about square."""
    if each > 1:
        members = job.args.members or 1
        return (members if 1 < members <= MAX_COLUMNS // each else max(1, COLUMNS // each)) * each
    return min(job.series.columns, MAX_COLUMNS) if job.series.frames or len(job.series.rows) > 1 else None


def _psnr(job: Job, read: Read) -> tuple[float | None, str]:
    """The PSNR in dB of reconstructed images, and a line about it; None if they are identical."""
    assert job.given is not None, "RULES"
    pixels = job.model.output_format
    errors = list[float]()
    for number in range(len(job)):
        (original,) = pixels.from_unit(job.given.unit([job.series.column(number)]))
        span = pixels.high - pixels.low if isinstance(pixels, PixelFormat) else np.ptp(original)
        difference = (read(number).astype(float) - original) / span
        errors.append(float(np.nanmean(np.square(difference))))
    if not any(errors):
        return None, "reconstruction: identical"
    mean, lowest = (-10 * math.log10(error) for error in (np.mean(errors), max(errors)))
    return mean, f"reconstruction: PSNR {mean:.1f} dB of {amount(len(job), 'image')}, lowest {lowest:.1f} dB"


def _misfit(job: Job, read: Read) -> tuple[float, str]:
    """The root mean square of the misfits of all images, and a line about it."""
    assert job.observations is not None, "the caller checks it"
    misfits = [job.observations.misfit(job.series.column(number), read(number)) for number in range(len(job))]
    mean = math.sqrt(np.square(misfits).mean())
    of = f"{amount(len(job), 'image')}, largest {max(misfits):.3g}"
    return mean, f"misfit: {mean:.3g} standard deviations of the noise (root mean square) of {of}; 1 is expected"


def _write_labels(path: Path, job: Job) -> None:
    """A table of file, label and name of the class.

    Names that a spreadsheet would calculate, such as =1+1, begin with an apostrophe, its mark of a text.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "class"])
        for number in range(len(job)):
            for label in job.labels([number]) or []:
                (name,) = map(printable, job.model.names([label]) or [""])
                table.writerow([job.file(number), label, f"'{name}" if name.startswith(FORMULA) else name])


def _write_conditions(path: Path, job: Job) -> None:
    """A table of file, number of the condition and member of its ensemble, both from 0."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "condition", "member"])
        for number in range(len(job)):
            column = job.series.column(number)
            table.writerow([job.file(number), job.conditions.number(column), column % job.conditions.members])


def _write_npz(path: Path, job: Job, read: Read) -> None:
    """The images as one array, as the evaluator of guided-diffusion reads it; written one by one."""
    count = len(job)
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *job.model.output_shape[1:], 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for number in range(count):
                pixels = picture_bytes(read(number))
                file.write(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1).tobytes())
        if (numbers := job.recorded_labels(range(count))) is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, np.array(numbers, np.int64), allow_pickle=False)


def _clipped_share(count: int, model: DiffusionModel, read: Read) -> float:
    """The share of all values that are at an end of the range."""
    low, high = model.output_format.from_unit(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)).ravel()
    return float(np.mean([np.mean((values <= low) | (values >= high)) for values in map(read, range(count))]))
