"""The folder of one run, and whether the same command starts, resumes or has finished it.

```
RUN/config.yaml    the resolved config of the run           RUN/samples/     what evaluations drew
RUN/log.jsonl      one JSON object per line                 RUN/model/       the averaged model, enough to sample
RUN/checkpoints/   see training/checkpoint.py               RUN/tensorboard/ if it is among the trackers
```
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from training import checkpoint, files, log
from training.accelerator import on_main
from training.checkpoint import Checkpoint

FORMAT_VERSION = 1
MAY_CHANGE = {"format_version", "data.cache"} | {
    f"train.{name}" for name in ("images", "log_images", "sample_images", "save_images", "trackers", "keep")
}

Status = Literal["new", "resume", "finished"]


class RunFolder:
    """Names of what lies in a run folder; `open` prepares it, and finds the checkpoint to go on from."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.model = self.path / "model"
        self.tensorboard = self.path / "tensorboard"
        self.status: Status | None = None
        self.start: Checkpoint | None = None  # set by `open`

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a run to go on with; its newest checkpoint may still turn out to be damaged."""
        return bool(checkpoint.list_folders(self.checkpoints))

    def open(self, resolved: Mapping[str, Any], fresh: bool = False) -> Status:
        """Prepare the folder for a run with the plain, YAML-able config `resolved`; to be called on every process.

        "new": nothing to go on from; "resume": `start` is the newest intact checkpoint; "finished": it is the last one.
        `fresh` moves an existing run aside first. Raises ValueError if the folder is not a run's, if its config differs
        in more than `MAY_CHANGE`, or if it has checkpoints and none is intact.
        """
        self.status, self.start = on_main(lambda: self._open(_plain(resolved), fresh))
        return self.status

    def _open(self, resolved: dict[str, Any], fresh: bool) -> tuple[Status, Checkpoint | None]:
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file, not a run folder; give another --run")
        if self.path.exists() and any(self.path.iterdir()) and not self.config.is_file():
            raise ValueError(f"{self.path} is not a run folder (no config.yaml); give another --run")
        if fresh and self.config.is_file():
            moved = _free_name(self.path)
            os.rename(self.path, moved)
            log.say(f"moved the old run to {moved}")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        files.recover_folder(self.model)
        checkpoint.clean(self.checkpoints)
        if checkpoint.list_folders(self.checkpoints):
            self._check_config(resolved)
        start, damaged = checkpoint.newest(self.checkpoints)
        for folder, problem in damaged.items():
            moved = _free_name(folder.with_name(f"damaged-{folder.name}"))
            os.rename(folder, moved)
            log.say(f"checkpoint {folder.name} is damaged: {problem}; moved to {moved.name}, taking the one before")
        files.write_text(self.config, yaml.safe_dump({"format_version": FORMAT_VERSION} | resolved, sort_keys=False))
        if start is None:
            self.log.unlink(missing_ok=True)
            return "new", None
        log.truncate(self.log, start.images)
        done = start.images >= resolved["train"]["images"] and log.evaluated(self.log, start.images)
        return ("finished" if done else "resume"), start

    def _check_config(self, resolved: dict[str, Any]) -> None:
        stored = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        if stored.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{self.config} has format_version {stored.get('format_version')}, this program reads "
                f"{FORMAT_VERSION}; give another --run, or --fresh to start over"
            )
        there, here = dict(_flat(stored)), dict(_flat(resolved))
        changed = [
            f"{name}={there.get(name, 'absent')} there, {here.get(name, 'absent')} now"
            for name in [*there, *(name for name in here if name not in there)]
            if name not in MAY_CHANGE and there.get(name, "absent") != here.get(name, "absent")
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a run with another config ({'; '.join(changed)}); "
                "use the same, give another --run, or --fresh to start over"
            )


def _plain(resolved: Mapping[str, Any]) -> dict[str, Any]:
    return yaml.safe_load(yaml.safe_dump(dict(resolved)))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _free_name(path: Path) -> Path:
    """`path` if nothing is there, else the first of `path`.1, `path`.2, ... that is free."""
    names = (path.with_name(f"{path.name}.{number}") if number else path for number in range(1_000_000))
    return next(name for name in names if not name.exists())
