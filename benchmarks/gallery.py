"""Draws the pictures of the documentation, one per command of `ROWS`.

    python -m benchmarks.gallery --out docs/gallery
    python -m benchmarks.gallery --small --out /tmp/gallery --only inpainting sweep

The models are those of `MODELS`, in runs/; what is missing is trained first (two minutes each on two cores). With
`--small` they are trained for a few updates, into OUT/runs, which shows that every command runs.
"""

import argparse
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from diffusion import Blur, Downsample
from storage.write import expand_home
from training.script import ScriptParser, command

ROOT = Path(__file__).parents[1]
MODELS = {
    "digits": "--config configs/digits.yaml",
    "tinted": "--config configs/digits.yaml --data.source {runs}/tinted-images --data.labels false --train.images 25e3",
    "digits-tiny": "--config configs/digits-tiny.yaml",
    "classifier-digits-noisy": "--config configs/classifier-digits-noisy.yaml",
    "superresolution-photographs": "--config configs/superresolution-photographs.yaml",
}
"""name of a run in runs/, and the options of train.py that train it"""
OBSERVED = 6
"""digits that are observed"""
SMALL_PART = np.s_[190:238, 340:388]
"""rows and columns of small.png, in the half of the photograph that is held out"""
SMALL = "--train.images 640 --train.eval_every_images 640 --train.checkpoint_every_images 640"
SMALL_UNET = "--sample.num 0 --model.base_channels 16 --model.head_channels 8"


@dataclass(frozen=True)
class Row:
    """A picture of the gallery."""

    command: str
    """what follows `python`; a run is named as runs/NAME, a file of the gallery as docs/gallery/NAME"""
    picture: str = "grid.png"
    """which of the written files is shown"""


ROWS = {
    "changes": Row("sample.py runs/digits --from digits --strength 0.6 --label 3 --num 10"),
    "inpainting": Row("sample.py runs/digits --from digits --mask docs/gallery/mask.png --eta 1 --num 25"),
    "colourisation": Row("sample.py runs/tinted --grey digits --num 25"),
    "inversion": Row("sample.py runs/digits --from digits --invert --num 10 --steps 200"),
    "seeds": Row("sample.py runs/digits --between 1 4 --label 3", "between.gif"),
    "pictures": Row("sample.py runs/digits --from digits --between 0 6"),
    "morph": Row("sample.py runs/digits --morph 3 8 --seed 2"),
    "points": Row("sample.py runs/digits --observe docs/gallery/points.npy --observe-noise 8 --members 4"),
    "blurred": Row(
        "sample.py runs/digits --observe docs/gallery/blurred.npy --operator blur:0.5 downsample:2 --observe-noise 8 "
        "--members 4"
    ),
    "sweep": Row("sample.py runs/digits --sweep guidance 0 1 2 4 --num 10"),
    "classifier": Row(
        "sample.py runs/digits --guidance 0 --classifier runs/classifier-digits-noisy --classifier-scale 4 --num 40"
    ),
    "autoguidance": Row("sample.py runs/digits --guide runs/digits-tiny --guidance 2 --num 40"),
    "enlarged": Row("sample.py runs/superresolution-photographs --upscale docs/gallery/small.png"),
    "size": Row("sample.py runs/digits --size 8 16 --num 12 --label none"),
    "nearest": Row("sample.py runs/digits --nearest --num 12", "nearest.png"),
}
"""name of a picture, and what draws it"""


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, trains what is missing, draws, copies the pictures."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--small", action="store_true", help="train the models for a few updates")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help="of these pictures")
    args = parser.parse_args(argv)
    out = expand_home("out", args.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    runs = out / "runs" if args.small else ROOT / "runs"
    write_inputs(out, runs)
    for name, options in MODELS.items():
        if any(f"runs/{name}" in ROWS[row].command for row in args.only) and not (runs / name / "model").is_dir():
            small = f"{SMALL} {SMALL_UNET if 'configs/digits.yaml' in options else ''}"
            more = small if args.small else ""
            _python(f"train.py {options.format(runs=runs)} --run {runs / name} {more}")
    for name in args.only:
        row, drawn = ROWS[name], out / "drawn"
        words = row.command.replace("runs/", f"{runs}/").replace("docs/gallery/", f"{out}/")
        _python(f"{words} --out {drawn}")
        shutil.copy(drawn / row.picture, out / f"{name}{Path(row.picture).suffix}")
        shutil.rmtree(drawn)


def write_inputs(out: Path, runs: Path) -> None:
    """Writes mask.png, whose right half is white, a part of a photograph (small.png), observations of digits
    (points.npy, blurred.npy), and the folder tinted-images: the digits in random colours."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(out / "mask.png")
    Image.fromarray(load_sample_image("flower.jpg")[SMALL_PART]).save(out / "small.png")
    digits = torch.from_numpy(load_digits().images[:OBSERVED, None] * (255 / 16)).float()
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(digits.shape, generator=generator) < 0.15
    for name, seen in (("points", digits.where(known, math.nan)), ("blurred", Downsample(2)(Blur(0.5)(digits)))):
        noise = 8 * torch.randn(seen.shape, generator=generator)
        np.save(out / f"{name}.npy", (seen + noise).round().numpy())
    random, folder = np.random.default_rng(0), runs / "tinted-images"
    folder.mkdir(parents=True, exist_ok=True)
    for k, digit in enumerate(load_digits().images / 16):
        ink, paper = random.uniform(0, 1, (2, 3))
        pixels = paper + digit[..., None] * (ink - paper)
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(folder / f"{k:04d}.png")


def _python(words: str) -> None:
    print(f"python {words}", flush=True)
    subprocess.run([sys.executable, *words.split()], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
