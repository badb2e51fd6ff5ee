"""Draws for the page, by the options and the functions of sample.py, and yields the images while they are denoised."""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from drawing.draw import begin, keeping, make_ready, save
from drawing.job import prepare
from drawing.options import check_together, make_parser
from drawing.write import write
from pictures.grid import draw_samples
from pipelines.diffusion import require_finite
from web.models import require_drawing

MAX_STEPS, MAX_IMAGES = 250, 64
"""of one click, so that the page stays usable"""


@dataclass(frozen=True)
class Settings:
    """The settings of one picture on the page. Raises ValueError for more steps or images than the page draws."""

    sampler: str = ""
    """empty: that of the model"""
    steps: int = 50
    guidance: float = 1.0
    label: str = ""
    num: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("steps", MAX_STEPS), ("num", MAX_IMAGES)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; the page takes 1 to {most}")


@dataclass(frozen=True)
class Frame:
    """The images after a step."""

    step: int
    """of all steps of all images"""
    steps: int
    picture: Image.Image


def options(model: str, out: Path, settings: Settings, **given: Any) -> argparse.Namespace:
    """The command line of sample.py with these settings and the options `given`."""
    values = vars(settings) | given | {"out": out}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value != ""]
    args = make_parser("").parse_args([*flags, "--", require_drawing(model)])
    check_together(args)
    return args


def watch(args: argparse.Namespace) -> Iterator[Frame]:
    """Draws the images of a command line, and writes the folder that sample.py writes. Yields after every step.

    Raises ValueError as sample.py does.
    """
    job = prepare(args)
    facts, model = job.facts(), job.model
    make_ready(job)
    batches = [range(k, min(k + args.batch, len(job))) for k in range(0, len(job), args.batch)]
    step, steps = 0, sum(job.steps(batch[0]) for batch in batches)
    with keeping(job):
        begin(job, facts)
        for batch in batches:
            for number, x in enumerate(job.chain(batch)):
                step += number > 0
                values = model.output_format.from_unit(model.decoded(x))
                yield Frame(step, steps, draw_samples(values, model.output_format, model.names(job.labels(batch))))
            require_finite(batch, x, args.guidance)
            save(job, batch, model.hidden(model.decoded(x).cpu()))
        write(job, [], facts)


def archive(folder: Path) -> Path:
    """A ZIP file beside a folder, with its content."""
    return Path(shutil.make_archive(str(folder), "zip", folder))
