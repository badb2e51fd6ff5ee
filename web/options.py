"""The command line of demo.py. Needs no PyTorch, so that help and errors come at once."""

import socket
from pathlib import Path

from training.script import ScriptParser

HOST, PORT = "127.0.0.1", 7860
RUNS = Path("runs")
"""folder of the runs of train.py"""


def make_parser(about: str) -> ScriptParser:
    """The command line of a script with this description."""
    p = ScriptParser(
        prog="demo.py",
        usage="%(prog)s [RUN_OR_MODEL ...] [--port PORT] [--open]",
        description=about,
    )
    p.add_argument(
        "models",
        nargs="*",
        metavar="RUN_OR_MODEL",
        help=f"folders that the page offers: of runs, of models, of pipelines of diffusers; without any, those of the "
        f"runs in {RUNS}/",
    )
    group = p.add_argument_group("the page")
    group.add_argument("--port", type=int, default=PORT, help=f"of {HOST}, the only address of the page")
    group.add_argument("--open", action="store_true", help="open the page in the browser")
    return p


def require_port(port: int) -> None:
    """Raises ValueError for a port that does not exist, may not be used, or is in use."""
    if not 1 <= port < 2**16:
        raise ValueError(f"port={port} is out of range; give 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port={port} of {HOST} cannot be used ({error.strerror}); give another --port") from None
