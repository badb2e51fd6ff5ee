"""Disk space: checks it before writing, and recognises a full disk while writing."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from training.units import show_size

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class DiskFull(ValueError):
    """A file does not fit on the disk, into the quota, or into the largest file size allowed."""


def free_bytes(folder: Path) -> int:
    """Bytes that the disk of `folder` has left for this user; a quota may be tighter."""
    return shutil.disk_usage(folder).free


def require_disk_space(folder: Path, needed: int, what: str) -> None:
    """Raises DiskFull if the disk of `folder` has less than the `needed` bytes left for `what`."""
    if (free := free_bytes(folder)) < needed:
        raise DiskFull(_message(folder, what, needed, free))


@contextmanager
def raise_disk_full(folder: Path, needed: int, what: str) -> Iterator[None]:
    """Raises DiskFull if `what`, of about `needed` bytes, does not fit: before the block, or if a write in it fails."""
    require_disk_space(folder, needed, what)
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise DiskFull(_message(folder, what, needed, free_bytes(folder), f" ({error})")) from None
        raise


@contextmanager
def ignore_disk_full() -> Iterator[None]:
    """Ignores disk-full errors inside the block. For optional writes."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise


def is_full(error: BaseException) -> bool:
    """Whether an error means a full disk. safetensors wraps the system's error in a text."""
    if isinstance(error, SafetensorError):
        found = re.search(r"\(os error (\d+)\)", str(error))
        return found is not None and int(found[1]) in FULL
    return isinstance(error, OSError) and error.errno in FULL


def append_line(path: Path, line: str) -> bool:
    """Append a line to a text file: all of it or, on a full disk, nothing. Returns whether it was written.

    Raises OSError for a link or a named pipe.
    """
    data = f"{line}\n".encode()
    with ignore_disk_full(), open(path, "ab", buffering=0, opener=_open_no_link) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(data) == len(data):
            return True
        file.truncate(end)
    return False


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _message(folder: Path, what: str, needed: int, free: int, reason: str = "") -> str:
    return (
        f"the disk is full: {folder} has no space for {what}: {show_size(needed)} are needed, {show_size(free)} are "
        f"free{reason}; remove something, or use a larger disk"
    )
