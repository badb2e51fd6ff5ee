"""Writes files and folders atomically: a crash leaves the old version or the new one. Never writes through a link."""

import os
import shutil
import stat
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
    replace_file(path, lambda new: new.write_bytes(text.encode()))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace the file `path` atomically by one that `write` writes; a link is replaced, not followed.

    The permissions are those that the umask gives.
    """
    temporary = path.with_name(f"tmp-{path.name}")
    try:
        mode = create_new(temporary)
        write(temporary)
        temporary.chmod(mode)  # some libraries write files for the owner alone
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def create_new(path: Path) -> int:
    """Create an empty file; returns its permissions. What has its name, such as a link, is removed first."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content, as far as it exists; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def empty_folder(folder: Path) -> Path:
    """Create `folder` anew, empty; returns it. A link of this name is removed, not followed."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def replace_folder(target: Path, fill: Callable[[Path], object]) -> None:
    """Replace the folder `target` by one that `fill` writes, once that is complete and flushed to the disk.

    Two renames, because no single portable operation replaces a folder that is not empty. A crash between them leaves
    the previous folder beside `target`, where `recover_folder` finds it.
    """
    new, old = _beside(target)
    mode = empty_folder(new).stat().st_mode & 0o666  # for files; some libraries write them for the owner alone
    try:
        fill(new)
        for path in [*sorted(new.rglob("*"), reverse=True), new]:  # what a folder holds comes before it
            if path.is_file() and not path.is_symlink():
                path.chmod(mode)
            sync(path)
        if os.path.lexists(target):
            os.rename(target, old)
        os.rename(new, target)
        sync(target.parent)
    except Exception:
        recover_folder(target)
        raise
    remove(old)


def recover_folder(target: Path) -> None:
    """Undo an interrupted `replace_folder`."""
    new, old = _beside(target)
    if os.path.lexists(old) and not os.path.lexists(target):
        os.rename(old, target)
    remove(old)
    remove(new)


def _beside(target: Path) -> tuple[Path, Path]:
    """The folders beside `target` for its next and its previous content."""
    return target.with_name(f"tmp-new-{target.name}"), target.with_name(f"tmp-old-{target.name}")
