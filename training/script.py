"""Makes a script of a function: an error in the input is one line and an exit code."""

import argparse
import errno
import functools
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import residual
from residual.names import require_known
from residual.weights.note import WeightsNote
from storage.extra import require_extra
from storage.show import printable
from training.completion import COMPLETION, completion

MAX_MESSAGE = 2_000
"""characters of an error message; the middle of a longer one, such as a value of a megabyte, is left out"""
VERSION = f"residual-diffusion {residual.__version__}"
INTERRUPTED = 128 + signal.SIGINT
PACKAGES = (
    *("PIL", "accelerate", "datasets", "diffusers", "filelock", "matplotlib", "sklearn", "tensorboard", "torchmetrics"),
    *("tqdm", "yaml"),
)
"""what every script may import of the extra `train`, which contains `sample`"""
_python_shows = warnings.showwarning
PATIENCE_S = 5.0
"""seconds that other ranks wait, so that rank 0 can report the error first"""


def rank() -> int:
    """The rank of this process, as torchrun and accelerate's launcher set it; 0 for what is no number."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Makes a script of `main`, which takes the command line and any keyword arguments.

    A ValueError, an OSError about a file that the user named, or one of `PACKAGES` that is not installed ends it with
    one line and exit code 2 (under `python -X dev` with the traceback). Ctrl-C ends it with exit code 130. Of several
    ranks rank 0 reports first; the launcher then ends the others within `PATIENCE_S`, unless the error is theirs alone.
    A standard stream that is closed or full does not end it (see `StandardStream`).
    """

    @functools.wraps(main)
    def script(argv: Sequence[str] | None = None, **options: Any) -> None:
        _keep_streams()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names that the terminal cannot show
        name = Path(sys.argv[0]).name
        warnings.showwarning = _show_warning
        if not sys.flags.dev_mode:
            threading.excepthook = _show_thread_error
        try:
            with _explain_missing_package(name):
                main(sys.argv[1:] if argv is None else argv, **options)
        except (ValueError, OSError) as error:
            if sys.flags.dev_mode or (isinstance(error, OSError) and error.filename is None):
                raise
            if isinstance(error, OSError):
                error = ValueError(f"{error.filename}: {error.strerror}")
            if rank():
                time.sleep(PATIENCE_S)
                name += f" (process {rank()})"
            print(f"{name}: error: {_one_line(str(error))}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None

    return script


@contextmanager
def _explain_missing_package(script: str) -> Iterator[None]:
    """Raises ValueError, with the install command, in place of the error about a missing package of `PACKAGES`."""
    try:
        yield
    except (ModuleNotFoundError, RuntimeError) as error:  # diffusers raises RuntimeError because of it
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ModuleNotFoundError) and cause.name in PACKAGES:
                require_extra(cause.name, "train", script)
            cause = cause.__cause__ or cause.__context__
        raise


def show_and_exit(text: str) -> NoReturn:
    """Prints a help text or the like on the first of several processes, control characters escaped, and exits."""
    if rank() == 0:
        print("\n".join(map(printable, text.split("\n"))))
        require_printed()
    raise SystemExit(0)


def show_next(command: str | None) -> None:
    """Prints a command that uses the results, if there is one, on the first of several processes.

    It goes to stderr, so that the standard output holds results alone.
    """
    if command is not None and rank() == 0:
        print(f"next: {printable(command)}", file=sys.stderr)


class StandardStream(io.FileIO):
    """The file of stdout or stderr. Text that it cannot take is lost without an error, so that the work goes on.

    That is so if its reader has ended, such as `head`, if the terminal is gone, and on a full disk.
    """

    lost: OSError | None = None
    """why text was lost; not set if the reader has ended"""

    def write(self, data: Any, /) -> int:
        """Writes bytes; returns how many are done with, those that are lost included."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.lost = error
            return len(data)


def require_printed() -> None:
    """Raises ValueError if stdout lost text, unless its reader has ended. For scripts whose result is that text."""
    if sys.stdout is not None:
        sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, StandardStream) and raw.lost is not None:
        raise ValueError(f"the standard output could not be written: {raw.lost.strerror}")


def _keep_streams() -> None:
    """Makes stdout and stderr streams that cannot fail, and that write every line at once, also to a file.

    A closed one becomes the null device: otherwise the next file opened would get its number, and the messages.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # replaced: by a caller, or here for an earlier script of this process
        if stream is not None:
            stream.flush()
        file = io.BufferedWriter(StandardStream(number, "w", closefd=False))
        encoding = "utf-8" if stream is None else stream.encoding
        setattr(sys, name, io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=True))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a note about weights as one line, on the first of several processes, and any other warning as usual."""
    if not issubclass(category, WeightsNote):
        _python_shows(message, category, filename, lineno, file, line)
    elif rank() == 0:
        print(f"note: {_one_line(str(message))}")


def _show_thread_error(found: threading.ExceptHookArgs) -> None:
    """Prints an error that ends a thread of a library as one line. It does not end the script."""
    print(f"note: a thread ended: {found.exc_type.__name__}: {_one_line(str(found.exc_value))}", file=sys.stderr)


def _one_line(text: str) -> str:
    """A message as one line that a terminal shows as it is."""
    text = " ".join(text.split())
    if len(text) > MAX_MESSAGE:
        half = MAX_MESSAGE // 2
        text = f"{text[:half]} … ({len(text) - 2 * half:,} characters are left out) … {text[-half:]}"
    return printable(text)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is, and the default of an option, if it has one that is a value, behind its help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_value = action.default is not None and action.default is not False
        return super()._get_help_string(action) if is_value else action.help


class ScriptParser(argparse.ArgumentParser):
    """An argument parser with `--version` and `--print-completion`, whose errors are ValueErrors, for `command`.

    Options cannot be abbreviated. In its help the groups of options come first, and what every script has comes last.
    """

    def __init__(self, **options: Any) -> None:
        defaults: dict[str, Any] = {"formatter_class": HelpFormatter, "allow_abbrev": False}
        super().__init__(**defaults | options)
        self.add_argument("--version", action="version", version=VERSION, help="show the version of the project")
        self.add_argument("--print-completion", action=_PrintCompletion, metavar="SHELL", help=COMPLETION)

    def format_help(self) -> str:
        """The text of `--help`."""
        self._action_groups.sort(key=lambda group: group is self._optionals)
        return super().format_help()

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the script after `--help` and `--version`. Raises ValueError if their text could not be written."""
        require_printed()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            require_known(action.option_strings[-1], str(value), map(str, action.choices))

    def print_completion(self, shell: str) -> NoReturn:
        """Prints the code by which a shell completes the options, and exits. Raises ValueError as `completion` does."""
        print(completion(self, shell))
        self.exit()


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        assert isinstance(parser, ScriptParser)
        parser.print_completion(values)
