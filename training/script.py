"""Makes a script of a function: an error in the input is one line and an exit code."""

import argparse
import functools
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 128 + signal.SIGINT
PATIENCE_S = 5.0
"""seconds that other ranks wait, so that rank 0 can report the error first"""


def rank() -> int:
    """The rank of this process, as torchrun and accelerate's launcher set it."""
    return int(os.environ.get("RANK", 0))


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Makes a script of `main`, which takes the command line and any keyword arguments.

    A ValueError, or an OSError about a file that the user named, ends it with one line and exit code 2 (under
    `python -X dev` with the traceback). Ctrl-C ends it with exit code 130. Of several ranks rank 0 reports first; the
    launcher then ends the others within `PATIENCE_S`, unless the error is theirs alone.
    """

    @functools.wraps(main)
    def script(argv: Sequence[str] | None = None, **options: Any) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names that the terminal cannot show
        name = Path(sys.argv[0]).name
        try:
            main(sys.argv[1:] if argv is None else argv, **options)
        except (ValueError, OSError) as error:
            if sys.flags.dev_mode or (isinstance(error, OSError) and error.filename is None):
                raise
            if isinstance(error, OSError):
                error = ValueError(f"{error.filename}: {error.strerror}")
            if rank():
                time.sleep(PATIENCE_S)
                name += f" (process {rank()})"
            print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None

    return script


class ScriptParser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors, for use inside `command`."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")
