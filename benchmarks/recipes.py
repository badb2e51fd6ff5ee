"""Quality of recipes over the images seen, by the judge of docs/metrics.md: the tables of docs/recipes.md.

    python -m benchmarks.recipes digits --seeds 3
    python -m benchmarks.recipes cifar10-16px --source FOLDER_WITH_PARQUET_FILES

Trains the judge, trains every recipe on one thread, and prints one row per recipe: the distance of the averaged model from
held-out images, over the images seen and over the sampler's steps. What was trained before is resumed or used again.

digits: one half is held out. The recipes are config files with the same network, but for EDM2's.
cifar10-16px: CIFAR-10, scaled to 16 px; the test images are held out. The first rows are the recipe of diffusers'
`train_unconditional.py` (benchmarks/plain_loop.py). Each further row changes one thing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from training.script import ScriptParser, command

ROOT = Path(__file__).parents[1]
REACHED = 1.2
"""times the floor"""
Flags = Mapping[str, object]


@dataclass(frozen=True)
class Recipe:
    """One row: a config and what is changed in it; or the plain loop with these options."""

    config: str
    flags: Flags = field(default_factory=dict)
    plain_loop: bool = False


@dataclass(frozen=True)
class Comparison:
    """Recipes that are compared on one set of images."""

    judge: str
    """config of the judge"""
    judge_flags: Flags
    flags: Flags
    """of all recipes that train.py trains"""
    images: int
    """length of each run"""
    evaluations: int
    """during each run"""
    steps: tuple[int, ...]
    """of the sampler, for the evaluations after the run"""
    recipes: Mapping[str, Recipe]


_SIZE: Flags = {"data.size": 16, "data.validation": "test"}
_16PX = "cifar10-16px"
_V: Flags = {"objective.kind": "ddpm", "objective.schedule": "cosine", "objective.prediction": "v"}
COMPARISONS = {
    "digits": Comparison(
        judge="resnet8-digits",
        judge_flags={},
        flags={"data.validation": 0.5},
        images=45_000,
        evaluations=6,
        steps=(5, 10, 18, 50),
        recipes={
            "ddpm": Recipe("digits-ddpm"),
            "v-minsnr": Recipe("digits"),
            "x0-vloss": Recipe("digits-x0-vloss"),
            "edm": Recipe("digits-edm"),
            "edm2-small": Recipe("digits-edm2-small"),
            "flow": Recipe("digits-flow"),
        },
    ),
}


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, trains and evaluates every recipe, prints one table."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=COMPARISONS, help="set of images and recipes")
    parser.add_argument("--source", help="data.source of all runs (default: that of the configs)")
    parser.add_argument("--recipes", nargs="+", help="rows of the table (default: all)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"), help="folder of the runs")
    args = parser.parse_args(argv)
    chosen = COMPARISONS[args.comparison]
    rows = args.recipes or [*chosen.recipes]
    if unknown := [name for name in rows if name not in chosen.recipes]:
        raise ValueError(f"--recipes {unknown[0]} is not a row of {args.comparison}; there are {', '.join(chosen.recipes)}")
    bench = Bench(chosen, args.out / args.comparison, {} if args.source is None else {"data.source": args.source})
    bench.train(chosen.judge, bench.judge, chosen.judge_flags)
    print("| recipe | images to 1.2 x floor | seconds to it | floor |", end="")
    print("".join(f" distance, accuracy: {steps} steps |" for steps in chosen.steps), end="")
    print("\n|" + "---|" * (4 + len(chosen.steps)), flush=True)
    for name in rows:
        found = [bench.measure(name, seed) for seed in range(args.seeds)]
        print(f"| {name} |", " | ".join(spread([row[key] for row in found]) for key in found[0]), "|", flush=True)


@dataclass(frozen=True)
class Bench:
    """A comparison, the folder of its runs, and the flags that name the images."""

    comparison: Comparison
    out: Path
    source: Flags

    @property
    def judge(self) -> Path:
        """Folder of the judge."""
        return self.out / "judge"

    def measure(self, name: str, seed: int) -> dict[str, tuple[float, ...]]:
        """Trains one recipe; returns the columns of the table."""
        recipe, folder = self.comparison.recipes[name], self.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
        reached, seconds = (), ()
        if recipe.plain_loop:
            self.train_plainly(recipe, folder, seed)
        else:
            reached, seconds = self.train_and_watch(recipe, folder, seed)
        scores = {steps: self.evaluate(folder, steps) for steps in self.comparison.steps}
        floor = (scores[self.comparison.steps[0]]["frechet_floor"],)
        columns = {f"{n} steps": (found["frechet_distance"], found["class_accuracy"]) for n, found in scores.items()}
        return {"reached": reached, "seconds": seconds, "floor": floor, **columns}

    def train_and_watch(self, recipe: Recipe, folder: Path, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Trains with train.py; the images and seconds of training until the distance was near the floor."""
        images, watched = self.comparison.images, self.comparison.evaluations
        flags = {
            "train.images": images,
            "train.eval_every_images": images // max(watched, 1),
            "train.checkpoint_every_images": images,
            "train.log_every_images": images // 30,
            "train.seed": seed,
            "train.trackers": "[]",
            "sample.num": 0,
            **({"quality.judge": self.judge, "quality.sampler": "heun"} if watched else {}),
            **self.comparison.flags,
            **recipe.flags,
        }
        self.train(recipe.config, folder, flags)
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        near = [
            row["images"] for row in rows
            if "frechet_distance" in row and row["frechet_distance"] <= REACHED * row["frechet_floor"]
        ]  # fmt: skip
        speed = median(row["images_per_second"] for row in rows if "images_per_second" in row)
        reached = min(near, default=float("inf"))
        return (reached,), (reached / speed,)

    def train_plainly(self, recipe: Recipe, folder: Path, seed: int) -> None:
        """Trains with the plain loop, unless its model exists."""
        if folder.exists():
            return
        run = self.out / "config-of-the-plain-loop"
        flags = {**self.source, **self.comparison.flags, "train.images": 0}
        raise NotImplementedError(run, flags, seed)

    def train(self, config: str, folder: Path, flags: Flags) -> None:
        """Trains, or resumes, one run."""
        words = [word for name, value in {**flags, **self.source}.items() for word in (f"--{name}", str(value))]
        call(["train.py", "--config", str(ROOT / "configs" / f"{config}.yaml"), "--run", str(folder), *words])

    def evaluate(self, folder: Path, steps: int) -> dict[str, float]:
        """The metrics of what the model in `folder` draws with these steps."""
        flags = ["--quality.judge", str(self.judge), "--quality.steps", str(steps), "--quality.sampler", "heun"]
        lines = call(["evaluate.py", str(folder), *flags]).splitlines()
        pairs = (line.split(": ") for line in lines if ": " in line)
        return {pair[0]: float(pair[1].split()[0]) for pair in pairs if _is_number(pair[1])}


def _is_number(text: str) -> bool:
    try:
        float(text.split()[0])
    except (ValueError, IndexError):
        return False
    return True
