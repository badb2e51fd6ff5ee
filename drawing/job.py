"""What one command draws: the model, labels and images given, checked before any work, and what is recorded of them."""

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion import generators
from diffusion.edits import slerp
from diffusion.options import ALL_LEVELS
from diffusion.sampler import steps_made
from diffusion.seeds import standard_normal
from drawing.conditions import Conditions, open_conditions
from drawing.given import Given, open_given, open_masks
from drawing.nearest import open_training
from drawing.observed import Observations, open_observations
from drawing.options import (
    COLUMNS,
    FRAMES,
    MAX_IN_GRID,
    NUM,
    RESAMPLE,
    STRENGTH,
    denoising_options,
    show,
)
from drawing.series import Series, sweep_rows
from pictures.files import are_pictures, check_savable
from pictures.grid import grid_size
from pipelines.classification import load_classifier
from pipelines.diffusion import MAX_RESAMPLE, DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.labels import NO_LABEL
from storage.show import printable
from storage.write import expand_home
from training.averages import Average, RunAverages, load_average
from training.data import Images
from training.output_folder import OutputFolder, default_folder, weights_sha256
from training.precision import choose_precision
from training.processes import process_state
from training.script import VERSION

MAX_OF_SEED = 1_000_000
"""images; more would be those of the next seed (see `image_seed`)"""
ALL = "all"
"""label for the classes in turn, unless a class has this name"""
MAX_TEXT = 200
"""characters of a name in the metadata of a picture"""
RECORD, NETCDF = "samples.json", "samples.nc"
NAMES = (
    "images",
    "labels.csv",
    "conditions.csv",
    "grid.png",
    "animation.gif",
    "samples.npz",
    NETCDF,
    "between.gif",
    "nearest.png",
    "nearest.csv",
)
RECORDED = (
    *("num", "seed", "label", "sampler", "steps", "eta", "churn", "guidance", "guidance_rescale", "guide_ema"),
    *("strength", "resample", "invert", "between", "morph", "sweep", "members", "vector", "operator", "observe_noise"),
)
"""options that samples.json names"""
IN_PICTURES = (
    *("eta", "churn", "ema", "guidance_rescale", "guide", "guide_ema", "classifier"),
    *("strength", "from", "mask", "grey", "resample", "invert", "between", "morph", "vector"),
    *("observe", "operator", "observe_noise"),
)
"""options that the metadata of a picture names only where they are given"""
OF_PIXELS = ("size", "window", "overlap", "mask", "grey", "invert", "observe", "classifier")
"""options that a model of latents does not take"""

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
    series: Series
    conditions: Conditions
    """those of --condition and --vector"""
    given: Given | None
    """the images of --from or --grey"""
    observations: Observations | None
    """those of --observe"""
    training: Images | None
    """those of --nearest"""
    toward: int | None
    """the second label of --morph"""

    def __len__(self) -> int:
        """The number of images."""
        return len(self.series)

    @property
    def in_grid(self) -> int:
        """Images that the grid and the animation show: the first ones."""
        return min(len(self), MAX_IN_GRID)

    def options(self, number: int) -> argparse.Namespace:
        """The options of the command for an image."""
        return argparse.Namespace(**vars(self.args) | self.series.row(number))

    def recorded_labels(self, numbers: Sequence[int]) -> list[int] | None:
        """The labels that files name; None also for images between two labels."""
        return self.labels(numbers) if self.toward is None else None

    def steps(self, number: int) -> int:
        """Steps that `chain` makes for an image."""
        args = self.options(number)
        made = steps_made(args.steps, args.strength or 1, args.resample or 1)
        return 2 * made - 1 if args.invert else made

    def file(self, number: int) -> str:
        """The name of the file of an image."""
        return f"{number:06d}.{self.model.output_format.file}"

    def chain(self, numbers: Sequence[int]) -> Iterator[Float[Tensor, "b c h w"]]:
        """Draws images of one row: yields where they start, then each of `steps`, last the images."""
        args, columns, labels = self.options(numbers[0]), list(map(self.series.column, numbers)), self.labels(numbers)
        options: dict[str, Any] = denoising_options(args) | {"device": self.device}
        options |= self.conditions.options(columns)
        if args.invert:
            assert self.given is not None, "RULES"
            for noise in self.model.inverting(self.given.unit(columns), labels, **options):
                yield noise
            options["noise"] = noise
        if args.between:
            first, second = (end.expand(len(numbers), -1, -1, -1) for end in self._ends)
            options["noise"] = slerp(first, second, torch.tensor(self.series.shares(numbers), device=self.device))
        if self.given is not None:
            options["origin"] = None if args.strength is None else self.given.unit(columns)
            options["project"] = self.given.projection(columns, self.device)
        if self.observations is not None:
            options["observation"] = self.observations.of(columns)
        if self.toward is not None:
            options["toward"] = [self.toward] * len(numbers), self.series.shares(numbers)
        seeds, resample = self.series.seeds(numbers), args.resample or 1
        drawn = self.model.denoising(seeds, labels, seed=args.seed, resample=resample, **options)
        yield from islice(drawn, 1 if args.invert else 0, None)

    @cached_property
    def _ends(self) -> list[Float[Tensor, "1 c h w"]]:
        """The noise at both ends of --between."""
        if self.given is None:
            return [standard_normal(generators(seed, [0]), self.model.shape, self.device) for seed in self.args.between]
        origin, options = self.given.unit(self.args.between), denoising_options(self.args)
        options |= self.conditions.options([0, 0])
        noise = deque(self.model.inverting(origin, self.labels([0, 0]), device=self.device, **options), maxlen=1).pop()
        return list(noise.split(1))

    def kept(self, number: int) -> np.ma.MaskedArray | None:
        """The values (c, h, w) that an image keeps from its file, the others masked; None without a mask."""
        return None if self.given is None else self.given.kept(self.series.column(number))

    def beside(self, number: int) -> list[np.ndarray]:
        """The values (c, h, w) of images that the grid shows before an image: what was known of it."""
        if self.observations is not None:
            return list(self.model.pixel_format.from_unit(self.observations.shown([self.series.column(number)])))
        if self.given is None or self.args.between or not (self.args.mask or self.args.grey or self.args.invert):
            return []
        return list(self.model.pixel_format.from_unit(self.given.known([self.series.column(number)])))

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
            **{
                name: None if value is None else printable(str(value))
                for name, value in {
                    "from": args.origin,
                    "mask": args.mask,
                    "grey": args.grey,
                    "observe": args.observe,
                }.items()
            },
            "from_sha256": None if self.given is None else self.given.images.fingerprint,
            "mask_sha256": None if self.given is None or self.given.masks is None else self.given.masks.fingerprint,
            "observe_sha256": None if self.observations is None else self.observations.images.fingerprint,
            "condition": None if args.condition is None else printable(str(args.condition)),
            "condition_sha256": None if self.conditions.images is None else self.conditions.images.fingerprint,
            "nearest": args.nearest,
            "nearest_sha256": None if self.training is None else self.training.fingerprint,
            "guide": None if args.guide is None else printable(str(args.guide)),
            "guide_sha256": None if model.guide is None else weights_sha256(model.guide),
            "classifier": None if args.classifier is None else printable(str(args.classifier)),
            "classifier_sha256": None if model.classifier is None else weights_sha256(model.classifier.net),
            "classifier_scale": None if model.classifier is None else args.classifier_scale,
            "classes": None if model.classes is None else len(model.classes),
            "shape": list(model.output_shape),
            "windows": None if model.windows is None else list(map(list, model.windows)),
            "pixel_format": asdict(model.output_format),
            **({} if model.autoencoder is None else {"autoencoder_sha256": model.autoencoder.fingerprint}),
            "device": self.device.type,
            "precision": args.precision,
            "compile": args.compile,
        }

    def text(self, number: int) -> dict[str, str]:
        """The metadata of a picture."""
        args, labels = self.options(number), self.recorded_labels([number])
        text = {"Software": VERSION, "model": str(args.model), "image": number}
        text |= {name: getattr(args, name) for name in ("seed", "sampler", "steps", "guidance")}
        given = {name: getattr(args, "origin" if name == "from" else name) for name in IN_PICTURES}
        text |= {name: show(value) for name, value in given.items() if value}
        text |= {"share": show(self.series.shares([number])[0])} if self.series.frames else {}
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
    if model.autoencoder is not None:
        _check_latents(args)
    model = _sized(args, model)
    if args.classifier is not None:
        model = model.classified_by(load_classifier(args.classifier))
    out = OutputFolder(args.out, args.model, RECORD, NAMES)
    out.check()
    _complete(args, model)
    rows = _check(args, model)
    labels, toward = _labels(args, model, rows)
    device = choose_device(args.device)
    args.precision, _ = choose_precision(args.precision, device, "precision")
    conditions = open_conditions(args.condition, args.members or 1, args.vector, model)
    given = _open_given(args, model)
    observations = None
    if args.observe is not None:
        words, members = args.operator or (), args.members or 1
        observations = open_observations(args.observe, words, args.observe_noise, members, model)
    training = None if args.nearest is None else open_training(args.nearest, args.model, model)
    args.num = _number(args, given, conditions, observations)
    series = Series(args.num, rows, frames=bool(args.between or args.morph))
    if len(series) > MAX_OF_SEED:
        raise ValueError(f"num={args.num} is more than {MAX_OF_SEED}; draw them in parts, each with its own --seed")
    _check_shown(args, model, series)
    by_column = lambda numbers: labels(list(map(series.column, numbers)))  # noqa: E731
    opened = conditions, given, observations, training
    return Job(args, model, average, out, by_column, device, series, *opened, toward)


