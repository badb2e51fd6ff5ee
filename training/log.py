"""The log of a run: progress bar, log.jsonl, and accelerate's trackers."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, filter_trackers
from tqdm import tqdm

from storage.write import write_text
from training.config import TrainConfig
from training.disk_space import append_line, ignore_disk_full, is_full


def print_line(text: str) -> None:
    """Print one line, above the progress bar if there is one. A full disk behind the standard output is ignored."""
    with ignore_disk_full():
        tqdm.write(text)


def truncate(path: Path, images: int) -> None:
    """Remove the lines of log.jsonl that were written after `images` images, and a line that a crash truncated."""
    if path.exists():
        kept = [json.dumps(row) for row in read(path) if row["images"] <= images]
        write_text(path, "".join(f"{line}\n" for line in kept))


def evaluated(path: Path, images: int) -> bool:
    """Whether the log holds the evaluation after `images` images."""
    return any(row["images"] == images and row.get("evaluated") for row in read(path))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of log.jsonl."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            return  # a line truncated by a crash


BAR = "{n_fmt}/{total_fmt} {bar} {remaining} left {rate_fmt}{postfix}"
SHOWN = {
    "loss": "loss={:.3g}",
    "gradient_norm": "norm={:.2g}",
    "learning_rate": "lr={:.2g}",
    "data_wait": "wait={:.0%}",  # share of the time spent waiting for data
}


class RunLog:
    """Writes the numbers of a run; only the main process writes."""

    def __init__(
        self, path: Path, tracker_folder: Path, config: TrainConfig, images_seen: int, accelerator: Accelerator
    ) -> None:
        self.path, self.accelerator = path, accelerator
        self.was_full = False
        accelerator.log_with = filter_trackers(list(config.trackers), tracker_folder)
        accelerator.project_configuration.set_directories(str(tracker_folder))
        accelerator.init_trackers(path.parent.name, init_kwargs={"tensorboard": {"purge_step": images_seen + 1}})
        self.bar = tqdm(
            total=config.updates * config.batch,
            initial=images_seen,
            unit="img",
            unit_scale=True,
            bar_format=BAR,
            disable=not accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 20,
        )

    def advance(self, images: int) -> None:
        """Move the progress bar."""
        with ignore_disk_full():
            self.bar.update(images)

    def write(self, images_seen: int, update: int, numbers: Mapping[str, float], **marks: bool) -> None:
        """Write one line to log.jsonl, the numbers to the trackers (over images seen), and `SHOWN` to the progress bar.

        On a full disk the line is left out, and a tracker that cannot write is disabled for the rest of the run.
        """
        for tracker in list(self.accelerator.trackers) if numbers else []:
            self._track(tracker, lambda tracker: tracker.log(dict(numbers), step=images_seen))
        if self.accelerator.is_main_process:
            row = {"images": images_seen, "update": update, **marks, **numbers}
            if not append_line(self.path, json.dumps(row)) and not self.was_full:
                print_line(f"the disk is full: {self.path} lacks the lines after {images_seen:,} images")
                self.was_full = True
            if shown := [text.format(numbers[name]) for name, text in SHOWN.items() if name in numbers]:
                self.bar.set_postfix_str(" ".join(shown), refresh=False)

    def close(self) -> None:
        """Close the bar and the trackers."""
        with ignore_disk_full():
            self.bar.close()
        for tracker in list(self.accelerator.trackers):
            self._track(tracker, lambda tracker: tracker.finish())
        self.accelerator.trackers = []

    def _track(self, tracker: GeneralTracker, call: Callable[[GeneralTracker], object]) -> None:
        try:
            call(tracker)
        except OSError as error:
            if not is_full(error):
                raise
            self.accelerator.trackers.remove(tracker)
            print_line(f"the disk is full: {tracker.name} gets no more numbers of this run")
