"""The folder of one run: opens it, and decides whether the run is new, resumed or finished.

```
RUN/config.yaml    all settings of the run                  RUN/samples/     files of evaluations
RUN/log.jsonl      one JSON object per line                 RUN/model/       the averaged model, enough to use it
RUN/checkpoints/   see training/checkpoint.py               RUN/tensorboard/ if it is among the trackers
RUN/snapshots/     see training/snapshots.py                RUN/best/        the model with the best leading figure
RUN/lock           of the process that uses the folder  RUN/report.html  see training/run_report.py
```
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from storage.read import is_regular
from storage.write import recover_folder, write_text
from training import checkpoint, log
from training.checkpoint import Checkpoint
from training.disk_space import raise_disk_full
from training.lock import Holder, RunLock
from training.processes import on_main
from training.settings import changeable, show
from training.snapshots import remove_snapshots
from training.step import TrainingSettings
from training.yaml_file import FORMAT_VERSION, flat, read_settings, write_yaml

BEFORE = {"lock", "tmp-config.yaml"}
"""Files that may exist in a new run folder before config.yaml is written."""

Status = Literal["new", "resume", "finished"]


class RunFolder:
    """The paths in a run folder. `open` prepares the folder and finds the checkpoint to resume from.

    From `open` to `close`, or the end of the process, no other process can open the folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.samples = self.path / "samples"
        self.model = self.path / "model"
        self.best = self.path / "best"
        self.tensorboard = self.path / "tensorboard"
        self.resolved: dict[str, Any] = {}  # this and the following are set by `open`
        self.status: Status | None = None
        self.resume_from: Checkpoint | None = None
        self._lock = RunLock(self.path / "lock")  # held by the main process

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a run to resume. All its checkpoints may still turn out to be damaged."""
        return bool(checkpoint.list_folders(self.checkpoints))

    def open(self, settings: TrainingSettings, resolved: Mapping[str, Any], fresh: bool = False) -> Status:
        """Prepare the folder for a run; to be called on every process. `resolved` are all its settings, plain values.

        "new": there is no checkpoint; "resume": `resume_from` is the newest valid checkpoint; "finished": it is the
        last one of the run. `fresh` first moves an existing run aside, unless this is the same run, restarted by its
        launcher. Raises ValueError if the folder is not a run folder, if another process uses it, if its settings
        differ in a field that may not change, if it has checkpoints and none is valid, or if the disk is full.
        """
        self.resolved = dict(resolved)
        self.status, self.resume_from = on_main(lambda: self._open(settings, fresh))
        return self.status

    def record(self) -> None:
        """Write config.yaml. Of a resumed run this is after its checkpoint was loaded, which may be refused."""
        write_text(self.config, write_yaml({"format_version": FORMAT_VERSION} | self.resolved))

    def close(self) -> None:
        """Release the folder for other processes."""
        self._lock.release()

    def _open(self, settings: TrainingSettings, fresh: bool) -> tuple[Status, Checkpoint | None]:
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file, not a run folder; give another --run")
        if self.path.exists() and not self.config.is_file() and {path.name for path in self.path.iterdir()} - BEFORE:
            raise ValueError(f"{self.path} is not a run folder (no config.yaml); give another --run")
        self._acquire_lock()
        try:
            if fresh and self.config.is_file() and not self._restarted():
                self._move_aside()
            with raise_disk_full(self.path, 0, "a run"):
                return self._prepare(settings)
        except BaseException:
            self.close()
            raise

    def _acquire_lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            log.print_line(f"the file system of {self.path} has no locks; make sure that no second run writes to it")

    def _restarted(self) -> bool:
        """Whether the launcher of this process began the run in the folder, and now restarts it."""
        before, now = self._lock.before, Holder.this()
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        return again and before is not None and (before.host, before.parent) == (now.host, now.parent)

    def _move_aside(self) -> None:
        moved = _free_name(self.path)
        os.rename(self.path, moved)  # while the lock is held: no other process uses it
        self._lock.release()
        log.print_line(f"moved the old run to {moved}")
        self._acquire_lock()

    def _prepare(self, settings: TrainingSettings) -> tuple[Status, Checkpoint | None]:
        recover_folder(self.model)
        recover_folder(self.best)
        checkpoint.clean(self.checkpoints)
        self._set_strangers_aside()
        if checkpoint.list_folders(self.checkpoints):
            self._check_config(changeable(settings))
        elif any(log.read(self.log)):
            raise ValueError(
                f"{self.path} has a log.jsonl but no checkpoint; restore {self.checkpoints} from a copy, "
                "or --fresh to start over"
            )
        newest, damaged = checkpoint.newest(self.checkpoints)
        for folder, problem in damaged.items():
            moved = set_aside(folder)
            log.print_line(f"checkpoint {folder.name} is damaged: {problem}; moved to {moved}, using the previous one")
        self.checkpoints.mkdir(exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        if settings.ema.power_widths:
            self.snapshots.mkdir(exist_ok=True)
        if newest is None:
            self.record()
            self.log.unlink(missing_ok=True)
            remove_snapshots(self.snapshots, after_images=0)
            if os.path.lexists(self.best):
                log.print_line(f"{self.best} is of an earlier run; moved to {set_aside(self.best)}")
            return "new", None
        log.truncate(self.log, newest.images)
        remove_snapshots(self.snapshots, newest.images)
        done = newest.images >= settings.train.images and log.evaluated(self.log, newest.images)
        return ("finished" if done else "resume"), newest

    def _set_strangers_aside(self) -> None:
        """Move what is not a file or folder of this class out of the way of those that will be written."""
        if os.path.lexists(self.log) and not is_regular(self.log):
            log.print_line(f"{self.log} is not a regular file; moved to {set_aside(self.log)}")
        if not self.checkpoints.is_dir():
            return
        own = set(checkpoint.list_folders(self.checkpoints))
        for path in sorted(self.checkpoints.iterdir()):
            if path in own or path.name.startswith((".", "damaged-")):
                continue
            if checkpoint.is_name(path.name):  # a file where a checkpoint will be written
                log.print_line(f"checkpoint {path.name} is not a folder; moved to {set_aside(path)}")
            else:
                log.print_line(f"{path} is not a checkpoint and is ignored")

    def _check_config(self, may_change: Collection[str]) -> None:
        (old, _), new = read_settings(self.config, is_record=True), dict(flat(self.resolved))
        differ = [name for name in old | new if name not in may_change and old.get(name) != new.get(name)]
        other_kinds = tuple(name.removesuffix("kind") for name in differ if name.endswith(".kind"))
        changed = [
            f"{name}={_shown(old, name)} in the folder, {_shown(new, name)} now"
            for name in differ
            if name.endswith(".kind") or not name.startswith(other_kinds)
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a run with other settings ({'; '.join(changed)}); "
                f"give the same settings, which are in --config {self.config}; or go on with others in a new run, "
                f"--run NEW --init {self.path}; or --fresh to start over"
            )


def _shown(settings: Mapping[str, Any], name: str) -> str:
    """A setting as it is written in the YAML file."""
    return show(settings[name], flag=False) if name in settings else "absent"


def set_aside(path: Path) -> str:
    """Rename `path` to `damaged-NAME`, or that with a number; returns the new name."""
    moved = _free_name(path.with_name(f"damaged-{path.name}"))
    os.rename(path, moved)
    return moved.name


def _free_name(path: Path) -> Path:
    """`path` if nothing is there, else the first of `path`.1, `path`.2, ... that is free."""
    names = (path.with_name(f"{path.name}.{number}") if number else path for number in range(1_000_000))
    return next(name for name in names if not os.path.lexists(name))
