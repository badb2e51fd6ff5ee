"""Write a trained model as a folder for another library, or upload it to the Hugging Face hub.

what people ask first:
  diffusers         python export.py RUN --to diffusers --out FOLDER; then DDPMPipeline.from_pretrained(FOLDER)
  other programs    --to onnx; --to pt2 is a program of torch.export
  other code        --to torchvision, timm, adm, edm, ...: weights under the names of that library
  a web page        --to space: the page of demo.py, for a Hugging Face Space
  the hub           python export.py RUN --push OWNER/NAME; --private
  another average   --ema 0.05, or --ema 500000
  one class         --label 3, for diffusers' pipelines, which take no labels
  afterwards        the README.md of the folder has code that uses it
"""

import argparse
from collections.abc import Sequence

from exporting.options import check_together, make_parser
from training.script import command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return make_parser(__doc__.strip())


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, converts, writes."""
    args = parser().parse_args(argv)
    check_together(args)
    from exporting.command import run  # imports PyTorch, for which help and wrong options need not wait

    run(args)


if __name__ == "__main__":
    main()
