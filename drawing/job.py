"""What one command draws: the model, labels and images given, checked before any work, and what is recorded of them."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from diffusion.guidance import ALL_LEVELS
from diffusion.sampler import steps_made
from drawing.options import MAX_IN_GRID, STRENGTH, denoising_options
from pictures.files import are_pictures, check_savable
from pipelines.classification import load_classifier
from pipelines.diffusion import DiffusionModel, load_model
from storage.show import printable
from storage.write import expand_home
from training.averages import Average, RunAverages, load_average
from training.data import DataConfig, Images, open_images
from training.output_folder import OutputFolder, default_folder, weights_sha256
from training.precision import choose_precision
from training.processes import on_main, process_state
from training.script import VERSION

MAX_OF_SEED = 1_000_000
"""images; more would be those of the next seed (see `image_seed`)"""
ALL = "all"
"""label for the classes in turn, unless a class has this name"""
MAX_TEXT = 200
"""characters of a name in the metadata of a picture"""
RECORD = "samples.json"
NAMES = ("images", "labels.csv", "grid.png", "animation.gif", "samples.npz")
RECORDED = ("num", "seed", "label", "sampler", "steps", "eta", "churn", "guidance", "guidance_rescale", "guide_ema")
"""options that samples.json names"""
IN_PICTURES = ("eta", "churn", "ema", "guidance_rescale", "guide", "guide_ema", "classifier", "strength")
"""options that the metadata of a picture names only where they are given"""

Labels = Callable[[Sequence[int]], list[int] | None]
"""gives the labels of image numbers"""


@dataclass
class Job:
    """One command: its options, and everything that they name, opened and checked."""

    args: argparse.Namespace
    model: DiffusionModel
    average: Average | None
    """weights of the run that were asked for"""
    out: OutputFolder
    labels: Labels
    device: torch.device
    origin: Images | None
    """the images of --from"""

    @property
    def steps(self) -> int:
        """Steps that the sampler makes."""
        return self.args.steps if self.origin is None else steps_made(self.args.steps, self.args.strength)

    @property
    def in_grid(self) -> int:
        """Images that the grid and the animation show: the first ones."""
        return min(self.args.num, MAX_IN_GRID)

    def file(self, number: int) -> str:
        """The name of the file of an image."""
        return f"{number:06d}.{self.model.pixel_format.file}"

    def denoising(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The options of `DiffusionModel.denoising` for these images."""
        options = {"seed": self.args.seed, "device": self.device, **denoising_options(self.args)}
        if self.origin is not None:
            stored = self.origin.read(np.array(numbers) % len(self.origin))
            options["origin"] = self.origin.pixel_format.to_unit(torch.from_numpy(stored))
        return options

    def facts(self) -> dict[str, Any]:
        """What determines the images, for samples.json."""
        args, model = self.args, self.model
        interval = None if tuple(args.guidance_interval) == ALL_LEVELS else list(args.guidance_interval)
        return {
            "written_by": f"sample.py of {VERSION}",
            "model": printable(str(args.model)),
            "model_folder": self.out.model,
            "images_seen": model.images_seen,
            "ema": args.ema,
            "weights_sha256": weights_sha256(model.net),
            **{name: getattr(args, name) for name in RECORDED},
            "guidance_interval": interval,
            "from": None if args.origin is None else printable(str(args.origin)),
            "from_sha256": None if self.origin is None else self.origin.fingerprint,
            "strength": args.strength,
            "guide": None if args.guide is None else printable(str(args.guide)),
            "guide_sha256": None if model.guide is None else weights_sha256(model.guide),
            "classifier": None if args.classifier is None else printable(str(args.classifier)),
            "classifier_sha256": None if model.classifier is None else weights_sha256(model.classifier.net),
            "classifier_scale": None if model.classifier is None else args.classifier_scale,
            "classes": None if model.classes is None else len(model.classes),
            "shape": list(model.shape),
            "pixel_format": asdict(model.pixel_format),
            "device": self.device.type,
            "precision": args.precision,
            "compile": args.compile,
        }

    def text(self, number: int) -> dict[str, str]:
        """The metadata of a picture."""
        args, labels = self.args, self.labels([number])
        text = {"Software": VERSION, "model": str(args.model), "image": number}
        text |= {name: getattr(args, name) for name in ("seed", "sampler", "steps", "guidance")}
        text |= {name: getattr(args, name) for name in IN_PICTURES if getattr(args, name)}
        text |= {"classifier_scale": args.classifier_scale} if args.classifier else {}
        text |= {"precision": args.precision} if args.precision != "float32" else {}
        text |= {"compile": "True"} if args.compile else {}
        if labels is not None:
            text |= {"label": labels[0], "class": (self.model.names(labels) or [""])[0]}
        return {name: printable(str(value))[:MAX_TEXT] for name, value in text.items()}


