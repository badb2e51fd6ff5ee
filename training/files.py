"""Atomic writing of files and folders: a crash leaves the old version or the new one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` atomically."""
    temporary = path.with_name(f"tmp-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        os.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def empty_folder(folder: Path) -> Path:
    """Create `folder` anew, empty; returns it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def replace_folder(target: Path, fill: Callable[[Path], object]) -> None:
    """Replace the folder `target` by one that `fill` writes, once that is complete and flushed to the disk.

    Two renames, because no single portable operation replaces a folder that is not empty. A crash between them leaves
    the previous folder beside `target`, where `recover_folder` finds it.
    """
    new, old = _beside(target)
    empty_folder(new)
    try:
        fill(new)
        for path in [*sorted(new.rglob("*"), reverse=True), new]:  # what a folder holds comes before it
            sync(path)
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
        sync(target.parent)
    except Exception:
        recover_folder(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Undo an interrupted `replace_folder`."""
    new, old = _beside(target)
    if old.exists() and not target.exists():
        os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


def _beside(target: Path) -> tuple[Path, Path]:
    """The folders beside `target` for its next and its previous content."""
    return target.with_name(f"tmp-new-{target.name}"), target.with_name(f"tmp-old-{target.name}")
