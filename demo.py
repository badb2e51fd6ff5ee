"""Show trained models and runs on a web page of this computer.

what people ask first:
  all runs          python demo.py: those in runs/, the newest first
  one model         python demo.py RUN, a model folder, or one of diffusers
  while it trains   python demo.py RUN: its curves and grids, while it goes on
  open it at once   --open
  the port is taken --port 7861
  another computer  the page is only for this one; reach it by ssh -L 7860:127.0.0.1:7860 HOST
"""

import argparse
from collections.abc import Sequence

from training.script import command
from web.options import make_parser, require_port


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return make_parser(__doc__.strip())


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, and shows the page until it is interrupted."""
    args = parser().parse_args(argv)
    require_port(args.port)
    from web.command import run  # imports PyTorch, for which help and wrong options need not wait

    run(args)


if __name__ == "__main__":
    main()
