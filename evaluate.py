"""Evaluate a trained model, or images that were drawn with one.

python evaluate.py RUN
python evaluate.py RUN --data.source my_images
python evaluate.py RUN --quality.judge CLASSIFIER --quality.steps 18
python evaluate.py MODEL --data.source my_images --data.validation 0.5 --quality.judge CLASSIFIER
python evaluate.py DRAWN --data.source my_images --data.validation 0.5 --quality.judge CLASSIFIER
torchrun --nproc_per_node 4 -- evaluate.py RUN

RUN is a run folder of train.py; MODEL a model folder (of this project or diffusers') or its name on the hub; DRAWN a
folder of images, such as one of sample.py, or an .npz file. What is in a run folder has the settings of that run.

A run's averaged model is compared with its held-out images, or with those of another source: with all of data.split,
unless data.validation names a part of them. Of a classifier, accuracy and loss are printed. A diffusion model draws as
many images as are held out, with the same labels; their distances from the held-out ones are printed, by the features
of a judge: a classifier of such images, trained by train.py --task classification, or a file of TorchScript. The floor
is the same figure of training images in place of drawn ones.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipelines.classification import DESCRIPTION_FILE as CLASSIFIER
from pipelines.classification import load_classifier
from pipelines.diffusion import DESCRIPTION_FILE as DIFFUSION
from pipelines.diffusion import load_model
from residual.names import amount, require_known
from storage.read import is_regular
from storage.show import printable
from tasks import RUNS
from tasks.accuracy import accuracy
from tasks.classification import ClassificationRun, as_trained
from tasks.comparison import Comparison, class_names
from tasks.diffusion import DiffusionRun
from tasks.drawn_images import are_images, open_drawn
from training.cli import Schema, parse, read_flags
from training.data import DataConfig, Images, ImageSet, open_images, open_validation
from training.processes import leave_processes, on_main, process_state
from training.script import VERSION, command, require_printed, show_and_exit
from training.yaml_file import read_settings

USAGE = (
    "usage: evaluate.py RUN|MODEL|DRAWN [--data.KEY VALUE ...] [--quality.KEY VALUE ...] "
    "[--classification.validation_batch N]"
)
ALLOWED = ("data.", "quality.", "classification.validation_batch")
OF_MODELS = (DIFFUSION, CLASSIFIER, "model_index.json", "scheduler_config.json", "config.json")
"""files by which a model folder is known"""
NEEDS_CLASSES = ("inception_score", "class_accuracy")
"""metrics that need the judge's probabilities of classes"""


