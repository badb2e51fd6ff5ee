"""The log of a run: progress bar, log.jsonl, and accelerate's trackers."""

import json
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, filter_trackers
from jaxtyping import UInt8
from tqdm import tqdm

from residual.names import amount, shorten
from storage.read import is_regular, open_regular, parse_json, read_bytes
from storage.write import write_text
from training.config import TrainConfig
from training.disk_space import append_line, ignore_disk_full, is_full
from training.progress import Bar, print_line


def truncate(path: Path, images: int) -> None:
    """Remove the lines of log.jsonl that were written after `images` images, and those that are damaged.

    Prints the numbers of the damaged lines.
    """
    if path.exists():
        rows = list(read_lines(path))
        kept = [json.dumps(row) for row in rows if row is not None and row["images"] <= images]
        if damaged := [str(number) for number, row in enumerate(rows, 1) if row is None]:
            print_line(f"{path}: damaged lines were removed: {shorten(damaged, 5)}")
        write_text(path, "".join(f"{line}\n" for line in kept))


def evaluated(path: Path, images: int) -> bool:
    """Whether the log holds the evaluation after `images` images."""
    return any(row["images"] == images and row.get("evaluated") for row in read(path))


def failures(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line about each evaluation that failed in these lines of the log: how often, and the last reason."""
    found = dict[str, list[str]]()
    for row in rows:
        failed = row.get("failed")
        for name, reason in failed.items() if isinstance(failed, dict) else ():
            found.setdefault(name, []).append(str(reason))
    return [
        f"the {name} failed {amount(len(reasons), 'time')}, the last time because of: {reasons[-1]}"
        for name, reasons in found.items()
    ]


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of log.jsonl, without those that are damaged. Raises ValueError if it is not a regular file."""
    return (row for row in read_lines(path) if row is not None)


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each line of log.jsonl; None for one that is damaged, such as truncated by a crash."""
    if not path.exists():
        return
    with open_regular(path) as file:
        for line in file:
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            intact = isinstance(row, dict) and type(row.get("images")) is int and 0 <= row["images"] < 2**63
            yield row if intact else None


PROJECT = "residual-diffusion"
"""of all runs in the trackers"""
SHOWN = {
    "loss": "loss={:.3g}",
    "gradient_norm": "norm={:.2g}",
    "learning_rate": "lr={:.2g}",
    "mfu": "MFU={:.1%}",  # model FLOPs utilisation, see training/peak.py
    "data_wait": "wait={:.0%}",  # share of the time spent waiting for data
}


class RunLog:
    """Writes the numbers of a run; only the main process writes.

    The progress bar is for terminals. Elsewhere, such as in a file, each line of the log is also a line of text.
    `settings`, by name, are stored in the trackers. In wandb a resumed run continues the same run, whose id is in the
    file `wandb_id` beside the log.
    """

    def __init__(
        self,
        path: Path,
        tracker_folder: Path,
        config: TrainConfig,
        images_seen: int,
        accelerator: Accelerator,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.accelerator, self.images = path, accelerator, config.updates * config.batch
        self.was_full = False
        self._broken = set[str]()
        """names of the trackers that failed"""
        accelerator.log_with = filter_trackers(list(config.trackers), tracker_folder)
        accelerator.project_configuration.set_directories(str(tracker_folder))
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": images_seen + 1},
            "trackio": {"name": path.parent.name, "resume": "allow"},
        }
        if "wandb" in config.trackers and accelerator.is_main_process:
            run_id = _wandb_id(path.with_name("wandb_id"), is_new=images_seen == 0)
            options["wandb"] = options["trackio"] | {"id": run_id, "dir": str(path.parent)}
        try:
            accelerator.init_trackers(PROJECT, init_kwargs=options)
        except Exception as error:
            names = ", ".join(config.trackers)
            raise ValueError(f"train.trackers={names} cannot be started: {type(error).__name__}: {error}") from error
        plain = {name: str(value) if isinstance(value, list) else value for name, value in (settings or {}).items()}
        self._track(lambda tracker: tracker.store_init_configuration(plain))
        self.bar = Bar(
            total=self.images,
            initial=images_seen,
            unit="img",
            unit_scale=True,
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
            mininterval=0.5,
        )

    def advance(self, images: int) -> None:
        """Move the progress bar."""
        with ignore_disk_full():
            self.bar.update(images)

    def write(self, images_seen: int, update: int, numbers: Mapping[str, float], **marks: Any) -> None:
        """Write one line to log.jsonl, the numbers to the trackers (over images seen), and `SHOWN` to the progress bar.

        On a full disk the line is left out. A tracker that fails is reported once, and gets the next numbers again.
        """
        if numbers:
            self._track(lambda tracker: tracker.log(dict(numbers), step=images_seen))
        if self.accelerator.is_main_process:
            time = datetime.now(UTC).isoformat(timespec="seconds")
            row = {"images": images_seen, "update": update, "time": time, **marks, **numbers}
            if not append_line(self.path, json.dumps(row)) and not self.was_full:
                print_line(f"the disk is full: {self.path} lacks the lines after {images_seen:,} images")
                self.was_full = True
            self._show(images_seen, numbers)

    def write_image(self, name: str, images_seen: int, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Write an image to the trackers that take images; to be called on the main process."""

        def log_image(tracker: GeneralTracker) -> None:
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels[None]}, step=images_seen, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [pixels]}, step=images_seen)

        self._track(log_image)

    def close(self) -> None:
        """Close the bar and the trackers."""
        with ignore_disk_full():
            self.bar.close()
        self._track(lambda tracker: tracker.finish())
        self.accelerator.trackers = []

    def _show(self, images_seen: int, numbers: Mapping[str, float]) -> None:
        if not self.bar.disable:
            if shown := [text.format(numbers[name]) for name, text in SHOWN.items() if name in numbers]:
                self.bar.set_postfix_str(" ".join(shown), refresh=False)
        elif numbers:
            shown = [SHOWN.get(name, f"{name}={{:.4g}}").format(number) for name, number in numbers.items()]
            if speed := numbers.get("images_per_second"):
                shown.append(f"left={tqdm.format_interval((self.images - images_seen) / speed)}")
            with ignore_disk_full():
                print(f"{images_seen:,} of {self.images:,} images: {' '.join(shown)}", file=sys.stderr, flush=True)

    def _track(self, call: Callable[[GeneralTracker], object]) -> None:
        for tracker in self.accelerator.trackers:
            try:
                call(tracker)
            except Exception as error:  # each tracker has its own; those of its threads are raised here, too
                if tracker.name in self._broken:
                    continue
                self._broken.add(tracker.name)
                reason = "the disk is full" if is_full(error) else repr(error)
                print_line(f"{reason}: {tracker.name} lacks numbers of this run; it is tried again with the next")


def _wandb_id(path: Path, is_new: bool) -> str:
    """The id of a run in wandb: that in the file, or else a new one, which is stored there."""
    found = read_bytes(path).decode(errors="replace").strip() if is_regular(path) and not is_new else ""
    if not re.fullmatch("[a-z0-9]{8}", found):
        found = secrets.token_hex(4)
        with ignore_disk_full():
            write_text(path, f"{found}\n")
    return found
