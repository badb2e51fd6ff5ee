"""Runs an experiment: command line, printed table, JSON file and picture."""

import argparse
import importlib
import inspect
import pkgutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

import experiments
from experiments.figure import draw
from experiments.finding import Finding
from storage.write import expand_home
from training.random import seeded
from training.script import ScriptParser, command

T = TypeVar("T")
SHARED = ("claims", "figure", "finding", "nets", "run", "__main__")
"""modules of the package that are no experiments"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of every experiment."""

    short: bool = False
    """fewer updates and smaller networks: shows that everything runs, in seconds"""
    seeds: int = 3
    """number of seeds of what is random"""
    out: Path = Path("runs/experiments")
    """folder of the results, with the cache of trained networks"""

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= 100:
            raise ValueError(f"seeds={self.seeds} is out of range: give 1 to 100")

    def pick(self, full: T, short: T) -> T:
        """One of two values: `short` in the short form."""
        return short if self.short else full


Measure = Callable[[Settings], Finding]


def measurements() -> dict[str, Measure]:
    """All experiments by name, in alphabetical order."""
    names = (module.name for module in pkgutil.iter_modules(experiments.__path__) if module.name not in SHARED)
    return {name: importlib.import_module(f"experiments.{name}").measure for name in sorted(names)}


def run(name: str, measure: Measure, settings: Settings) -> Finding:
    """Runs one experiment, prints what it found, and writes NAME.json and NAME.png into the folder `settings.out`."""
    settings.out.mkdir(parents=True, exist_ok=True)
    wall, processor = time.perf_counter(), time.process_time()
    with seeded(0, name):
        finding = measure(settings)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"\n{name}: {finding.message}\n\n{finding.table()}\n\n{finding.verdicts()}", flush=True)
    print(f"\n{wall:.1f} s, {processor:.1f} s of processor time", flush=True)
    draw(finding, settings.out / f"{name}.png")
    details: dict[str, Any] = {"experiment": name, "short": settings.short, "processor_seconds": processor}
    finding.write(settings.out / f"{name}.json", **details, torch=torch.__version__)
    return finding


def parse(argv: Sequence[str], description: str | None) -> Settings:
    """The settings of a command line. Raises ValueError for options that are unknown or out of range."""
    parser = ScriptParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes, to see that everything runs")
    parser.add_argument("--seeds", type=int, default=None, help="seeds of what is random (default: 3; short form: 1)")
    parser.add_argument("--out", type=Path, default=Settings.out, help="folder of the results (default: %(default)s)")
    args = parser.parse_args(argv)
    seeds = args.seeds if args.seeds is not None else 1 if args.short else Settings.seeds
    return Settings(short=args.short, seeds=seeds, out=expand_home("--out", args.out))


def main(measure: Measure) -> None:
    """The script of an experiment, `python -m experiments.NAME`."""

    @command
    def script(argv: Sequence[str]) -> None:
        run(Path(inspect.getfile(measure)).stem, measure, parse(argv, sys.modules[measure.__module__].__doc__))

    script()
