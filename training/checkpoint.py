"""Checkpoints that are whole or absent: safetensors and JSON, hashed, written beside and renamed.

`checkpoints/<images seen, 9 digits>/` holds one safetensors file per group of tensors and `state.json`, written last:
where in the run it was written and with what (`Facts`), and size and SHA-256 of every other file and of itself. A
folder counts only if all of it is as that says, and there is nothing else in it.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.files import empty_folder, sync, write_text

FORMAT_VERSION = 2
STATE = "state.json"


def _machine() -> dict[str, str | int]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Where in a run a checkpoint was written, and with what."""

    images: int
    """images seen"""
    update: int
    batch: int
    """images per update"""
    processes: int
    data: str
    """fingerprint of the images"""
    config: Mapping[str, Any]
    """the resolved config of the run, in plain types"""
    machine: Mapping[str, str | int] = field(default_factory=_machine)
    """versions of python and torch, and threads per process"""
    written: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """when, ISO 8601"""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Facts):
    """A checkpoint on the disk."""

    folder: Path


def stage(root: Path, tensors: Mapping[str, Mapping[str, Tensor]], facts: Facts) -> Path:
    """Write a checkpoint into a temporary folder below `root` and wait until it is on the disk; `publish` renames it.

    `tensors` are one file per entry. If writing fails, on a full disk for instance, what was written is removed again.
    """
    folder = empty_folder(root / f"tmp-{_name(facts.images)}")
    try:
        files = {}
        for name, group in tensors.items():
            path = folder / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, path)
            sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        state = {"format_version": FORMAT_VERSION, **asdict(facts), "files": files}
        write_text(folder / STATE, _render(state | {"sha256": _sha256_of_state(state)}))
        return folder
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(staged: Path) -> Path:
    """Give a staged checkpoint its name: from here on it counts, unless that cannot be flushed to the disk."""
    folder = staged.with_name(staged.name.removeprefix("tmp-"))
    os.rename(staged, folder)
    try:
        sync(folder.parent)
    except OSError:
        os.rename(folder, staged)
        raise
    return folder


def prune(root: Path, keep: int, for_good: Callable[[int], bool] = lambda images: False) -> None:
    """Remove all but the `keep` newest checkpoints and those after a number of images that is `for_good`."""
    assert keep >= 2, "one checkpoint may turn out to be damaged"
    for folder in list_folders(root)[keep:]:
        if for_good(int(folder.name)):
            continue
        doomed = folder.with_name(f"tmp-{folder.name}")  # half a checkpoint must not look like one
        os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)  # what a reader keeps open, on some disks, is for the next `clean`


def clean(root: Path) -> None:
    """Remove what an interrupted `stage` or `prune` left behind."""
    for folder in root.glob("tmp-*"):
        shutil.rmtree(folder)


def list_folders(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, newest first, whatever their state."""
    found = [path for path in root.glob("*") if path.is_dir() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def verify(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`; None if every byte is as it was written, and nothing was added."""
    try:
        text, state = _read_state(folder)
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in state["files"].items()}
        if state["format_version"] != FORMAT_VERSION:
            return f"{STATE} has format_version {state['format_version']}, this program reads {FORMAT_VERSION}"
        if text != _render(state) or state["sha256"] != _sha256_of_state(state):
            return f"{STATE} has changed since it was written (SHA-256)"
        if folder.name != _name(state["images"]):
            return f"{STATE} is of the checkpoint {_name(state['images'])}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE} cannot be read ({type(error).__name__}: {error})"
    added = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {STATE, *files}
    if added:
        return f"{min(added)} does not belong to it, {STATE} does not list it"
    with ThreadPoolExecutor() as threads:  # hashing does not hold Python's lock
        problems = threads.map(lambda name: _verify_file(folder / name, *files[name]), files)
        return next((problem for problem in problems if problem), None)


def _verify_file(path: Path, size: int, digest: str) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    if sha256(path) != digest:
        return f"{path.name} has changed since it was written (SHA-256)"
    return None


def newest(root: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint below `root` that verifies, and what is wrong with each newer one.

    None if there is none at all. Raises ValueError if there are some and none verifies.
    """
    damaged: dict[Path, str] = {}
    for folder in list_folders(root):
        problem = verify(folder)
        if problem is None:
            _, state = _read_state(folder)
            return Checkpoint(folder=folder, **{fact.name: state[fact.name] for fact in fields(Facts)}), damaged
        damaged[folder] = problem
    if damaged:
        listed = "; ".join(f"{folder.name}: {problem}" for folder, problem in damaged.items())
        raise ValueError(
            f"no checkpoint in {root} is intact ({listed}); restore one from a copy, or --fresh to start over"
        )
    return None, damaged


def read_tensors(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint on the CPU, by file and name. The caller has verified it."""
    _, state = _read_state(checkpoint.folder)
    return {name.removesuffix(".safetensors"): load_file(checkpoint.folder / name) for name in state["files"]}


def changes(before: Facts, now: Facts) -> list[str]:
    """What differs between a checkpoint and the run that goes on from it, with what follows; a line for each."""
    micro = [facts.config["train"]["micro_batch"] or "null" for facts in (before, now)]
    rows = [
        ("processes", before.processes, now.processes, "dropout, batch norms and rounding"),
        ("train.micro_batch", *micro, "dropout, batch norms and rounding"),
        *((name, before.machine[name], now.machine[name], "rounding") for name in ("torch", "threads")),
    ]
    return [
        f"{name}: {there} when it was saved, {here} now; same images and noise, other {effect}"
        for name, there, here, effect in rows
        if there != here
    ]


def _name(images: int) -> str:
    return f"{images:09d}"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_state(state: Mapping[str, Any]) -> str:
    content = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _render(state: Mapping[str, Any]) -> str:
    return json.dumps(state, indent=2) + "\n"


def _read_state(folder: Path) -> tuple[str, dict[str, Any]]:
    """`state.json` as text and as what it says."""
    text = (folder / STATE).read_bytes().decode()
    return text, json.loads(text)