def prepare(args: argparse.Namespace) -> Job:
    """Opens and checks what the options name, and completes them. Raises ValueError for what does not fit."""
    args.out = default_folder(args.model, "drawn") if args.out is None else expand_home("out", args.out)
    average = None if args.ema is None else RunAverages(args.model).choose(args.ema)
    model = load_average(load_model, args.model, average)
    if args.guide is not None:
        worse = None if args.guide_ema is None else RunAverages(args.guide).choose(args.guide_ema)
        model = model.guided_by(load_average(load_model, args.guide, worse))
    elif args.guide_ema is not None:
        raise ValueError(f"guide_ema={args.guide_ema:g} is an average of the guide; give --guide, too")
    if args.classifier is not None:
        model = model.classified_by(load_classifier(args.classifier))
    out = OutputFolder(args.out, args.model, RECORD, NAMES)
    out.check()
    args.sampler = model.default_sampler if args.sampler is None else args.sampler
    if args.origin is not None and args.strength is None:
        args.strength = STRENGTH
    labels = _check(args, model)
    device = choose_device(args.device)
    args.precision, _ = choose_precision(args.precision, device, "precision")
    origin = None if args.origin is None else open_given("from", args.origin, model)
    return Job(args, model, average, out, labels, device, origin)


def _check(args: argparse.Namespace, model: DiffusionModel) -> Labels:
    """The labels of image numbers. Raises ValueError for options that do not suit the model."""
    for name in ("num", "batch"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"{name}={value} draws no image; give at least 1")
    if args.num > MAX_OF_SEED:
        raise ValueError(f"num={args.num} is more than {MAX_OF_SEED}; draw them in parts, each with its own --seed")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"seed={args.seed} is out of range; give 0 or more, below 2^32")
    check_savable(model.shape[0], model.pixel_format)
    if args.npz and not are_pictures(model.shape[0], model.pixel_format):
        raise ValueError("npz is for evaluators of pictures, but this model draws arrays; read the .npy files instead")
    if args.origin is None and args.strength is not None:
        raise ValueError(f"strength={args.strength:g} is that of images to change; give --from, too")
    model.check(**denoising_options(args))
    if args.label is None or (args.label == ALL and ALL not in (model.classes or ())):
        return model.cycle
    label = model.label(args.label)
    if args.guidance != 1 and label == model.null and model.guide is None:
        raise ValueError(f"guidance={args.guidance:g} strengthens a label, but label is none; leave one of them out")
    if model.classifier is not None and label == model.null:
        raise ValueError("classifier guides towards a class, but label is none; leave one of them out")
    return lambda numbers: [label] * len(numbers)


def choose_device(name: str) -> torch.device:
    """The device of this process. Raises ValueError if torch does not know it or cannot use it."""
    if name == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    state = process_state()
    if name == "auto" or state.num_processes > 1:
        return state.device
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r} cannot be used: {str(error).splitlines()[0]}") from None


def open_given(option: str, source: str, model: DiffusionModel) -> Images:
    """The images that an option names, in the format of the model. Raises ValueError if they do not fit."""
    kept, (channels, *size) = model.pixel_format, model.shape
    as_trained: dict[str, Any] = {"channels": channels, "labels": False, "bits": 16 if kept.dtype == "uint16" else 8}
    if kept.file == "npy":
        as_trained |= {"range": (kept.low, kept.high), "bits": 8}
    config = DataConfig(source=str(source), size=(size[0], size[1]), **as_trained)
    try:
        images = open_images(config, on_main=on_main)
    except ValueError as error:
        raise ValueError(f"{option} {str(source)!r}: {error}") from None
    assert isinstance(images, Images), "they are not streamed"
    if images.shape != model.shape:
        raise ValueError(f"{option} {str(source)!r}: images of shape {images.shape}, but the model's are {model.shape}")
    return images