def _sized(args: argparse.Namespace, model: DiffusionModel) -> DiffusionModel:
    """The model with the size and the windows of --size, --window and --overlap. Raises ValueError for those that it
    does not have."""
    if args.overlap is not None and not args.window and model.windows is None:
        raise ValueError(f"overlap={args.overlap} is that of windows, or of pictures to enlarge; give --window, too")
    if args.window and args.size is None and model.windows is None:
        own = "x".join(map(str, model.shape[1:]))
        raise ValueError(f"window draws images that are larger than the {own} px of the training; give --size, too")
    if args.window or args.overlap is not None:
        model = model.in_windows(args.overlap)
    return model if args.size is None else model.sized(*args.size)


def _check_latents(args: argparse.Namespace) -> None:
    """Raises ValueError for options that change or observe pixels, in the place of which the model draws latents."""
    for name in OF_PIXELS:
        if (value := getattr(args, name)) not in (None, False):
            raise ValueError(
                f"{name}={show(value)} is for models of pixels, but this one draws latents of an autoencoder; leave it "
                "out"
            )


def _complete(args: argparse.Namespace, model: DiffusionModel) -> None:
    """Options that follow from others."""
    if args.sampler is None:
        args.sampler = "euler" if _inverts(args) else model.default_sampler
    if args.strength is None and args.origin is not None and not (args.mask or args.invert or args.between):
        args.strength = STRENGTH
    if args.resample is None and args.mask is not None:
        args.resample = RESAMPLE


