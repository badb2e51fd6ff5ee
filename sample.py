"""Draw images with a trained diffusion model.

what people ask first:
  64 images         python sample.py RUN --num 64; RUN is a run of train.py, or a model folder
  one class         --label 3, or its name; nearer to the class: --guidance 2
  fewer steps       --steps 20 --sampler dpmpp_2m
  the same again    --seed 0; image k of a seed is the same for every --num
  where they go     --out FOLDER; without it RUN/drawn, beside a grid of the first ones
  larger images     --size 96 96 --window
  change pictures   --from IMAGES --strength 0.5; only a part of them: --mask MASKS
  enlarge pictures  --upscale IMAGES, with a model that was trained for it
  a short film      --animation, or --between 1 2 from one image to another
  memory, speed     --batch 16; --precision bf16
  several GPUs      torchrun --nproc_per_node 4 -- sample.py RUN --num 50000 --npz --out FOLDER
  afterwards        python evaluate.py RUN/drawn --quality.judge CLASSIFIER; python demo.py RUN
"""

import argparse
from collections.abc import Sequence

from drawing.options import check_together, make_parser
from training.script import command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return make_parser(__doc__.strip())


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