@dataclass(frozen=True)
class Result:
    """The figures of a model or of images, and lines that say what was evaluated."""

    found: Mapping[str, float]
    lines: Sequence[str]
    remarks: Mapping[str, str] = field(default_factory=dict)
    """what is printed after a figure"""


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, evaluates, prints one line per figure."""
    if not argv:
        raise ValueError(f"no run is given; {USAGE}")
    given, flags = (None, argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    own, settings = read_flags(flags)
    if "version" in own:
        show_and_exit(VERSION)
    if "help" in own:
        show_and_exit("\n".join([__doc__, USAGE, *([] if given is None else _settings_help(given, settings))]))
    if given is None:
        raise ValueError(f"no run is given before {argv[0]}; {USAGE}")
    kind, run = kind_of(given), read_run(given, flags)
    if kind == "drawn":
        result = _drawn(given, run)
    else:
        result = _quality(given, run) if isinstance(run, DiffusionRun) else _accuracy(given, run)
    found = result.found
    if process_state().is_main_process:
        print("\n".join(result.lines))
        for name, value in found.items():
            print(f"{name}: {value:.4f}{result.remarks.get(name, '')}")
        require_printed()
    if wrong := [name for name, value in found.items() if not math.isfinite(value)]:
        raise ValueError(
            f"{given}: {wrong[0]} is {found[wrong[0]]}; its model is damaged or diverged, so train it again"
        )
    leave_processes()


def _accuracy(given: str, run: ClassificationRun) -> Result:
    """The figures of a classifier."""
    classifier = load_classifier(given)
    images = open_validation(run.data, on_main=on_main)
    if images is None:
        raise ValueError(f"no images were held out of {given}; give --data.validation, such as test or 0.2")
    images = as_trained(classifier.shape, classifier.pixel_format, classifier.classes, images)
    classifier.net.to(process_state().device)
    found = accuracy(classifier, images, run.classification.validation_batch)
    assert found is not None, "no interrupt callback was given"
    count = len(images)
    remarks = {
        name: f" ({round(value * count):,} of {count:,})" for name, value in found.items() if name.startswith("top")
    }
    return Result(found, [_model_line(given, classifier.images_seen), f"images: {images}"], remarks)


def _quality(given: str, run: DiffusionRun) -> Result:
    """The metrics of what a diffusion model draws."""
    model, trained_on = load_model(given), _training_images(given, run)
    if model.classes == tuple(map(str, range(len(trained_on.classes or ())))):  # a folder of diffusers has no names
        model = replace(model, classes=trained_on.classes)
    quality = run.open_quality(model, trained_on)
    assert quality is not None, "a judge was given"
    model.net.to(process_state().device)
    found = quality.measure(model.net)
    assert found is not None, "no interrupt callback was given"
    return _compared([_model_line(given, model.images_seen)], found, quality.comparison)


def _drawn(given: str, run: ClassificationRun | DiffusionRun) -> Result:
    """The metrics of images that were drawn before."""
    if not isinstance(run, DiffusionRun):
        raise ValueError(f"{given} holds images, but its run is a classifier's; move them out of its folder")
    training, held_out = _training_images(given, run), open_validation(run.data, on_main=on_main)
    if not (isinstance(held_out, Images) and isinstance(training, Images)):
        raise ValueError("images are compared from a cache, but data.stream is true; give false")
    images = open_drawn(Path(given), run.data, held_out)
    comparison = Comparison(run.quality, held_out, training, images)
    assert comparison.drawn is not None, "the images were given"
    found = comparison.compare(comparison.features(comparison.drawn), class_names(comparison.drawn))
    return _compared([f"drawn: {printable(given)}, {images}"], found, comparison)


def _training_images(given: str, run: DiffusionRun) -> ImageSet:
    """The images that the model was trained on. Raises ValueError without a judge, or if some would be held out."""
    if run.quality.judge is None:
        raise ValueError(
            f"quality.judge is null, but the metrics of {given} need one; give --quality.judge RUN, a run of train.py "
            "--task classification on such images, or a file of TorchScript"
        )
    own = run.data
    if _config_of(given) is not None:
        own, part = read_run(given, []).data, run.data.validation
        other_split = isinstance(part, str) and part != own.split
        if not (part == own.validation or other_split or _is_moved(run.data, own)):
            raise ValueError(
                f"data.validation={part} is not what the run held out (data.validation={own.validation}), so "
                "some of these images were trained on; leave it out, or give --data.source OTHER"
            )
    return open_images(own, on_main=on_main)


def _compared(lines: list[str], found: Mapping[str, float], comparison: Comparison) -> Result:
    """The metrics with their floors."""
    config, n = comparison.config, len(comparison)
    at = f"n {n:,}, seed {config.seed}"
    lines += [
        f"images: {comparison.held_out}",
        f"compared: {amount(n, 'image')} of each set by {config.judge} ({comparison.judge.num_features} features)",
    ]
    if left_out := [name for name in NEEDS_CLASSES if name not in found]:
        no_classes = comparison.judge.classes is None
        reason = "the judge gives no class probabilities" if no_classes else "the images have no classes of the judge"
        lines.append(f"left out: {', '.join(left_out)}, because {reason}")
    floors = {name: f"floor {value:.4f}" for name, value in comparison.floors.items()}
    floors["memorised"] = "0.5 where nothing is memorised"
    shown = {name: value for name, value in found.items() if name != "frechet_floor"}
    return Result(shown, lines, {name: f" ({floors.get(name, 'no floor')}, {at})" for name in shown})


def _model_line(given: str, seen: int | None) -> str:
    return f"model: {printable(given)} at {seen or 0:,} images seen"


def kind_of(given: str) -> Literal["model", "drawn"]:
    """Whether a run or model is given, or images. Raises ValueError for neither."""
    path = Path(given)
    if is_regular(path / "config.yaml") or any(is_regular(path / name) for name in OF_MODELS):
        return "model"
    if os.path.lexists(path):
        if are_images(path):
            return "drawn"
    elif given.count("/") == 1 and path.suffix != ".npz" and not given.startswith((".", "/", "~")):
        return "model"  # on the hub
    raise ValueError(
        f"{given!r} is neither a run folder (with config.yaml), nor a model folder ({DIFFUSION}, {CLASSIFIER} or "
        f"diffusers' files), nor a folder or .npz file of images; {USAGE}"
    )


def _settings_help(given: str, settings: Mapping[str, str]) -> list[str]:
    """The settings that can be changed, with those of the run."""
    kind_of(given)
    config = _config_of(given)
    file = {"task": _task_of(given)} if config is None else read_settings(config)[0]
    run = RUNS[require_known("task", str(file.pop("task", None)), RUNS)]
    return Schema(run, file, settings, config).fields(*ALLOWED)


def _config_of(given: str) -> Path | None:
    """The settings of the run that is given, or in whose folder that is which is given; None if there is no run."""
    path = Path(given).absolute()
    return next((config for folder in (path, path.parent) if is_regular(config := folder / "config.yaml")), None)


def _task_of(given: str) -> str:
    return "classification" if is_regular(Path(given, CLASSIFIER)) else "diffusion"


def read_run(given: str, flags: Sequence[str]) -> ClassificationRun | DiffusionRun:
    """The settings of a run, changed by `flags`; without a run, those that `flags` state. Raises ValueError for others.

    The images that the run held out, and its label file, belong to its own source and split: of another one all images
    are evaluated, unless `flags` name a part.
    """
    config = _config_of(given)
    own, settings = read_flags(flags)
    if wrong := next((name for name in (*own, *settings) if not name.startswith(ALLOWED)), None):
        raise ValueError(f"'--{wrong}' cannot be used with evaluate.py; {USAGE}")
    if config is None and "data.source" not in settings:
        kind_of(given)  # has an error of its own for what is nothing
        raise ValueError(
            f"{given} belongs to no run; give the images that it is compared with: --data.source SOURCE "
            "--data.validation SPLIT_OR_SHARE"
        )
    base = ["--task", _task_of(given), "--fresh"] if config is None else ["--config", str(config)]
    parsed = parse(RUNS, [*base, *([] if config is None else ["--run", str(config.parent)]), *flags])
    run = parsed.run
    if not isinstance(run, ClassificationRun | DiffusionRun):
        raise ValueError(f"{given} is a run of {parsed.task}, for which no evaluation is known")
    if config is None:
        return run
    own_data = parse(RUNS, ["--config", str(config), "--run", str(config.parent)]).run.data
    moved = _is_moved(run.data, own_data)
    if (moved or run.data.split != own_data.split) and "data.validation" not in settings:
        run = replace(run, data=replace(run.data, validation=run.data.split))
    if moved and "data.label_file" not in settings:
        run = replace(run, data=replace(run.data, label_file=None))
    return run


def _is_moved(data: DataConfig, own: DataConfig) -> bool:
    """Whether the images have another source than those of the run."""
    return os.path.realpath(os.path.expanduser(data.source)) != os.path.realpath(os.path.expanduser(own.source))


if __name__ == "__main__":
    main()
