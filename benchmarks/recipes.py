"""Quality of recipes over the images seen, by the judge of docs/metrics.md: the tables of docs/recipes.md.

    python -m benchmarks.recipes digits --seeds 3
    python -m benchmarks.recipes cifar10-16px --source FOLDER_WITH_PARQUET_FILES

Trains the judge, trains every recipe on one thread, and prints one row per recipe: images seen and seconds of training
until the distance of the averaged model from held-out images is near the floor (inf: not within the run); then distance
and class accuracy for some numbers of Heun's steps. Each value is the median over the seeds, with the lowest and the
highest. What was trained before is resumed or used again.

digits: one half is held out. The recipes are config files with the same network, but for EDM2's.
cifar10-16px: CIFAR-10, scaled to 16 px; the test images are held out. The first rows are the recipe of diffusers'
`train_unconditional.py` (benchmarks/plain_loop.py). Each further row changes one thing.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from pipelines.diffusion_folder import load_model
from tasks import RUNS
from tasks.diffusion import DiffusionRun
from training.cli import parse
from training.data import open_images
from training.precision import choose_precision
from training.processes import on_main
from training.script import ScriptParser, command

ROOT = Path(__file__).parents[1]
REACHED = 1.2
"""times the floor"""
Flags = Mapping[str, object]


@dataclass(frozen=True)
class Recipe:
    """One row: a config and what is changed in it; or the plain loop with these options and settings."""

    config: str
    flags: Flags = field(default_factory=dict)
    plain_loop: bool = False
    guidance: float = 1
    """of the evaluations after the run"""
    run: str | None = None
    """the row whose run is drawn from, with its config; None: its own"""


@dataclass(frozen=True)
class Comparison:
    """Recipes that are compared on one set of images."""

    judge: str
    """config of the judge"""
    judge_flags: Flags
    flags: Flags
    """of all recipes that train.py trains"""
    quality: Flags
    """settings of the section quality, in the evaluations after the run"""
    images: int
    """length of each run"""
    evaluations: int
    """during each run"""
    steps: tuple[int, ...]
    """of the sampler, for the evaluations after the run"""
    recipes: Mapping[str, Recipe]


_16PX = "cifar10-16px"
_ADAMW: dict[str, object] = {"optimizer.kind": "adamw", "optimizer.learning_rate": 2e-3}
_MUON: dict[str, object] = {"optimizer.kind": "muon", "optimizer.learning_rate": 2e-3, "train.batch": 32}
_V: dict[str, object] = {
    "optimizer.kind": "adamw",
    "objective.kind": "ddpm",
    "objective.schedule": "cosine",
    "objective.prediction": "v",
    "model.time_embedding": "adm",
    "train.batch": 128,
    "optimizer.learning_rate": 1e-3,
}
_SCRIPT: dict[str, object] = {"model.time_embedding": "adm"}
_EDM2: dict[str, object] = {
    "optimizer.kind": "adamw",
    "model.kind": "edm2",
    "model.base_channels": 32,
    "model.channel_multipliers": "1,2,2",
    "model.blocks_per_level": 1,
    "model.attention_levels": 1,
    "model.head_channels": 32,
    "train.batch": 32,
    "optimizer.learning_rate": 1e-2,
}
COMPARISONS = {
    "digits": Comparison(
        judge="resnet8-digits",
        judge_flags={},
        flags={"data.validation": 0.5},
        quality={},
        images=60_000,
        evaluations=3,
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
    _16PX: Comparison(
        judge="resnet20-cifar10",
        judge_flags={
            "data.size": 16,
            "augment.pad_px": 2,
            "train.images": 1_000_000,
            "train.checkpoint_every_images": 250_000,
            "optimizer.weight_decay": 5e-4,
            "schedule.kind": "cosine",
            "schedule.warmup_images": 50_000,
        },
        flags={"data.validation": "test"},
        quality={"num": 1_000},
        images=60_000,
        evaluations=0,
        steps=(18,),
        recipes={
            "script, 16 images an update, 1e-4": Recipe(_16PX, _SCRIPT, plain_loop=True),
            "script, 16, 5e-4": Recipe(_16PX, _SCRIPT | {"learning-rate": 5e-4}, plain_loop=True),
            "script, 128, 1e-3": Recipe(
                _16PX, _SCRIPT | {"batch": 128, "learning-rate": 1e-3, "warmup": 50}, plain_loop=True
            ),
            "v, 128 images an update": Recipe(_16PX, _V),
            "v, 128, no average": Recipe(_16PX, _V | {"ema.halflife_images": "null"}),
            "v, 32": Recipe(_16PX, _V | {"train.batch": 32}),
            "v-minsnr, 32": Recipe(_16PX, _V | {"train.batch": 32, "diffusion.weighting": "min_snr"}),
            "edm, 32": Recipe(_16PX, _ADAMW | {"train.batch": 32, "optimizer.learning_rate": 1e-3}),
            "edm, 16, twice the learning rate": Recipe(_16PX, _ADAMW | {"train.batch": 16}),
            "edm on edm2's network, 32": Recipe(_16PX, _EDM2),
            "v-minsnr, 32, muon": Recipe(_16PX, _V | _MUON | {"diffusion.weighting": "min_snr"}),
            "edm, 32, muon": Recipe(_16PX, _MUON),
            "edm, 16, muon": Recipe(_16PX, _MUON | {"train.batch": 16}),
            "v, 32, guidance 2": Recipe(_16PX, guidance=2, run="v, 32"),
            "edm, 32, guidance 2": Recipe(_16PX, guidance=2, run="edm, 32"),
            "edm on edm2's network, guidance 2": Recipe(_16PX, guidance=2, run="edm on edm2's network, 32"),
            "v-minsnr, 32, muon, guidance 3": Recipe(_16PX, guidance=3, run="v-minsnr, 32, muon"),
            "edm, 32, muon, guidance 3": Recipe(_16PX, guidance=3, run="edm, 32, muon"),
            "edm, 16, muon, guidance 3": Recipe(_16PX, guidance=3, run="edm, 16, muon"),
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
        raise ValueError(
            f"--recipes {unknown[0]} is not a row of {args.comparison}; there are {', '.join(chosen.recipes)}"
        )
    torch.set_num_threads(1)
    out = (args.out / args.comparison).absolute()
    bench = Bench(chosen, out, {} if args.source is None else {"data.source": args.source})
    bench.train(chosen.judge, bench.judge, chosen.judge_flags)
    heads = ["recipe", f"images, seconds to {REACHED} x floor", "floor", *(f"{steps} steps" for steps in chosen.steps)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for name in rows:
        found = [bench.measure(name, seed) for seed in range(args.seeds)]
        columns = [zip(*(row[key] for row in found), strict=True) for key in found[0]]
        print(f"| {name} |", " | ".join("; ".join(map(spread, column)) for column in columns), "|", flush=True)


@dataclass(frozen=True)
class Bench:
    """A comparison, the folder of its runs, and the flags that name the images."""

    comparison: Comparison
    out: Path
    data: Flags

    @property
    def judge(self) -> Path:
        """Folder of the judge."""
        return self.out / "judge"

    def measure(self, name: str, seed: int) -> dict[str, tuple[float, ...]]:
        """Trains one recipe; returns the columns of the table."""
        guidance, trained = self.comparison.recipes[name].guidance, self.comparison.recipes[name].run or name
        recipe, folder = self.comparison.recipes[trained], self.out / f"{re.sub('[^a-z0-9]+', '-', trained)}-{seed}"
        near: tuple[float, ...] = ()
        if recipe.plain_loop:
            self.train_plainly(recipe, folder, seed)
        else:
            near = self.train_and_watch(recipe, folder, seed)
        scores = {steps: self.evaluate(recipe, folder, steps, guidance) for steps in self.comparison.steps}
        columns = {f"{n} steps": (found["frechet_distance"], found["class_accuracy"]) for n, found in scores.items()}
        return {"near": near, "floor": (scores[self.comparison.steps[0]]["frechet_floor"],), **columns}

    def train_and_watch(self, recipe: Recipe, folder: Path, seed: int) -> tuple[float, ...]:
        """Trains with train.py; the images and seconds of training until the distance was near the floor."""
        images, watched = self.comparison.images, self.comparison.evaluations
        self.train(
            recipe.config,
            folder,
            {
                "train.images": images,
                "train.eval_every_images": images // max(watched, 1),
                "train.checkpoint_every_images": images,
                "train.log_every_images": images // 12,
                "train.seed": seed,
                "train.trackers": "[]",
                "sample.num": 0,
                **({"quality.judge": self.judge, "quality.sampler": "heun"} if watched else {}),
                **self.comparison.flags,
                **recipe.flags,
            },
        )
        if not watched:
            return ()
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        floor = next(row["frechet_floor"] for row in rows if "frechet_floor" in row)
        near = [row["images"] for row in rows if row.get("frechet_distance", math.inf) <= REACHED * floor]
        speed = median(row["images_per_second"] for row in rows if "images_per_second" in row)
        reached = min(near, default=math.inf)
        return reached, reached / speed

    def train_plainly(self, recipe: Recipe, folder: Path, seed: int) -> None:
        """Trains with the plain loop, unless its model exists."""
        if not folder.exists():
            own = {"images": self.comparison.images, "seed": seed, "out": folder}
            flags = {**self.comparison.flags, **recipe.flags, **own, **self.data}
            call(["-m", "benchmarks.plain_loop", "--config", config_file(recipe.config), *words(flags)])

    def train(self, config: str, folder: Path, flags: Flags) -> None:
        """Trains, or resumes, one run."""
        call(["train.py", "--config", config_file(config), "--run", str(folder), *words({**flags, **self.data})])

    def evaluate(self, recipe: Recipe, folder: Path, steps: int, guidance: float) -> dict[str, float]:
        """The metrics of images drawn by the model in `folder` with these steps, in bf16 if the CPU has it."""
        drawing = {"judge": self.judge, "steps": steps, "sampler": "heun", "guidance": guidance}
        quality = {**drawing, **self.comparison.quality}
        flags = {**self.comparison.flags, **{f"quality.{name}": value for name, value in quality.items()}, **self.data}
        run = parse(RUNS, ["--config", config_file(recipe.config), "--run", str(folder), *words(flags)]).run
        assert isinstance(run, DiffusionRun)
        model = load_model(str(folder))
        evaluation = run.open_quality(model, open_images(run.data, on_main=on_main))
        assert evaluation is not None
        if choose_precision("auto", torch.device("cpu"))[0] == "bf16":
            model.net.forward = torch.autocast("cpu", torch.bfloat16)(model.net.forward)  # type: ignore[method-assign]
        found = evaluation.measure(model.net)
        assert found is not None, "nothing interrupts it"
        return found


def config_file(name: str) -> str:
    """The path of a recipe."""
    return str(ROOT / "configs" / f"{name}.yaml")


def words(flags: Flags) -> list[str]:
    """The words of a command line."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def call(command: Sequence[str]) -> None:
    """Runs a script on one thread. Raises ValueError with its last line if it fails."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    middle, low, high = (format(value, ",.4g") for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} – {high})"


if __name__ == "__main__":
    main()
