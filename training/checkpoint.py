"""Checkpoints that are whole or absent: safetensors and JSON, hashed, written beside and renamed.

`checkpoints/<images seen, 9 digits>/` holds one safetensors file per group of tensors and `state.json`, written last:
the update, and size and SHA-256 of every other file and of itself. A folder counts only if all of it is as that says.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.files import empty_folder, sync, write_text

FORMAT_VERSION = 1
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk, and where in the run it was written."""

    folder: Path
    images: int
    """images seen"""
    update: int
    processes: int
    data: str
    """fingerprint of the images"""


def stage(
    root: Path, tensors: Mapping[str, Mapping[str, Tensor]], *, images: int, update: int, processes: int, data: str
) -> Path:
    """Write a checkpoint into a temporary folder below `root` and wait until it is on the disk; `publish` renames it.

    `tensors` are one file per entry; the rest is as in `Checkpoint`. If writing fails, on a full disk for instance,
    what was written is removed again.
    """
    folder = empty_folder(root / f"tmp-{images:09d}")
    try:
        files = {}
        for name, group in tensors.items():
            path = folder / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, path)
            sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        facts = {"images": images, "update": update, "processes": processes, "data": data}
        state = {"format_version": FORMAT_VERSION, **facts, "files": files}
        write_text(folder / STATE, json.dumps(state | {"sha256": _sha256_of_state(state)}, indent=2) + "\n")
        return folder
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(staged: Path) -> Path:
    """Give a staged checkpoint its name: from here on it counts."""
    folder = staged.with_name(staged.name.removeprefix("tmp-"))
    os.rename(staged, folder)
    sync(folder.parent)
    return folder


def prune(root: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints."""
    assert keep >= 2, "one checkpoint may turn out to be damaged"
    for folder in list_folders(root)[keep:]:
        doomed = folder.with_name(f"tmp-{folder.name}")  # half a checkpoint must not look like one
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def clean(root: Path) -> None:
    """Remove what an interrupted `stage` or `prune` left behind."""
    for folder in root.glob("tmp-*"):
        shutil.rmtree(folder)


def list_folders(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, newest first, whatever their state."""
    found = [path for path in root.glob("*") if path.is_dir() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def verify(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`; None if every byte is as it was written."""
    try:
        state = _read_state(folder)
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in state["files"].items()}
        if state["format_version"] != FORMAT_VERSION:
            return f"{STATE} has format_version {state['format_version']}, this program reads {FORMAT_VERSION}"
        if state["sha256"] != _sha256_of_state(state):
            return f"{STATE} has changed since it was written (SHA-256)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE} cannot be read ({type(error).__name__}: {error})"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if sha256(path) != digest:
            return f"{name} has changed since it was written (SHA-256)"
    return None


def newest(root: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint below `root` that verifies, and what is wrong with each newer one.

    None if there is none at all. Raises ValueError if there are some and none verifies.
    """
    damaged: dict[Path, str] = {}
    for folder in list_folders(root):
        problem = verify(folder)
        if problem is None:
            return _checkpoint(folder, _read_state(folder)), damaged
        damaged[folder] = problem
    if damaged:
        listed = "; ".join(f"{folder.name}: {problem}" for folder, problem in damaged.items())
        raise ValueError(
            f"no checkpoint in {root} is intact ({listed}); restore one from a copy, or --fresh to start over"
        )
    return None, damaged


def read_tensors(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint on the CPU, by file and name. The caller has verified it."""
    names = _read_state(checkpoint.folder)["files"]
    return {name.removesuffix(".safetensors"): load_file(checkpoint.folder / name) for name in names}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_state(state: Mapping[str, Any]) -> str:
    content = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def _checkpoint(folder: Path, state: dict[str, Any]) -> Checkpoint:
    return Checkpoint(folder, state["images"], state["update"], state["processes"], state["data"])
