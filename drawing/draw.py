"""Draws the images of a command over all processes, and continues an interrupted one."""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drawing.job import Job
from drawing.options import BATCH, BATCH_OF_CPU
from pictures.files import read_image, save_image
from pipelines.diffusion import DiffusionModel
from pipelines.drawn import require_finite
from residual.names import amount
from storage.show import printable
from storage.write import remove
from training.compile import compile_for_drawing
from training.disk_space import is_full, require_disk_space
from training.memory import free_bytes, is_out_of_memory
from training.precision import place
from training.processes import process_state
from training.progress import Bar, print_line
from training.report import activation_bytes

MAX_FRAMES = 40
LINE_EVERY_SECONDS = 30.0
"""where there is no terminal for a progress bar"""

Frames = list[tuple[int, list[np.ndarray]]]
"""values (c, h, w) of an image at several steps, by its number"""


def choose_batch(model: DiffusionModel, device: torch.device, guided: bool) -> int:
    """Images per forward pass where none are given: as many as certainly fit into free memory, up to a limit.

    The activations that training would store are more than a forward pass needs. A `guided` one takes twice as much.
    """
    most = BATCH_OF_CPU if device.type == "cpu" else BATCH
    if (free := free_bytes(device)) is None:
        return most
    channels, size = model.net.config.in_channels, model.shape[1:] if model.windows is None else model.windows[0]
    inputs = (
        torch.zeros(1, channels, *size),
        torch.zeros(1),
        *([] if model.classes is None else [torch.zeros(1).long()]),
    )
    needed = max(1, activation_bytes(model.net, *inputs))
    return max(1, min(most, free // (2 * needed if guided else needed)))


def begin(job: Job, facts: Mapping[str, Any]) -> None:
    """Prepares the staging folder, in which the finished images of an interrupted command of this kind stay."""
    args, model = job.args, job.model
    may_differ = ("device",) if args.sweep or args.between or args.morph else ("num", "device")
    folder = job.out.begin(facts, keep=("images",), may_differ=may_differ) / "images"
    folder.mkdir(exist_ok=True)
    wanted = {job.file(number) for number in range(len(job))} if any(folder.iterdir()) else set()
    for path in folder.iterdir():
        if path.name not in wanted or not _finished(path, model):
            remove(path)
    if left := sum(1 for _ in folder.iterdir()):
        print_line(f"continuing: {left:,} of {len(job):,} images are already in {folder}")
    if model.output_format.file == "npy":
        needed = math.prod(model.output_shape) * np.dtype(model.output_format.dtype).itemsize * (len(job) - left)
        require_disk_space(folder, needed, amount(len(job) - left, "image"))


def _finished(path: Path, model: DiffusionModel) -> bool:
    """Whether a file holds a whole image of the model."""
    try:
        return not path.is_symlink() and read_image(path).shape == model.output_shape
    except (ValueError, OSError):
        return False


@contextmanager
def keeping(job: Job) -> Iterator[None]:
    """Turns errors of drawing and writing into one line, and reports the finished images that stay."""
    args, staging = job.args, job.out.staging
    try:
        yield
    except BaseException as error:
        count = sum(1 for _ in (staging / "images").glob(f"[0-9]*.{job.model.output_format.file}"))
        job.out.leave(discard=count == 0)
        kept = f"{count:,} of {len(job):,} images are kept in {str(staging)!r}; the same command goes on with them"
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


def make_ready(job: Job) -> list[str]:
    """Places the networks on their device, and chooses the batch if none is given. Returns lines about it."""
    args, lines = job.args, list[str]()
    if args.batch is None:
        guided = any(row.get("guidance", args.guidance) != 1 for row in job.series.rows)
        guided = guided or job.model.classifier is not None or job.observations is not None
        args.batch = choose_batch(job.model, job.device, guided)
    for net in job.model.networks:
        lines += place(net, job.device, args.precision, args.compile)
        if args.compile:
            compile_for_drawing(net, job.device)
    if job.model.classifier is not None:
        lines += place(job.model.classifier.net, job.device)
    return lines


def save(job: Job, numbers: Sequence[int], images: Float[Tensor, "b c h w"]) -> None:
    """Writes drawn images of these numbers, as `DiffusionModel.decoded` returns them, into the staging folder."""
    for number, image in zip(numbers, images, strict=True):
        path = job.out.staging / "images" / job.file(number)
        save_image(image, job.model.output_format, path, job.text(number), job.kept(number))


def draw(job: Job) -> Frames:
    """Draws and writes this process's images, without those that are finished. Returns the frames of an animation.

    The batches do not depend on what is finished, so that an interrupted command ends with the same bits. With an
    animation, the images in it are drawn again. A batch is written while the next one is drawn. If one does not fit
    into memory, it and all further ones are halved. For a compiled network, which has code for one size, the last batch
    is filled up.
    """
    args, model = job.args, job.model
    state, folder = process_state(), job.out.staging / "images"
    shown = job.in_grid if args.animation else 0
    columns, names = job.series.columns, set(os.listdir(folder))
    split = list[range]()
    for row in range(0, len(job), columns):
        share = range(row + (state.process_index - row) % state.num_processes, row + columns, state.num_processes)
        split += [share[start : start + args.batch] for start in range(0, len(share), args.batch)]
    left = deque(batch for batch in split if batch[0] < shown or any(job.file(k) not in names for k in batch))
    size = max(map(len, split), default=0)
    drawn, printed = list[tuple[int, list[np.ndarray]]](), time.monotonic()
    done, count = 0, sum(map(len, left))
    total = lambda: sum(job.steps(batch[0]) for batch in left)  # noqa: E731

    with (
        Bar(total=total(), unit="step", disable=None if state.is_main_process else True) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        written = writer.submit(lambda: None)
        while left:
            if state.is_main_process and bar.disable and time.monotonic() > printed + LINE_EVERY_SECONDS:
                printed = time.monotonic()
                print_line(f"drawing: {done / count:.1%}")
            numbers, frames, fits = left.popleft(), list[np.ndarray](), True
            steps = job.steps(numbers[0])
            wanted = set(np.linspace(0, steps, min(MAX_FRAMES, steps + 1)).round().astype(int).tolist())
            try:
                filled = [*numbers, *[numbers[-1]] * (size - len(numbers))] if args.compile else numbers
                for step, x in enumerate(job.chain(filled)):
                    bar.update(step > 0)
                    if step in wanted and numbers[0] < shown:
                        frames.append(model.output_format.from_unit(model.decoded(x[: len(numbers)])))
                images = model.decoded(x[: len(numbers)]).cpu()
            except Exception as error:
                if not is_out_of_memory(error) or len(numbers) == 1:
                    raise
                fits = False
            if not fits:
                size = half = (len(numbers) + 1) // 2
                print_line(f"note: {amount(len(numbers), 'image')} do not fit into memory; drawing {half:,} at a time")
                left = deque(part for whole in (numbers, *left) for part in (whole[:half], whole[half:]) if part)
                bar.total = bar.n + total()
                continue
            require_finite(numbers, images, job.options(numbers[0]).guidance)
            written.result()
            written = writer.submit(save, job, numbers, model.hidden(images))
            drawn += [(k, [frame[i] for frame in frames]) for i, k in enumerate(numbers) if k < shown]
            done += len(numbers)
        written.result()
    return drawn
