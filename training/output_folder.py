"""The folder that a script writes with a model: complete or absent, and never mixed with other files."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from residual.names import shorten
from storage.read import is_regular, read_json
from storage.write import publish_folder, remove, restore_folder, staging_folder, write_text
from training.lock import RunLock
from training.progress import print_line

OF_DESKTOPS = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""files that file managers add to folders"""
OF_TRAINING = ("model", "best", "checkpoints", "snapshots")
"""parts of a run folder that training replaces or removes as a whole"""


class OutputFolder:
    """A folder that a script fills with files made with a model, and that it replaces as a whole.

    The files are written to a staging folder beside it, which is renamed once it is complete. So a command that fails
    or is killed leaves the folder as it was. `record` is the name of a JSON file with the facts about the command. It
    also marks a folder that the script may replace. `names` are the files and folders that the script may write.
    """

    def __init__(self, path: Path, model: str, record: str, names: Collection[str]) -> None:
        self.path, self.record, self.names = path, record, {record, *names}
        self._home = model_home(model)
        self.model = model if self._home is None else str(self._home)
        """the model: its folder, or its name on the hub"""
        self._lock: RunLock | None = None

    @property
    def staging(self) -> Path:
        """The folder beside it in which the files are written."""
        return staging_folder(self.path)

    def check(self) -> None:
        """Raises ValueError if the folder cannot be written, or may not be replaced.

        It may be replaced if it is absent, empty, or holds an earlier output of the same script with the same model
        and nothing else. Raises OSError if it may not be read.
        """
        if self.path.is_symlink():
            raise self._refused(f"is a link to {os.readlink(self.path)!r}; give that folder itself")
        for path in (self.path, *self.path.parents):
            if os.path.lexists(path) and not path.is_dir():
                raise self._refused(f"cannot be a folder, because {str(path)!r} is not one; give another --out")
        real = _real(self.path)
        if real in (here := Path.cwd(), *here.parents):
            raise self._refused("is or holds the current folder; give a new folder below it")
        if self._home is not None:
            if real in (self._home, *self._home.parents):
                raise self._refused("is or holds the folder of the model; give a new folder")
            for name in OF_TRAINING if _is_run(self._home) else ():
                if (self._home / name) in (real, *real.parents):
                    raise self._refused("belongs to training, which replaces it; give another --out")
        if self.path.is_dir():
            if os.path.ismount(self.path):
                raise self._refused("is a mount point, which cannot be replaced; give a folder below it")
            self._check_content(real)

    def _check_content(self, real: Path) -> None:
        found = set(os.listdir(self.path)) - OF_DESKTOPS
        if not found:
            return
        others = sorted(found - self.names) if self.record in found else sorted(found)
        if others:
            listed = shorten([repr(name) for name in others], 3)
            raise self._refused(f"holds files that this command did not write ({listed}); give another --out")
        try:
            model = read_json(self.path / self.record).get("model_folder")
        except ValueError as error:
            raise self._refused(f"holds an unreadable record ({error}); remove it, or give another --out") from None
        if model != self.model and (self._home is None or self._home not in real.parents):
            raise self._refused(f"holds the output of another model, {model!r}; remove it, or give another --out")

    def begin(self, facts: Mapping[str, Any], keep: Collection[str] = (), may_differ: Collection[str] = ()) -> Path:
        """Locks and prepares the staging folder, with the record of `facts`; returns it. For the main process only.

        What an interrupted command with the same facts, those of `may_differ` aside, left under the names `keep`
        stays. Everything else that was left there is removed, with a message. Raises ValueError if another process
        writes the same folder.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(self.staging):
            self.staging.mkdir()  # before the lock, whose errors do not name the file
        run_lock = RunLock(self.path.with_name(f"tmp-lock-{self.path.name}"), self.path, flag="--out")
        run_lock.acquire()
        self._lock = run_lock
        restore_folder(self.path)
        if self.staging.is_symlink() or not self.staging.is_dir():
            remove(self.staging)
            self.staging.mkdir()
        kept = keep if self._continues(facts, may_differ) else ()
        for path in self.staging.iterdir():
            if path.name in keep and path.name not in kept:
                print_line(f"removed {path}, which another command left unfinished")
            if path.name not in kept or path.is_symlink():
                remove(path)
        write_text(self.staging / self.record, json.dumps(dict(facts), indent=2) + "\n")
        return self.staging

    def _continues(self, facts: Mapping[str, Any], may_differ: Collection[str]) -> bool:
        """Whether the staging folder is from a command with these facts."""
        try:
            left = read_json(self.staging / self.record)
        except (ValueError, OSError):
            return False
        now = json.loads(json.dumps(dict(facts)))
        return all(left.get(name) == now.get(name) for name in {*left, *now} - set(may_differ))

    def publish(self, facts: Mapping[str, Any]) -> None:
        """Replaces the folder by the staging folder, with the record of `facts`."""
        write_text(self.staging / self.record, json.dumps(dict(facts), indent=2) + "\n")
        publish_folder(self.path)
        self.leave()

    def leave(self, discard: bool = False) -> None:
        """Releases the lock; with `discard` the staging folder is removed."""
        if self._lock is not None:
            if discard:
                remove(self.staging)
            self._lock.release()
            self._lock.path.unlink(missing_ok=True)
            self._lock = None

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"out={str(self.path)!r} {reason}")


def model_home(model: str) -> Path | None:
    """The folder of a run or of a model, without links; RUN for RUN/model and RUN/best; None for a repository."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    real = _real(folder)
    return real.parent if real.name in ("model", "best") and _is_run(real.parent) else real


def default_folder(model: str, name: str) -> Path:
    """Where a script writes by default: `name` in the folder of the run or the model.

    For a folder that may not be written and for a repository of the hub it is a folder NAME-MODEL in the current one.
    """
    home = model_home(model)
    if home is not None and os.access(home, os.W_OK):
        return (Path(model).parent if home != _real(Path(model)) else Path(model)) / name
    return Path(f"{name}-{(home or Path(model)).name}")


def weights_sha256(net: nn.Module) -> str:
    """SHA-256 of all weights, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_run(folder: Path) -> bool:
    return is_regular(folder / "config.yaml")
