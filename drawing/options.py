"""The command line of sample.py, in groups of options. Needs no PyTorch, so that help and errors come at once."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.options import ALL_LEVELS, SAMPLER_NAMES, STEPS, STRETCH
from training.options import EMA_HELP, PRECISIONS
from training.script import ScriptParser

MAX_IN_GRID = 256
BATCH, BATCH_OF_CPU = 512, 64
"""images per forward pass where memory allows; more are not faster"""
NUM, FRAMES, COLUMNS = 64, 9, 8
STRENGTH = 0.5
RESAMPLE = 4
OF_RUN = ""
"""--nearest without a source"""
SWEEPS: dict[str, tuple[type, Sequence[Any]]] = {
    "steps": (int, (5, 10, 20, 50, 100)),
    "sampler": (str, SAMPLER_NAMES),
    "guidance": (float, (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)),
}
"""options that --sweep varies: type and usual values"""
DENOISING = ("sampler", "steps", "eta", "churn", "guidance", "guidance_rescale", "classifier_scale")
"""options that `DiffusionModel.denoising` takes by the same name"""


@dataclass(frozen=True)
class Rule:
    """What an option means, one of the others that it needs, and those that make no sense with it."""

    about: str
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


RULES = {
    "condition": Rule("gives each image a condition", (), ("between", "morph")),
    "members": Rule("is the number of images for each condition or observation", ("condition", "observe")),
    "strength": Rule("is the share of the steps that change images", ("from",), ("grey", "invert", "between")),
    "mask": Rule("has a part of the images of --from drawn anew", ("from",), ("invert", "between", "morph")),
    "grey": Rule("draws the colours of its own images", (), ("from", "invert", "between", "morph")),
    "resample": Rule("brings what is drawn into harmony with what is known", ("mask", "grey")),
    "invert": Rule("reconstructs the images of --from", ("from",), ("between", "morph", "sweep")),
    "between": Rule("draws the images between two", (), ("sweep",)),
    "sweep": Rule("has another number of steps or order of images in each row", (), ("animation",)),
    "morph": Rule("draws the images between two classes", (), ("sweep", "from", "label")),
    "observe": Rule(
        "draws images that agree with observations",
        ("observe_noise",),
        ("from", "grey", "between", "morph", "compile"),
    ),
    "operator": Rule("is what the images are observed through", ("observe",)),
    "observe_noise": Rule("is the noise of observations", ("observe",)),
    "guide_ema": Rule("is an average of the guide", ("guide",)),
}


def make_parser(about: str) -> ScriptParser:
    """The command line of a script with this description."""
    p = ScriptParser(
        prog="sample.py",
        usage="%(prog)s RUN_OR_MODEL [--OPTION VALUE ...]",
        description=about,
    )
    p.add_argument("model", metavar="RUN_OR_MODEL", help="run folder of train.py (its averaged model), or model folder")
    _add_first(p.add_argument_group("what people change first"))
    _add_sampler(p.add_argument_group("sampler"))
    _add_guidance(p.add_argument_group("guidance"))
    _add_conditions(p.add_argument_group("conditions"))
    _add_given(p.add_argument_group("images to start from"))
    _add_observed(p.add_argument_group("observations that images agree with"))
    _add_series(p.add_argument_group("series of images"))
    _add_upscaling(p.add_argument_group("pictures to enlarge"))
    _add_output(p.add_argument_group("output"))
    _add_machine(p.add_argument_group("machine"))
    return p


def show(value: Any) -> str:
    """A value of an option, as it stands in a command line."""
    if isinstance(value, list):
        return " ".join(map(show, value))
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def denoising_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `DiffusionModel.denoising` that stand in the command line."""
    strength = {} if args.strength is None else {"strength": args.strength}
    interval = tuple(args.guidance_interval)
    return {name: getattr(args, name) for name in DENOISING} | {"guidance_interval": interval} | strength


def check_together(args: argparse.Namespace) -> None:
    """Raises ValueError for options that need another one, or that make no sense with it."""
    values = {"from" if name == "origin" else name: value for name, value in vars(args).items()}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    for name, rule in RULES.items():
        if name not in given:
            continue
        value = "" if given[name] is True else f"={show(given[name])}"
        if rule.needs and not any(other in given for other in rule.needs):
            needs = " or ".join(f"--{need.replace('_', '-')}" for need in rule.needs)
            raise ValueError(f"{name}{value} {rule.about}; give {needs}, too")
        if wrong := [other for other in rule.excludes if other in given]:
            raise ValueError(
                f"{name}{value} {rule.about}, which has no meaning with --{wrong[0]}; leave one of them out"
            )
    if args.sweep and (name := args.sweep[0]) in SWEEPS and values[name] != make_parser("").get_default(name):
        raise ValueError(
            f"sweep={name} sets {name} in each row, which leaves {name}={show(values[name])} unused; leave it out"
        )


