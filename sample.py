"""Draw images with a trained diffusion model.

python sample.py RUN_OR_MODEL --num 64 --label 3
python sample.py RUN_OR_MODEL --upscale IMAGES
torchrun --nproc_per_node 4 -- sample.py RUN_OR_MODEL --num 50000 --npz --out DIR
"""

import argparse
from collections.abc import Sequence

from drawing.options import check_together, make_parser
from training.script import command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return make_parser(__doc__.splitlines()[0])


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, draws, writes."""
    args = parser().parse_args(argv)
    if args.upscale is None:
        check_together(args)
    from drawing.command import run  # imports PyTorch, for which help and wrong options need not wait

    run(args)


if __name__ == "__main__":
    main()
