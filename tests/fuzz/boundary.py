"""Gives one input to the project as a script does, and checks how it ends."""

import hashlib
import os
import shutil
import signal
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

from storage.show import printable
from training.script import MAX_MESSAGE, command

CPU_SECONDS = 10.0
"""processor time that one input may take"""
SECONDS = 20.0
"""time that one input may take on a busy machine"""
GIVEN, OUTSIDE, SCRATCH = "given", "outside", "scratch"
"""folders of a trial: the input, files that must not be touched, and the cache, which may be written"""


class Entry(Enum):
    """An entry of a folder that is no regular file."""

    FOLDER = "folder"
    PIPE = "pipe"
    SOCKET = "socket"


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


Tree = Mapping[str, bytes | Link | Entry]
"""path below a folder -> content; bytes of a name that are no UTF-8 are surrogates"""


@dataclass(frozen=True, repr=False)
class Case:
    """One input: the files of a folder, and what is called with it."""

    tree: Tree = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """For a message: long files are shortened; the seed gives them again."""
        shown = {name: repr(content)[:300] for name, content in self.tree.items()}
        return f"Case({shown}, {dict(self.options)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis prints."""
        printer.text(repr(self))

    @property
    def digest(self) -> bytes:
        """A hash of the input, to count distinct ones."""
        return hashlib.sha256(repr((sorted(self.tree.items()), sorted(self.options.items()))).encode()).digest()


@dataclass(frozen=True)
class Kind:
    """A kind of input: a strategy for inputs, and the use that a user makes of one."""

    cases: SearchStrategy[Case]
    use: Callable[[Path, Mapping[str, Any]], object]
    """opens the input in the folder and uses it; AssertionError if what it gives is not valid"""
    examples: int = 40
    """in the test suite"""


class Fault(AssertionError):
    """An input had another end than a valid value or one line."""


class _TooLongError(BaseException):
    """The time is over. Not an Exception, which a decoder would take for a damaged picture."""


def try_case(kind: Kind, case: Case, root: Path) -> str | None:
    """Uses an input below the folder `root`, which is emptied; returns None, or the one line that refuses it.

    Raises Fault unless it gives a valid value, or ends as `training.script.command` ends a script: one printable line
    and exit code 2, in bounded time. No file outside of `SCRATCH` may be created, changed or removed.
    """
    shutil.rmtree(root, ignore_errors=True)
    given, outside = root / GIVEN, root / OUTSIDE
    for folder in (given, outside, root / SCRATCH):
        folder.mkdir(parents=True)
    (outside / "file").write_bytes(b"outside")
    write_tree(given, case.tree)
    before, output = listing(root), StringIO()
    use = command(lambda argv: void(kind.use(given, dict(case.options))))
    refused = False
    try:
        with (
            chdir(outside),
            warnings.catch_warnings(),
            redirect_stdout(output),
            redirect_stderr(output),
            bounded(CPU_SECONDS, SECONDS),
        ):
            warnings.simplefilter("ignore")
            use([])
    except SystemExit as end:
        refused = True
        if end.code != 2:
            raise Fault(f"exit code {end.code}") from None
    except _TooLongError:
        raise Fault(f"takes more than {CPU_SECONDS:g} s of processor time, or {SECONDS:g} s") from None
    except Exception as error:
        raise Fault(f"{type(error).__name__}: {error}") from error
    lines = output.getvalue().rstrip("\n").split("\n")
    if wrong := [line for line in lines if line != printable(line)]:
        raise Fault(f"control characters reach the terminal: {wrong[0]!r}")
    if (after := listing(root)) != before:
        raise Fault(f"files were changed: {sorted(set(before) ^ set(after), key=str)}")
    if not refused:
        return None
    errors = [line for line in lines if ": error: " in line]
    message = errors[-1].partition(": error: ")[2] if errors else ""
    if errors[-1:] != lines[-1:] or not message.strip() or len(message) > 2 * MAX_MESSAGE:
        raise Fault(f"the last line is no message: {lines[-1]!r:.500}")
    return message


def void(value: object) -> None:
    """Nothing: a script returns no value."""


def write_tree(folder: Path, tree: Tree) -> None:
    """Writes the entries; those that the file system refuses, such as too long names, are left out."""
    for name, content in tree.items():
        path = folder / name
        with suppress(OSError, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            match content:
                case bytes():
                    path.write_bytes(content)
                case Link(target):
                    path.symlink_to(target)
                case Entry.FOLDER:
                    path.mkdir(exist_ok=True)
                case Entry.PIPE:
                    os.mkfifo(path)
                case Entry.SOCKET:
                    with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):
                        server.bind(path.name)


def listing(root: Path) -> dict[bytes, tuple[int, int, int]]:
    """Kind, size and time of modification of every entry below `root`, except in `SCRATCH`; links are not followed."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        folders[:] = [name for name in folders if os.fsdecode(name) != SCRATCH]
        for name in (*folders, *files):
            status = os.lstat(path := os.path.join(folder, name))
            found[path] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@contextmanager
def bounded(cpu_seconds: float, seconds: float) -> Iterator[None]:
    """Ends its body by an error after one of the times."""

    def stop(number: int, frame: object) -> None:
        raise _TooLongError

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, cpu_seconds), (signal.SIGALRM, signal.ITIMER_REAL, seconds))
    previous = {number: signal.signal(number, stop) for number, _, _ in timers}
    try:
        for _, timer, limit in timers:
            signal.setitimer(timer, limit)
        yield
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
