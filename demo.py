"""Show trained models and runs on a web page of this computer.

python demo.py
python demo.py RUN_OR_MODEL ... --port 7861
"""

import argparse
import socket
from collections.abc import Sequence

from training.log import print_line
from training.script import ScriptParser, command
from web.models import RUNS, find_runs, require_models
from web.space import require_gradio

HOST, PORT = "127.0.0.1", 7860


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = ScriptParser(prog="demo.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument(
        "models",
        nargs="*",
        metavar="RUN_OR_MODEL",
        help=f"folders that the page offers: of runs, of models, of pipelines of diffusers; without any, those of the "
        f"runs in {RUNS}/",
    )
    p.add_argument("--port", type=int, default=PORT, help=f"of {HOST}, the only address of the page (default: {PORT})")
    p.add_argument("--open", action="store_true", help="open the page in the browser")
    return p


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, and shows the page until it is interrupted."""
    args = parser().parse_args(argv)
    _require_port(args.port)
    models = require_models(args.models) or find_runs()
    require_gradio()
    from web.page import launch_options, make_page

    page, address = make_page(models), {"server_name": HOST, "server_port": args.port}
    page.launch(**address, **launch_options(), inbrowser=args.open, prevent_thread_lock=True)
    print_line(f"page: http://{HOST}:{args.port} (Ctrl-C ends it)")
    page.block_thread()


def _require_port(port: int) -> None:
    """Raises ValueError for a port that does not exist, may not be used, or is in use."""
    if not 1 <= port < 2**16:
        raise ValueError(f"port={port} is out of range; give 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port={port} of {HOST} cannot be used ({error.strerror}); give another --port") from None


if __name__ == "__main__":
    main()
