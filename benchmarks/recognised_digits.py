"""Share of drawn digits that a classifier of real digits recognises as their label.

    python -m benchmarks.recognised_digits runs/digits

A support vector machine is trained on one half of scikit-learn's handwritten digits and tested on the other half. Then
the model draws `--num` digits, the labels in turn, and the classifier recognises them.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from diffusion import SAMPLERS
from pictures.files import to_uint8
from pipelines.diffusion_folder import load_model
from training.options import PRECISIONS
from training.precision import choose_precision
from training.script import ScriptParser, command

BATCH = 64
"""images per forward pass, whose features stay in the caches of a CPU"""


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, draws, judges, prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run folder of train.py, or a model folder")
    parser.add_argument("--num", type=int, default=500, help="digits to draw")
    parser.add_argument("--steps", type=int, default=50, help="steps of the sampler")
    parser.add_argument("--sampler", help=f"one of: {', '.join(SAMPLERS)}; without it ddim for ddpm models, else heun")
    parser.add_argument("--guidance", type=float, default=1.0, help="strength of the label; 1: as trained")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="as in sample.py")
    args = parser.parse_args(argv)
    precision, _ = choose_precision(args.precision, torch.device("cpu"), "precision")
    model = load_model(args.model)
    model.net.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    if model.shape != (1, 8, 8) or model.classes is None or len(model.classes) != 10:
        raise ValueError(f"{args.model} does not draw the ten digits at 8x8 px, but {model.shape} {model.classes}")

    digits = load_digits()
    real, held_out, real_label, held_out_label = train_test_split(
        digits.data, digits.target, test_size=0.5, random_state=0, stratify=digits.target
    )
    judge = SVC(gamma=0.001, C=10).fit(real, real_label)
    accuracy = np.mean(judge.predict(held_out) == held_out_label)
    labels = model.cycle(range(args.num))
    options = {"sampler": args.sampler, "steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    batches = model.draw_share(args.num, model.cycle, batch=BATCH, **options)
    images = torch.cat([x for _, step, x in batches if step == args.steps])
    drawn = to_uint8(images).reshape(args.num, -1) / 255 * 16
    recognised = np.mean(judge.predict(drawn) == labels)
    print(f"real digits:  {accuracy:.1%} of {len(held_out)} held-out digits are recognised correctly")
    print(f"drawn digits: {recognised:.1%} of {args.num} are recognised as their label")


if __name__ == "__main__":
    main()
