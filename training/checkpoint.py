"""Atomic checkpoints: safetensors and JSON with hashes, written under a temporary name and renamed.

`checkpoints/<images seen, 9 digits>/` holds one safetensors file per group of tensors and `state.json`, written last:
the metadata (`CheckpointMetadata`), and size and SHA-256 of every other file and of itself. A checkpoint is valid only
if every file matches, none is missing, and none was added.
"""

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import residual
from residual import native
from residual.weights.config import convert, foreign_version
from storage.read import parse_json, read_text
from storage.write import create_new, empty_folder, remove, sync, write_text
from training.config import TrainConfig

FORMAT_VERSION = 3
STATE = "state.json"


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Versions of this project (with its git commit, if it is a checkout), Python and PyTorch; device, threads, and
    whether the kernels of the CPU are used."""
    return {
        "version": residual.__version__,
        "commit": _commit() or "unknown",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "kernels": "on" if device.type == "cpu" and native.library is not None else "off",
    }


@functools.cache
def _commit() -> str | None:
    """The commit of this checkout, with -dirty if files differ from it; None without a checkout or without git."""
    root = Path(__file__).parents[1]
    git = ["git", "--git-dir", str(root / ".git"), "--work-tree", str(root)]
    try:
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """The state of a run when a checkpoint was written, and what it was written with."""

    images: int
    """images seen"""
    update: int
    batch: int
    """images per update"""
    micro_batch: int | None
    """as in `TrainConfig`"""
    processes: int
    data: str
    """fingerprint of the images, and of the weights that the task builds on, if any"""
    config: Mapping[str, Any]
    """all settings of the run, in plain types"""
    machine: Mapping[str, str | int]
    """what computed it, see `describe_machine`"""
    unlogged_updates: int = 0
    """updates since the last line of the log"""
    unlogged_sums: tuple[tuple[float, float], ...] = ()
    """loss and gradient norm, summed over these updates, of each process"""
    skipped_in_a_row: int = 0
    """the last updates, as far as they were skipped; see `Step.update`"""
    went_back: int = 0
    """the number of updates when the run went back to an earlier checkpoint; 0: it never did"""
    written: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """when, ISO 8601"""


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("images", "update", "batch", "processes"), (int,)),
    **dict.fromkeys(("unlogged_updates", "skipped_in_a_row", "went_back"), (int,)),
    "micro_batch": (int, type(None)),
    **dict.fromkeys(("data", "written"), (str,)),
    **dict.fromkeys(("config", "machine"), (dict,)),
    "unlogged_sums": (list,),
}
"""of the metadata in state.json"""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointMetadata):
    """A checkpoint on disk."""

    folder: Path


def stage(root: Path, tensors: Mapping[str, Mapping[str, Tensor]], metadata: CheckpointMetadata) -> Path:
    """Write a checkpoint into a temporary folder below `root` and flush it to the disk; `publish` renames it.

    `tensors` has one entry per file. If writing fails, such as on a full disk, the temporary folder is removed.
    """
    folder = empty_folder(root / f"tmp-{metadata.images:09d}")
    try:
        files = {}
        for name, group in tensors.items():
            path = folder / f"{name}.safetensors"
            mode = create_new(path)
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, path)
            path.chmod(mode)  # safetensors writes files for the owner alone
            sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        state = {"format_version": FORMAT_VERSION, **asdict(metadata), "files": files}
        write_text(folder / STATE, _render(state | {"sha256": _sha256_of_state(state)}))
        return folder
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(staged: Path) -> Path:
    """Rename a staged checkpoint, which makes it valid. Undone if the renaming cannot be flushed to the disk."""
    folder = staged.with_name(staged.name.removeprefix("tmp-"))
    os.rename(staged, folder)
    try:
        sync(folder.parent)
    except OSError:
        os.rename(folder, staged)
        raise
    return folder


def prune(root: Path, keep_last: int, is_permanent: Callable[[int], bool] = lambda images: False) -> None:
    """Remove all but the `keep_last` newest checkpoints and those after a number of images that `is_permanent`."""
    assert keep_last >= 2, "one checkpoint may turn out to be damaged"
    for folder in list_folders(root)[keep_last:]:
        if is_permanent(int(folder.name)):
            continue
        temporary = folder.with_name(f"tmp-{folder.name}")  # a half-removed checkpoint must not look like one
        os.rename(folder, temporary)
        remove(temporary)  # a file that a reader keeps open is left to the next `clean`


def kept_checkpoints(config: TrainConfig) -> str:
    """How many checkpoints remain at the end of the run, for a message."""
    if config.keep_every_images is None:
        return f"{config.keep_last} are kept"
    permanent = 1 + config.updates * config.batch // config.keep_every_images  # the initial one included
    return f"{config.keep_last} are kept, and {permanent:,} permanently"


def clean(root: Path) -> None:
    """Remove what an interrupted `stage` or `prune` left."""
    for path in root.glob("tmp-*"):
        remove(path)


def is_name(name: str) -> bool:
    """Whether a checkpoint folder can have this name: the images seen, in nine digits or more."""
    return re.fullmatch("[0-9]{9,}", name) is not None


def list_folders(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, newest first, valid or not."""
    found = [path for path in root.glob("*") if path.is_dir() and is_name(path.name)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def verify(folder: Path) -> str | None:
    """The problem with the checkpoint in `folder`; None if every byte is as it was written, and nothing was added."""
    try:
        text = read_text(folder / STATE)
        state = parse_json(text)
        files = {Path(name).name: (entry["bytes"], entry["sha256"]) for name, entry in state["files"].items()}
        if state["format_version"] != FORMAT_VERSION:
            version = foreign_version(state["format_version"], FORMAT_VERSION)
            return f"{STATE} has {version}. Continue the run with the version that wrote it"
        if text != _render(state) or state["sha256"] != _sha256_of_state(state):
            return f"{STATE} has changed since it was written (SHA-256)"
        if folder.name != (name := f"{_metadata(state).images:09d}"):
            return f"{STATE} belongs to the checkpoint {name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{STATE} cannot be read ({type(error).__name__}: {error})"
    added = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {STATE, *files}
    if added:
        return f"{min(added)} is not listed in {STATE}"
    with ThreadPoolExecutor() as threads:  # hashing releases the GIL
        problems = threads.map(lambda name: _verify_file(folder / name, *files[name]), files)
        return next((problem for problem in problems if problem), None)


def _metadata(state: Mapping[str, Any]) -> CheckpointMetadata:
    """The metadata in state.json. Raises KeyError or TypeError for a field that is missing or of another type."""
    added = {"unlogged_updates": 0, "unlogged_sums": [], "skipped_in_a_row": 0, "went_back": 0}
    state = {**added, **state}  # checkpoints of earlier commits lack them
    for name, types in _TYPES.items():
        value = state[name]
        if type(value) not in types or (isinstance(value, int) and value < 0):
            raise TypeError(f"{name} is {value!r}")
    sums = convert(state["unlogged_sums"], tuple[tuple[float, float], ...])
    return CheckpointMetadata(**{name: state[name] for name in _TYPES} | {"unlogged_sums": sums})


def _verify_file(path: Path, size: int, digest: str) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    if sha256(path) != digest:
        return f"{path.name} has changed since it was written (SHA-256)"
    return None


def newest(root: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest valid checkpoint below `root`, and the problem of each newer one.

    None: there is no checkpoint. Raises ValueError if there are some and none is valid.
    """
    damaged: dict[Path, str] = {}
    for folder in list_folders(root):
        problem = verify(folder)
        if problem is None:
            return _read(folder), damaged
        damaged[folder] = problem
    if damaged:
        listed = "; ".join(f"{folder.name}: {problem}" for folder, problem in damaged.items())
        raise ValueError(
            f"no checkpoint in {root} is intact ({listed}); restore one from a copy, or --fresh to start over"
        )
    return None, damaged


def newest_before(root: Path, update: int) -> Checkpoint | None:
    """The newest valid checkpoint of fewer updates, if there is one."""
    intact = (_read(folder) for folder in list_folders(root) if verify(folder) is None)
    return next((found for found in intact if found.update < update), None)


def _read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, which must have been verified."""
    return Checkpoint(folder=folder, **vars(_metadata(parse_json(read_text(folder / STATE)))))


def read_tensors(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint on the CPU, by file and name. The caller must have verified it."""
    return {path.stem: load_file(path) for path in checkpoint.folder.glob("*.safetensors")}


def changes(before: CheckpointMetadata, now: CheckpointMetadata) -> list[str]:
    """Differences between a checkpoint and the run that resumes from it, and their effects; one line each."""
    effect = "dropout, batch norms and rounding"
    rows = [
        ("processes", before.processes, now.processes, effect),
        ("train.micro_batch", before.micro_batch or "null", now.micro_batch or "null", effect),
        *(
            (name, before.machine[name], now.machine[name], "dropout and rounding" if name == "kernels" else "rounding")
            for name in ("torch", "threads", "device", "kernels")
            if name in before.machine
        ),
    ]
    return [
        f"{name}: {old} when saved, {new} now; same images and noise, other {effect}"
        for name, old, new, effect in rows
        if old != new
    ]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_state(state: Mapping[str, Any]) -> str:
    content = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _render(state: Mapping[str, Any]) -> str:
    return json.dumps(state, indent=2) + "\n"