def _inverts(args: argparse.Namespace) -> bool:
    """Whether images are drawn from the noise of others."""
    return args.invert or bool(args.between and args.origin is not None)


def _number(
    args: argparse.Namespace, given: Given | None, conditions: Conditions, observations: Observations | None
) -> int:
    """The number of images, or of columns."""
    if args.num is not None:
        return args.num
    if conditions.count is not None:
        return conditions.count
    if args.between or args.morph:
        return FRAMES
    if args.sweep:
        return COLUMNS
    if observations is not None:
        return observations.count
    return len(given.images) if given is not None and (args.grey or args.invert) else NUM


def _open_given(args: argparse.Namespace, model: DiffusionModel) -> Given | None:
    """The images of --from or --grey, and the mask. Raises ValueError if they do not fit."""
    if args.grey is not None:
        if model.shape[0] != 3:
            raise ValueError(
                f"grey={args.grey} needs a model that draws colours; this one has {model.shape[0]} channel"
            )
        return Given(open_given("grey", args.grey, model), grey=True)
    if args.origin is None:
        return None
    images = open_given("from", args.origin, model, exact=args.mask is not None)
    if args.between and (wrong := [k for k in args.between if not 0 <= k < len(images)]):
        raise ValueError(f"between: there is no picture {wrong[0]} in {args.origin!r}; give 0 to {len(images) - 1}")
    masks = None if args.mask is None else open_masks(args.mask, images)
    return Given(images, masks, encoded=model.encoded)


