"""Write a trained model as a folder for another library, or upload it to the Hugging Face hub.

python export.py RUN_OR_MODEL --to diffusers --out DIR
python export.py RUN_OR_MODEL --to onnx --out DIR          (or pt2: a program of torch.export)
python export.py RUN_OR_MODEL --to torchvision --out DIR   (weights under the names of another library)
python export.py RUN_OR_MODEL --to space --out DIR         (the page of demo.py, for a Hugging Face Space)
python export.py RUN_OR_MODEL --push OWNER/NAME
"""

import argparse
from collections.abc import Sequence

from exporting.options import check_together, make_parser
from training.script import command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return make_parser(__doc__.splitlines()[0])


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, converts, writes."""
    args = parser().parse_args(argv)
    check_together(args)
    from exporting.command import run  # imports PyTorch, for which help and wrong options need not wait

    run(args)


if __name__ == "__main__":
    main()
