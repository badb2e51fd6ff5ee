"""What `demo.py` does with its options: shows the page until it is interrupted."""

import argparse

from training.progress import print_line
from web.models import find_runs, require_models
from web.options import HOST, RUNS
from web.space import require_gradio


def run(args: argparse.Namespace) -> None:
    """Shows the page. Raises ValueError for a folder that holds no model, and without gradio."""
    models = require_models(args.models) or find_runs(RUNS)
    require_gradio()
    from web.page import launch_options, make_page

    page, address = make_page(models), {"server_name": HOST, "server_port": args.port}
    page.launch(**address, **launch_options(), inbrowser=args.open, prevent_thread_lock=True)
    print_line(f"page: http://{HOST}:{args.port} (Ctrl-C ends it)")
    page.block_thread()