def _add_first(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num",
        type=int,
        help=f"number of images, or of columns with --sweep; without it {NUM}, with --between and --morph {FRAMES}, "
        f"with --sweep {COLUMNS}, with --grey, --invert and --observe as many as are given",
    )
    group.add_argument(
        "--label",
        help="a class, by its name, or by its number if no name is a number; all: the classes in turn, as by default; "
        "none: no label, as by default with --mask, --grey, --invert, --observe and --between. A class that is called "
        "all or none comes first",
    )
    group.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="strength of the label: 0 none, 1 as trained, above 1 stronger (and twice the time)",
    )
    group.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help="steps of the sampler, at most the timesteps of the model (heun evaluates the network twice per step)",
    )
    group.add_argument(
        "--sampler",
        choices=SAMPLER_NAMES,
        metavar="NAME",
        help=f"one of: {', '.join(SAMPLER_NAMES)}; without it ddim for ddpm models, heun for others, and euler with "
        "--invert or with --from and --between",
    )
    group.add_argument("--seed", type=int, default=0, help="image k of a seed is the same for every --num and --batch")
    group.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="another size than that of the training: multiples of what the levels of the network can halve, or any "
        "size if it was trained with model.pad",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for images/000000.png … (.npy for models trained on arrays); replaced as a whole if it holds an "
        "earlier output with this model; without it drawn in the folder of the run or model",
    )
    group.add_argument(
        "--batch",
        type=int,
        help=f"images per forward pass, on each process; without it {BATCH_OF_CPU} on a CPU, {BATCH} on other devices, "
        "or as many as fit into free memory. Halved while it does not fit",
    )
    group.add_argument("--ema", type=float, metavar="WIDTH|IMAGES", help=EMA_HELP)


def _add_sampler(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--eta", type=float, default=0.0, help="noise that ddim adds, from 0 (none) to 1 (as much as ddpm)"
    )
    group.add_argument(
        "--churn", type=float, default=0.0, help="noise that heun adds and removes again: S_churn of EDM"
    )
    group.add_argument(
        "--window",
        action="store_true",
        help="draw images of --size, which may be any larger one, in windows of the size of the training that agree at "
        "every step; a model of patches with positions, fields or conditions does so without it, at the size of its "
        "data",
    )


def _add_guidance(group: argparse._ArgumentGroup) -> None:
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


def _add_conditions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--condition",
        metavar="FILES",
        help="conditions for models that were trained with data.condition: a folder, file or table in the format and "
        "the units of the training data; FILE:NAME is a column of a table or an array of an .npz file. Without --num "
        "as many images as conditions times --members",
    )
    group.add_argument(
        "--members",
        type=int,
        metavar="K",
        help="draw an ensemble of so many images for each condition or observation, one after the other; without it 1",
    )
    group.add_argument(
        "--vector",
        nargs="+",
        metavar="NAME=VALUE",
        help="numbers for models that were trained with data.vector_columns, in units of the data; without it they are "
        "hidden, if the model was also trained without",
    )


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
        f"without it {STRENGTH:g}, or 1 with --mask",
    )
    group.add_argument(
        "--mask",
        metavar="MASKS",
        help="inpainting: the pixels of --from that are white here are drawn anew, black ones stay exactly "
        "as they are. One mask for all images, or one for each, of the size of the model",
    )
    group.add_argument(
        "--grey", metavar="IMAGES", help="colourisation: draws the colours of these images and keeps their grey values"
    )
    group.add_argument(
        "--resample",
        type=int,
        metavar="TIMES",
        help=f"how often each {STRETCH} steps are made with --mask or --grey: more bring what is drawn into harmony "
        f"with what is known; without it {RESAMPLE} with --mask, 1 with --grey",
    )
    group.add_argument(
        "--invert",
        action="store_true",
        help="finds the noise from which the images of --from are drawn (DDIM inversion), draws them from it, and "
        "prints how exact they are",
    )


def _add_observed(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--observe",
        metavar="OBSERVATIONS",
        help="posterior sampling: draws images that agree with noisy observations, in the units of the data: arrays "
        "(.npy), in which NaN is a value that was not observed, or pictures. Image k belongs to observation k, or "
        "k // --members, and after the last one to the first one again",
    )
    group.add_argument(
        "--operator",
        nargs="+",
        metavar="NAME:NUMBER",
        help="what images are observed through, in this order: blur:SIGMA, a Gaussian of SIGMA pixels that continues "
        "images as the network does (zeros: reflects them), and downsample:FACTOR, the mean of each square of pixels; "
        "without it each pixel",
    )
    group.add_argument(
        "--observe-noise",
        type=float,
        nargs="+",
        metavar="STD",
        help="standard deviation of the noise of observations, in their units: one for all channels, or one for each",
    )


def _add_series(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--between",
        type=int,
        nargs=2,
        metavar=("A", "B"),
        help="draws images whose noise moves from that of seed A to that of seed B on a sphere; with --from, from the "
        "noise of picture A (counted from 0) to that of picture B. Also writes between.gif",
    )
    group.add_argument(
        "--morph",
        nargs=2,
        metavar=("LABEL", "LABEL"),
        help="draws images that move from one class to another, by the same noise or with --between",
    )
    group.add_argument(
        "--sweep",
        nargs="+",
        metavar=("NAME", "VALUE"),
        help=f"draws the same images with several values of an option: {', '.join(SWEEPS)}; the values behind it, or "
        "usual ones",
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
        "--overlap",
        type=int,
        metavar="PX",
        help="pixels that neighbouring tiles or windows share, in which they are blended; without it a quarter of a "
        "tile, half of a window",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
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
    group.add_argument(
        "--nearest",
        nargs="?",
        const=OF_RUN,
        metavar="SOURCE",
        help="also write nearest.png and nearest.csv: the training images that are nearest to each image, of the run, "
        "or of a source such as a folder",
    )


def _add_machine(group: argparse._ArgumentGroup) -> None:
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
