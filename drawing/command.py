"""What `sample.py` does with its options: draws or enlarges, and writes."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from diffusion import late_start
from drawing.draw import begin, draw, keeping, make_ready
from drawing.job import Job, prepare
from drawing.options import make_parser, show
from drawing.upscale import require_upscale, upscale
from drawing.write import write
from pipelines.drawn import gather_drawn
from residual.names import amount
from training.compile import explain_compile_error, require_compiler
from training.processes import leave_processes, on_main, process_state
from training.progress import print_line
from training.script import show_next

COMPILE_OPTION = "compile=True", "leave it out"
"""the option that requests compilation, and what to do without it"""


def run(args: argparse.Namespace) -> None:
    """Draws or enlarges on all processes, and writes the folder. Raises ValueError for options that do not fit."""
    if args.upscale is not None:
        upscale(args, vars(make_parser("").parse_args(["model"])))
        return
    require_upscale(args)
    job = prepare(args)
    lines = require_compiler(*COMPILE_OPTION, job.device) if args.compile else []
    facts = job.facts()
    lines += make_ready(job)
    if process_state().is_main_process:
        _announce(job, lines)
    with keeping(job), explain_compile_error(*COMPILE_OPTION):
        on_main(lambda: begin(job, facts))
        frames = gather_drawn(draw(job), len(job))
        if process_state().is_main_process:
            for line in write(job, frames, facts):
                print_line(line)
    show_next(next_command(job.args))
    leave_processes()


def next_command(args: argparse.Namespace) -> str | None:
    """The command that uses what was drawn, quoted for a shell; None for images that are changed or steered."""
    out, folders = shlex.quote(str(args.out)), (args.out, args.out.parent)
    if args.condition is not None:
        return f"python evaluate.py {out} --ensemble.members {args.members or 1}"
    if any((args.origin, args.grey, args.observe, args.between, args.morph, args.sweep)):
        return f"python demo.py {shlex.quote(str(args.model))}" if Path(args.model).is_dir() else None
    source = "" if any((folder / "config.yaml").is_file() for folder in folders) else " --data.source IMAGES"
    return f"python evaluate.py {out}{source} --quality.judge CLASSIFIER"


def _announce(job: Job, lines: Sequence[str]) -> None:
    """Prints what is drawn, with what, and notes about it."""
    args, model = job.args, job.model
    seen = "" if model.images_seen is None else f" at {model.images_seen:,} images seen"
    options = f"{amount(len(job), 'image')}, {args.sampler}, {amount(args.steps, 'step')}, seed {args.seed}"
    print_line(f"model: {args.model}{seen}{f', {job.average.about}' if job.average else ''}; {options}")
    if model.windows is not None:
        window, shared = ("x".join(map(str, size)) for size in model.windows)
        print_line(f"windows: {window} px, which share {shared} px or more")
    if job.given is not None:
        print_line(f"from: {job.given.images}; {amount(job.steps(0), 'step')}{' change them' if args.strength else ''}")
    elif warning := late_start(args.sampler, model.formulation, args.steps):
        print_line(f"note: {warning}")
    if job.observations is not None:
        through = f" through {show(args.operator)}" if args.operator else ""
        print_line(f"observe: {job.observations.images}{through}, noise {show(args.observe_noise)}")
    for line in dict.fromkeys(lines):
        print_line(line)
