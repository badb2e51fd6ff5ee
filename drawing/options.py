"""The command line of sample.py, in groups of options."""

import argparse
from pathlib import Path
from typing import Any

from diffusion import SAMPLERS
from diffusion.guidance import ALL_LEVELS
from pipelines.diffusion import STEPS
from training.averages import OPTION
from training.precision import PRECISIONS
from training.script import ScriptParser

MAX_IN_GRID = 256
BATCH, BATCH_OF_CPU = 512, 64
"""images per forward pass where memory allows; more are not faster"""
STRENGTH = 0.5
DENOISING = ("sampler", "steps", "eta", "churn", "guidance", "guidance_rescale", "classifier_scale")
"""options that `DiffusionModel.denoising` takes by the same name"""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of an option to its help, if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def make_parser(about: str) -> argparse.ArgumentParser:
    """The command line of a script with this description."""
    p = ScriptParser(prog="sample.py", description=about, formatter_class=HelpFormatter, allow_abbrev=False)
    p.add_argument("model", metavar="RUN_OR_MODEL", help="run folder of train.py (its averaged model), or model folder")
    p.add_argument("--ema", type=float, metavar="WIDTH|IMAGES", help=OPTION)
    p.add_argument("--num", type=int, default=64, help="number of images")
    p.add_argument("--seed", type=int, default=0, help="image k of a seed is the same for every --num and --batch")
    _add_sampler(p.add_argument_group("sampler"))
    _add_guidance(p.add_argument_group("labels and guidance"))
    _add_given(p.add_argument_group("images to start from"))
    _add_upscaling(p.add_argument_group("pictures to enlarge"))
    _add_output(p.add_argument_group("output"))
    _add_machine(p.add_argument_group("machine"))
    return p


def denoising_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `DiffusionModel.denoising` that stand in the command line."""
    strength = {} if args.origin is None else {"strength": args.strength}
    interval = tuple(args.guidance_interval)
    return {name: getattr(args, name) for name in DENOISING} | {"guidance_interval": interval} | strength


def _add_sampler(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help="steps of the sampler, at most the timesteps of the model (heun evaluates the network twice per step)",
    )
    group.add_argument(
        "--sampler", help=f"one of: {', '.join(SAMPLERS)}; without it ddim for ddpm models, heun for others"
    )
    group.add_argument(
        "--eta", type=float, default=0.0, help="noise that ddim adds, from 0 (none) to 1 (as much as ddpm)"
    )
    group.add_argument(
        "--churn", type=float, default=0.0, help="noise that heun adds and removes again: S_churn of EDM"
    )


def _add_guidance(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--label",
        help="a class, by its name, or by its number if no name is a number; all: the classes in turn, as by default; "
        "none: no label. A class that is called all or none comes first",
    )
    group.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="strength of the label: 0 none, 1 as trained, above 1 stronger (and twice the time)",
    )
    group.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        default=list(ALL_LEVELS),
        metavar=("LOW", "HIGH"),
        help="noise levels (sigma / alpha) within which guidance acts",
    )
    group.add_argument(
        "--guidance-rescale",
        type=float,
        default=0.0,
        help="share of a guided image whose contrast is set to that without guidance, from 0 to 1",
    )
    group.add_argument(
        "--guide",
        metavar="RUN_OR_MODEL",
        help="a worse model of the same images, such as a smaller or less trained one: --guidance moves away from it, "
        "not from the images without a label (autoguidance)",
    )
    group.add_argument("--guide-ema", type=float, metavar="WIDTH|IMAGES", help="that average of the run in --guide")
    group.add_argument(
        "--classifier",
        metavar="RUN_OR_MODEL",
        help="a classifier of images with the model's noise (train.py --task classification --noise.kind ...), whose "
        "gradient moves images towards their class; with --guidance 0 alone, else in addition",
    )
    group.add_argument("--classifier-scale", type=float, default=1.0, help="strength of that gradient")


def _add_given(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--from",
        dest="origin",
        metavar="IMAGES",
        help="change images instead of drawing new ones: a folder, file or table of them; image k starts at picture k, "
        "and after the last picture at the first one again. They are scaled and cropped to the size of the model",
    )
    group.add_argument(
        "--strength",
        type=float,
        default=None,
        help="share of the steps with which --from changes the images, above 0 (hardly) to 1 (nearly new images); "
        f"without it {STRENGTH:g}",
    )


def _add_upscaling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--upscale",
        metavar="IMAGES",
        help="enlarge pictures of any size with a model that was trained for it: a folder, file or table of them",
    )
    group.add_argument(
        "--tile",
        type=int,
        metavar="PX",
        help="side of the tiles that are enlarged one by one, in pixels of the small picture; without it the model's",
    )
    group.add_argument(
        "--overlap", type=int, metavar="PX", help="pixels that neighbouring tiles share, in which they are blended"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for images/000000.png … (.npy for models trained on arrays); replaced as a whole if it holds an "
        "earlier output with this model; without it drawn in the folder of the run or model",
    )
    group.add_argument(
        "--grid",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also write grid.png: the first {MAX_IN_GRID} images with the names of their classes",
    )
    group.add_argument("--animation", action="store_true", help="also write animation.gif, the grid as it is denoised")
    group.add_argument(
        "--npz",
        action="store_true",
        help="also write samples.npz for evaluators: arr_0, RGB of 8 bits (n, h, w, 3), and arr_1, the labels",
    )


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch",
        type=int,
        help=f"images per forward pass, on each process; without it {BATCH_OF_CPU} on a CPU, {BATCH} on other devices, "
        "or as many as fit into free memory. Halved while it does not fit",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the network; bf16 is faster on most hardware that has it, but rounds images otherwise on each device; "
        "auto: bf16 if the hardware has it",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the network before it draws, which takes half a minute and more; then it draws faster",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, mps, …; auto: the fastest available")
