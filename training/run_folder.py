"""The folder of one run, and whether the same command starts, resumes or has finished it.

```
RUN/config.yaml    the resolved config of the run           RUN/samples/     what evaluations drew
RUN/log.jsonl      one JSON object per line                 RUN/model/       the averaged model, enough to sample
RUN/checkpoints/   see training/checkpoint.py               RUN/tensorboard/ if it is among the trackers
RUN/lock           of the process that is at work here
```
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from training import checkpoint, files, log
from training.accelerator import on_main
from training.checkpoint import Checkpoint
from training.lock import Holder, RunLock
from training.room import room
from training.run import FORMAT_VERSION
from training.settings import flat
from training.yaml_file import read_yaml, write_yaml

BEFORE = {"lock", "tmp-config.yaml"}
"""what may lie in a folder that was to become a run's, before its config.yaml does"""

Status = Literal["new", "resume", "finished"]


class RunFolder:
    """Names of what lies in a run folder; `open` prepares it, and finds the checkpoint to go on from.

    From `open` to `close`, or the end of the process, no other process can open it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.model = self.path / "model"
        self.tensorboard = self.path / "tensorboard"
        self.resolved: dict[str, Any] = {}  # this and the following are set by `open`
        self.status: Status | None = None
        self.start: Checkpoint | None = None
        self._lock = RunLock(self.path / "lock")  # held by the main process

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a run to go on with; its newest checkpoint may still turn out to be damaged."""
        return bool(checkpoint.list_folders(self.checkpoints))

    def open(self, resolved: Mapping[str, Any], may_change: Collection[str] = (), fresh: bool = False) -> Status:
        """Prepare the folder for a run with the plain, YAML-able config `resolved`; to be called on every process.

        "new": nothing to go on from; "resume": `start` is the newest intact checkpoint; "finished": it is the last one.
        `fresh` moves an existing run aside first, unless that is this very run, started again by its launcher. Raises
        ValueError if the folder is not a run's, if another process is at work in it, if its config differs in more than
        the fields that `may_change` (dotted names), if it has checkpoints and none is intact, or if the disk is full.
        """
        self.resolved, self._may_change = dict(resolved), frozenset(may_change)
        self.status, self.start = on_main(lambda: self._open(fresh))
        return self.status

    def close(self) -> None:
        """Let others open the folder."""
        self._lock.release()

    def _open(self, fresh: bool) -> tuple[Status, Checkpoint | None]:
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file, not a run folder; give another --run")
        if self.path.exists() and not self.config.is_file() and {path.name for path in self.path.iterdir()} - BEFORE:
            raise ValueError(f"{self.path} is not a run folder (no config.yaml); give another --run")
        self._lock_it()
        try:
            if fresh and self.config.is_file() and not self._restarted():
                self._move_aside()
            with room(self.path, 0, "a run"):
                return self._prepare()
        except BaseException:
            self.close()
            raise

    def _lock_it(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            log.say(f"the file system of {self.path} has no locks; see to it that no second run writes there")

    def _restarted(self) -> bool:
        """Whether the run in the folder was begun by this process's launcher, which now starts it again."""
        before, now = self._lock.before, Holder.this()
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        return again and before is not None and (before.host, before.parent) == (now.host, now.parent)

    def _move_aside(self) -> None:
        moved = _free_name(self.path)
        os.rename(self.path, moved)  # with the lock, which is still held: nobody is at work there
        self._lock.release()
        log.say(f"moved the old run to {moved}")
        self._lock_it()

    def _prepare(self) -> tuple[Status, Checkpoint | None]:
        files.recover_folder(self.model)
        checkpoint.clean(self.checkpoints)
        if checkpoint.list_folders(self.checkpoints):
            self._check_config(self.resolved)
        elif any(log.read(self.log)):
            raise ValueError(
                f"{self.path} has a log.jsonl and no checkpoint; put back what was in {self.checkpoints}, "
                "or --fresh to start over"
            )
        start, damaged = checkpoint.newest(self.checkpoints)
        for folder, problem in damaged.items():
            moved = _free_name(folder.with_name(f"damaged-{folder.name}"))
            os.rename(folder, moved)
            log.say(f"checkpoint {folder.name} is damaged: {problem}; moved to {moved.name}, taking the one before")
        config = write_yaml({"format_version": FORMAT_VERSION} | self.resolved)
        files.write_text(self.config, config)
        self.checkpoints.mkdir(exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        if start is None:
            self.log.unlink(missing_ok=True)
            return "new", None
        log.truncate(self.log, start.images)
        done = start.images >= self.resolved["train"]["images"] and log.evaluated(self.log, start.images)
        return ("finished" if done else "resume"), start

    def _check_config(self, resolved: dict[str, Any]) -> None:
        stored = read_yaml(self.config)
        if stored.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError(
                f"{self.config} has format_version {stored.get('format_version')}, this program reads "
                f"{FORMAT_VERSION}; give another --run, or --fresh to start over"
            )
        there, here = dict(flat(stored)), dict(flat(resolved))
        changed = [
            f"{name}={there.get(name, 'absent')} there, {here.get(name, 'absent')} now"
            for name in [*there, *(name for name in here if name not in there)]
            if name not in self._may_change and there.get(name, "absent") != here.get(name, "absent")
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a run with another config ({'; '.join(changed)}); "
                "use the same, give another --run, or --fresh to start over"
            )


def _free_name(path: Path) -> Path:
    """`path` if nothing is there, else the first of `path`.1, `path`.2, ... that is free."""
    names = (path.with_name(f"{path.name}.{number}") if number else path for number in range(1_000_000))
    return next(name for name in names if not name.exists())
