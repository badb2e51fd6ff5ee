"""Compares models that enlarge pictures, by their likeness to held-out originals; a table and a picture.

python -m benchmarks.superresolution RUN [RUN ...] --out strip.png

All runs have the same scale and the same held-out pictures, those of the first run. A diffusion model enlarges with the
sampler of its run. The picture shows the middle of each held-out picture: small, by the bicubic filter, by each model,
and the original.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluating.command import read_run
from pictures.grid import draw_grid
from pipelines.superresolution import DiffusionUpscaler, Upscaler, load_upscaler
from tasks.diffusion import DiffusionRun
from tasks.enlargement import check_measurable, measure
from training.data import open_validation
from training.precision import place
from training.processes import process_state
from training.script import ScriptParser, command


def load(run: str) -> Upscaler:
    """The model of a run, with the sampler of its settings, on the device."""
    upscaler: Upscaler = load_upscaler(run)
    settings = read_run(run, [])
    if isinstance(upscaler, DiffusionUpscaler) and isinstance(settings, DiffusionRun):
        upscaler = replace(upscaler, options=settings.sample.options)
    place(upscaler.net, process_state().device)
    return upscaler


@command
def main(argv: Sequence[str]) -> None:
    """Prints the table and writes the picture."""
    p = ScriptParser(description=__doc__.splitlines()[0])
    p.add_argument("runs", nargs="+", help="run folders of train.py")
    p.add_argument("--out", type=Path, required=True, help="the picture")
    args = p.parse_args(argv)
    images = open_validation(read_run(args.runs[0], []).data)
    if images is None:
        raise ValueError(f"no pictures were held out of {args.runs[0]}; train it with data.validation, such as test")
    upscalers = [load(run) for run in args.runs]
    if len({each.scale for each in upscalers}) > 1:
        raise ValueError(f"the models have the scales {[each.scale for each in upscalers]}; give models of one scale")
    for upscaler in upscalers:
        upscaler.check()
        check_measurable(images, upscaler.channels, upscaler.scale)
    print("| model | PSNR (dB) | SSIM | s per picture |\n|---|---|---|---|")
    panels = list[list[np.ndarray]]()
    for run, upscaler in zip(args.runs, upscalers, strict=True):
        began = time.perf_counter()
        found = measure(upscaler, images)
        assert found is not None, "no interrupt callback was given"
        figures, rows = found
        if not panels:
            print(f"| bicubic | {figures['bicubic_psnr']:.2f} | {figures['bicubic_ssim']:.4f} | |")
        seconds = (time.perf_counter() - began) / len(images)
        print(f"| {Path(run).name} | {figures['psnr']:.2f} | {figures['ssim']:.4f} | {seconds:.1f} |", flush=True)
        panels.append([row[2] for row in rows if row[2] is not None])
    lines = [
        np.stack([same[0][0], same[0][1], *(each[2] for each in same), same[0][3]])
        for same in zip(*panels, strict=True)
    ]
    draw_grid(np.concatenate(lines), columns=3 + len(upscalers)).quantize(128).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
