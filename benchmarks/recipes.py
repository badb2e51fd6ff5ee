"""Quality of objectives on the digits, at equal network: distance from held-out digits over the images seen.

    python -m benchmarks.recipes --seeds 3

One half of the digits is held out. A classifier of digits, trained once, is the judge (docs/metrics.md). Every recipe
trains the network of configs/digits.yaml on the other half and differs only in its flags; the learning rate falls to
zero over the run. The table has the median over the seeds, and the lowest and highest value.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from training.script import ScriptParser, command

ROOT = Path(__file__).parents[1]
RECIPES: dict[str, dict[str, object]] = {
    "ddpm": {"objective.prediction": "epsilon", "objective.schedule": "linear"},
    "epsilon, cosine": {"objective.prediction": "epsilon"},
    "v": {},
    "v-minsnr": {"diffusion.weighting": "min_snr"},
    "x0-vloss": {"objective.prediction": "x0", "diffusion.weighting": "v"},
    "edm": {"objective.kind": "edm"},
    "flow": {"objective.kind": "flow"},
    "flow, logit-normal": {"objective.kind": "flow", "objective.times_in_training": "logit_normal"},
}
REACHED = 1.2
"""times the floor"""
STEPS = (5, 10, 18, 50)


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, trains and evaluates every recipe, prints one table."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES], choices=RECIPES, help="rows of the table")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe")
    parser.add_argument("--images", type=int, default=45_000, help="length of each run")
    parser.add_argument("--evaluations", type=int, default=9, help="during each run")
    parser.add_argument("--common", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of all recipes")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"), help="folder of the runs, which are resumed")
    args = parser.parse_args(argv)
    judge = args.out / "judge"
    train("resnet8-digits", judge, {})
    print(f"| recipe | images to {REACHED} x floor | distance at {args.images:,} | floor | class accuracy | ", end="")
    print(" | ".join(f"{steps} steps" for steps in STEPS), "|\n|" + "---|" * (5 + len(STEPS)), flush=True)
    for name in args.recipes:
        found = [one(args, name, seed, judge) for seed in range(args.seeds)]
        print(f"| {name} |", " | ".join(spread([row[key] for row in found]) for key in found[0]), "|", flush=True)


def one(args: argparse.Namespace, name: str, seed: int, judge: Path) -> dict[str, float]:
    """Trains one recipe; returns the columns of the table."""
    folder = args.out / f"{name.replace(', ', '-')}-{seed}"
    flags = {
        "data.validation": 0.5,
        "quality.judge": judge,
        "quality.sampler": "heun",
        "train.images": args.images,
        "train.eval_every_images": args.images // args.evaluations,
        "train.checkpoint_every_images": args.images,
        "schedule.warmup_images": args.images // 18,
        "sample.num": 0,
        "train.seed": seed,
        "train.trackers": "[]",
        **dict(pair.split("=", 1) for pair in args.common),
        **RECIPES[name],
    }
    train("digits", folder, flags)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "frechet_distance" in row]
    last, floor = rows[-1], rows[-1]["frechet_floor"]
    reached = [row["images"] for row in rows if row["frechet_distance"] <= REACHED * floor]
    return {
        "reached": min(reached, default=float("inf")),
        "distance": last["frechet_distance"],
        "floor": floor,
        "accuracy": last["class_accuracy"],
        **{f"{steps} steps": evaluated(folder, steps) for steps in STEPS},
    }


def train(config: str, folder: Path, flags: dict[str, object]) -> None:
    """Trains, or resumes, one run on one thread; an objective of another kind replaces that of the config."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    call(["train.py", "--config", str(ROOT / "configs" / f"{config}.yaml"), "--run", str(folder), *words])


def evaluated(folder: Path, steps: int) -> float:
    """The distance of what the run's model draws with these steps."""
    lines = call(["evaluate.py", str(folder), "--quality.steps", str(steps)]).splitlines()
    return float(next(line for line in lines if line.startswith("frechet_distance")).split()[1])


def call(words: Sequence[str]) -> str:
    """The output of a script. Raises ValueError with its last line if it fails."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    middle, low, high = (format(value, ",.4g") for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} – {high})"


if __name__ == "__main__":
    main()
