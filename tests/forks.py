"""Python code in processes of their own, forked from one that has imported PyTorch: each import takes seconds."""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_S = 300
"""seconds until a process is killed"""
PREPARED = ("datasets", "diffusers", "pyarrow.parquet", "drawing.command", "exporting.command", "training.data")


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `python -c` with the code and its arguments does in the folder of the project."""
    with tempfile.TemporaryDirectory() as name:
        streams = [f"{name}/{stream}" for stream in ("out", "err")]
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps([code, ["-c", *arguments], *streams]), file=server.stdin, flush=True)
        exit_code = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, exit_code, *(Path(stream).read_text() for stream in streams))


@cache
def _server() -> subprocess.Popen[str]:
    """The process that is forked. It ends with this one, whose end closes its standard input."""
    command = [sys.executable, "-m", "tests.forks"]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    """Fork for each line of the standard input, and print the exit code."""
    for module in PREPARED:
        import_module(module)

    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _execute(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _execute(code: str, arguments: list[str], *streams: str) -> None:
    """Run the code in this process, and end it."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.alarm(LIMIT_S)
    sys.argv, exit_code = arguments, 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    _serve()