def _check(args: argparse.Namespace, model: DiffusionModel) -> tuple[dict[str, Any], ...]:
    """The rows of --sweep. Raises ValueError for options that do not suit the model, or each other."""
    for name in ("num", "batch", "members"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"{name}={value} draws no image; give at least 1")
    for name, seed in [("seed", args.seed), *(("between", k) for k in args.between or () if args.origin is None)]:
        if not 0 <= seed < 2**32:
            raise ValueError(f"{name}={seed} is out of range; give 0 or more, below 2^32")
    for name in ("between", "morph"):
        ends = getattr(args, name)
        if ends and ends[0] == ends[1]:
            raise ValueError(f"{name}={ends[0]} {ends[1]} has equal ends; give two different ones")
        if ends and args.num == 1:
            raise ValueError(f"num=1 shows nothing between the ends of --{name}; give at least 2")
    check_savable(model.output_shape[0], model.output_format)
    if args.npz and not are_pictures(model.output_shape[0], model.output_format):
        raise ValueError("npz is for evaluators of pictures, but this model draws arrays; read the .npy files instead")
    if args.resample is not None and not 1 <= args.resample <= MAX_RESAMPLE:
        raise ValueError(f"resample={args.resample} is out of range; give 1 (each step once) to {MAX_RESAMPLE}")
    options = denoising_options(args)
    if args.sweep:
        return sweep_rows(args.sweep, model, options)
    check = model.check_inversion if _inverts(args) else model.check
    check(**options)
    return ({},)


def _check_shown(args: argparse.Namespace, model: DiffusionModel, series: Series) -> None:
    """Raises ValueError for a series that its grid or animation would cut."""
    if not (series.frames or (args.grid and len(series.rows) > 1)):
        return
    most = grid_size(MAX_IN_GRID, model.output_shape, model.output_format) if args.grid else MAX_IN_GRID
    if len(series) > most:
        raise ValueError(
            f"num={args.num} makes a series of {len(series):,} images, but {most} are shown; give a smaller --num"
            f"{', or --no-grid' if args.grid else ''}"
        )


def _labels(
    args: argparse.Namespace, model: DiffusionModel, rows: Sequence[dict[str, Any]]
) -> tuple[Labels, int | None]:
    """The labels of columns, and the one towards which --morph moves. Raises ValueError for labels that do not suit."""
    if args.morph:
        first, second = map(model.label, args.morph)
        if model.classifier is not None and model.null in (first, second):
            raise ValueError(f"classifier guides towards classes, but morph={show(args.morph)}; give two classes")
        return lambda columns: [first] * len(columns), second
    fixed = args.mask or args.grey or args.invert or args.between or args.observe
    way_out = "give --label" if args.label is None else "leave one of them out"
    if fixed and args.label is None and model.classes is not None:
        if model.null is None:
            raise ValueError("label is needed, because this model was not trained without labels; give --label")
        args.label = NO_LABEL
    every = args.label is None or (args.label == ALL and ALL not in (model.classes or ()))
    if every and not args.between:
        return model.cycle, None
    if every and model.classes is None:
        return model.cycle, None
    if every:
        raise ValueError("between draws images of one label, but label is all; give a class")
    label = model.label(args.label)
    for row in rows:
        guidance = row.get("guidance", args.guidance)
        if guidance != 1 and label == model.null and model.guide is None:
            raise ValueError(f"guidance={guidance:g} strengthens a label, but label is none; {way_out}")
    if model.classifier is not None and label == model.null:
        raise ValueError(f"classifier guides towards a class, but label is none; {way_out}")
    return lambda columns: [label] * len(columns), None


def choose_device(name: str) -> torch.device:
    """The device of this process. Raises ValueError if torch has no such device or cannot use it."""
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
