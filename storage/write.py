"""Writes files and folders atomically: a crash leaves the old version or the new one. Never writes through a link."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path


def expand_home(name: str, path: Path) -> Path:
    """`path` with a leading ~ as the home folder. Raises ValueError, with the setting `name`, if that is unknown."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{name} {str(path)!r} starts with a home folder that is unknown; give a path") from None


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


def replace_file(path: Path, write: Callable[[Path], object], flush: bool = True) -> None:
    """Replace the file `path` atomically by one that `write` writes; a link is replaced, not followed.

    The permissions are those that the umask gives. Without `flush` the file may be lost in a power failure. Raises
    ValueError, before anything is written, if `path` is a folder.
    """
    if path.is_dir() and not path.is_symlink():
        raise ValueError(f"{path} is a folder, but a file of this name is to be written; move it away")
    temporary = path.with_name(f"tmp-{path.name}")
    try:
        mode = create_new(temporary)
        write(temporary)
        temporary.chmod(mode)  # some libraries write files for the owner alone
        if flush:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if flush:
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
    """Replace the folder `target` by one that `fill` writes, once that is complete and flushed to the disk."""
    new = empty_folder(staging_folder(target))
    try:
        fill(new)
        publish_folder(target)
    except Exception:
        recover_folder(target)
        raise


def staging_folder(target: Path) -> Path:
    """The folder beside `target` in which its next content is written."""
    return target.with_name(f"tmp-new-{target.name}")


def publish_folder(target: Path) -> None:
    """Flush the staging folder of `target` to the disk, and rename it to `target`. The previous content is removed.

    Two renames, because no single portable operation replaces a folder that is not empty. A crash between them leaves
    the previous folder beside `target`, where `restore_folder` finds it.
    """
    new, old = staging_folder(target), _previous(target)
    mode = new.stat().st_mode & 0o666  # for files; some libraries write them for the owner alone
    for path in [*sorted(new.rglob("*"), reverse=True), new]:  # what a folder holds comes before it
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
        sync(path)
    if os.path.lexists(target):
        os.rename(target, old)
    try:
        os.rename(new, target)
    except Exception:
        restore_folder(target)
        raise
    sync(target.parent)
    remove(old)


def restore_folder(target: Path) -> None:
    """Restore the previous content of `target` after a crash in `publish_folder`; the staging folder stays."""
    old = _previous(target)
    if os.path.lexists(old) and not os.path.lexists(target):
        os.rename(old, target)
    remove(old)


def recover_folder(target: Path) -> None:
    """Undo an interrupted `replace_folder`."""
    restore_folder(target)
    remove(staging_folder(target))


def _previous(target: Path) -> Path:
    return target.with_name(f"tmp-old-{target.name}")
