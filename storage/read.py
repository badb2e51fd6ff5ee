"""Reads files that may be anything: only regular ones are opened, and text and JSON are bounded."""

import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

MAX_TEXT = 64 << 20
"""bytes that a text or JSON file may have"""
SURE = 1 << 20
"""bytes that are asked for in any case; files of some systems state no size"""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def require_regular(path: Path) -> os.stat_result:
    """The status of a regular file, or of the one that a link leads to, without opening it.

    Raises ValueError for anything else, such as a named pipe, whose opening would wait for ever. Raises OSError if
    there is no such file, or if it may not be looked at.
    """
    status = os.stat(path)
    _check(path, status)
    return status


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, or a link to one. False too if it may not be looked at."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a null character in the name
        return False


class BoundedReader(io.BufferedReader):
    """An open file that takes no memory for bytes beyond its end, however many a damaged header states."""

    def read(self, size: int | None = -1, /) -> bytes:
        """The next `size` bytes, or as many as there are; all if it is negative or None."""
        if size is not None and size > SURE:
            size = min(size, max(SURE, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Raises ValueError and OSError as `require_regular` does."""
    require_regular(path)  # before opening, which can have an effect on a device
    handle = os.open(path, _FLAGS)
    try:
        _check(path, os.fstat(handle))  # again: another file may have taken its place
        return BoundedReader(io.FileIO(handle))
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, limit: int | None = MAX_TEXT) -> bytes:
    """The content of a regular file. Raises ValueError if it is not regular, or larger than `limit` bytes."""
    with open_regular(path) as file:
        try:
            data = file.read() if limit is None else file.read(limit + 1)
        except OSError as error:  # such as of a failing disk; it names no file
            raise OSError(error.errno, error.strerror, str(path)) from None
    if limit is not None and len(data) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes, the most that is read of such a file")
    return data


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """The text of a regular file in UTF-8; a byte-order mark is left out. Raises ValueError as `read_bytes` does."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}): save it as UTF-8") from None


def parse_json(text: str | bytes, make_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text. Raises ValueError for any fault, too deep nesting included.

    `make_object` makes an object of its pairs, repeated keys included; None takes the last of them.
    """
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def read_json(path: Path, limit: int = MAX_TEXT) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError if it is not regular, too large, damaged, or holds no object."""
    text = read_text(path, limit)
    try:
        document = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} should hold a JSON object, not a {type(document).__name__}")
    return document


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise ValueError(f"{path} is {kind}, not a regular file; give a file")
