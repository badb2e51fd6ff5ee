"""Show trained models and runs on a web page of this computer.

python demo.py
python demo.py RUN_OR_MODEL ... --port 7861
"""

import argparse
from collections.abc import Sequence

from training.script import command
from web.options import make_parser, require_port


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return make_parser(__doc__.splitlines()[0])


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, and shows the page until it is interrupted."""
    args = parser().parse_args(argv)
    require_port(args.port)
    from web.command import run  # imports PyTorch, for which help and wrong options need not wait

    run(args)


if __name__ == "__main__":
    main()
