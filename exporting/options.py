"""The command line of export.py. Needs no PyTorch, so that help and errors come at once."""

import argparse
from pathlib import Path
from typing import get_args

from pipelines.graph_formats import SUFFIXES
from resnet.layout_names import EDSR_LAYOUT, DenseNetLayoutName, ResNetLayoutName
from training.options import EMA_HELP
from training.script import ScriptParser
from unet.layout_names import EDM2LayoutName, UNetLayoutName

DIFFUSERS, SPACE = "diffusers", "space"
_NAMES = (UNetLayoutName, EDM2LayoutName, ResNetLayoutName, DenseNetLayoutName)
LAYOUTS = sorted({*(name for names in _NAMES for name in get_args(names)), EDSR_LAYOUT} - {DIFFUSERS})
"""layouts whose names weights can have; that of diffusers is part of its folder"""
TARGETS = (DIFFUSERS, SPACE, *SUFFIXES, *LAYOUTS)


def make_parser(about: str) -> ScriptParser:
    """The command line of a script with this description."""
    p = ScriptParser(
        prog="export.py",
        usage="%(prog)s RUN_OR_MODEL (--out DIR | --push OWNER/NAME) [--OPTION VALUE ...]",
        description=about,
    )
    p.add_argument("model", metavar="RUN_OR_MODEL", help="run folder of train.py (its averaged model), or model folder")
    group = p.add_argument_group("what is written, and where")
    group.add_argument(
        "--to",
        choices=TARGETS,
        metavar="TARGET",
        help="diffusers: a folder for its pipelines; space: a folder for a Hugging Face Space; onnx or pt2: network "
        "and sampler step as ONNX or as programs of "
        f"torch.export; {', '.join(LAYOUTS)}: weights under the names of that library or code (default: diffusers "
        "with --out, the model folder itself with --push)",
    )
    place = group.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="DIR", help="the folder to write; an earlier export is replaced")
    place.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="the repository of the Hugging Face hub to upload to; sample.py, train.py --init and load_model (or "
        "load_classifier) then open the model by this name",
    )
    group.add_argument("--private", action="store_true", help="a new repository is private")
    group = p.add_argument_group("the model")
    group.add_argument(
        "--label",
        metavar="CLASS|none",
        help="export one class of a model with classes (by name or number), or the model without labels (none), for "
        "diffusers' pipelines; without this flag all classes are exported, for a loop of your own",
    )
    group.add_argument("--ema", type=float, metavar="WIDTH|IMAGES", help=EMA_HELP)
    group.add_argument("--license", metavar="NAME", help="licence of the model in its card, such as apache-2.0")
    return p


def check_together(args: argparse.Namespace) -> None:
    """Raises ValueError for options that make no sense together."""
    if args.push is not None and args.to not in (None, DIFFUSERS):
        raise ValueError(f"push uploads the model folder, or --to diffusers; write --to {args.to} to a folder by --out")
    if args.private and args.push is None:
        raise ValueError("private belongs to a repository of the hub; give --push, or leave it out")
    if args.label is not None and (args.to or (args.out and DIFFUSERS)) != DIFFUSERS:
        raise ValueError(f"label={args.label!r} is for --to diffusers; give it, or leave the label out")
