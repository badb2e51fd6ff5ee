"""Whether what a run writes fits on the disk, and what happens where it does not."""

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


class NoRoom(ValueError):
    """What should be written does not fit on the disk, into the quota, or into the largest file allowed."""


def free_bytes(folder: Path) -> int:
    """What the disk of `folder` has left for this user; a quota may be tighter."""
    return shutil.disk_usage(folder).free


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raises NoRoom if the disk of `folder` has less than `needed` bytes left; `what` takes them."""
    if (free := free_bytes(folder)) < needed:
        raise NoRoom(_message(folder, what, needed, free))


@contextmanager
def room(folder: Path, needed: int, what: str) -> Iterator[None]:
    """Write `what`, of about `needed` bytes, to `folder`. Raises NoRoom, before or meanwhile, if it does not fit."""
    require_room(folder, needed, what)
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise NoRoom(_message(folder, what, needed, free_bytes(folder), f" ({error})")) from None


def is_full(error: BaseException) -> bool:
    """Whether writing failed because nothing more fits. safetensors wraps the system's error in a text."""
    if isinstance(error, SafetensorError):
        found = re.search(r"\(os error (\d+)\)", str(error))
        return found is not None and int(found[1]) in FULL
    return isinstance(error, OSError) and error.errno in FULL


@contextmanager
def unless_full() -> Iterator[None]:
    """For what a run can do without: where the disk is full, the rest of the block is left out."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise


def append_line(path: Path, line: str) -> bool:
    """Append a line to a text file, all of it or, where the disk is full, nothing; whether it was written."""
    data = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(data) == len(data):
                return True
            file.truncate(end)
    except OSError as error:
        if not is_full(error):
            raise
    return False


def _message(folder: Path, what: str, needed: int, free: int, reason: str = "") -> str:
    return (
        f"no room in {folder} for {what}: {show_size(needed)} are needed, {show_size(free)} are free{reason}; "
        "remove something, or give a --run on a larger disk"
    )
