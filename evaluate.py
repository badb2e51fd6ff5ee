"""Evaluate a trained model.

python evaluate.py RUN
python evaluate.py RUN --data.source my_images
python evaluate.py RUN --quality.judge CLASSIFIER --quality.steps 18
torchrun --nproc_per_node 4 -- evaluate.py RUN

The averaged model is compared with the held-out images, or with those of another source: with all of data.split, unless
data.validation names a part of them. Of a classifier, accuracy and loss are printed. A diffusion model draws as many
images with the same labels; their distances from the held-out ones are printed, by the features of a classifier of such
images, a run of train.py --task classification.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.classification import load_classifier
from pipelines.diffusion import load_model
from residual.names import require_known
from storage.show import printable
from tasks import RUNS
from tasks.accuracy import accuracy
from tasks.classification import ClassificationRun, as_trained
from tasks.diffusion import DiffusionRun
from training.cli import Schema, parse, read_flags
from training.data import DataConfig, ImageSet, open_images, open_validation
from training.processes import leave_processes, on_main, process_state
from training.script import VERSION, command, require_printed, show_and_exit
from training.yaml_file import read_settings

USAGE = "usage: evaluate.py RUN [--data.KEY VALUE ...] [--quality.KEY VALUE ...] [--classification.validation_batch N]"
ALLOWED = ("data.", "quality.", "classification.validation_batch")


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, evaluates, prints one line per figure."""
    if not argv:
        raise ValueError(f"no run is given; {USAGE}")
    folder, flags = (None, argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    own, given = read_flags(flags)
    if "version" in own:
        show_and_exit(VERSION)
    if "help" in own:
        show_and_exit("\n".join([__doc__, USAGE, *([] if folder is None else _settings_help(folder, given))]))
    if folder is None:
        raise ValueError(f"no run is given before {argv[0]}; {USAGE}")
    run = read_run(folder, flags)
    found, seen, images = _quality(folder, run) if isinstance(run, DiffusionRun) else _accuracy(folder, run)
    if process_state().is_main_process:
        print(f"model: {printable(folder)} at {seen or 0:,} images seen\nimages: {images}")
        for name, value in found.items():
            right = f" ({round(value * len(images)):,} of {len(images):,})" if name.startswith("top") else ""
            print(f"{name}: {value:.4f}{right}")
        require_printed()
    if wrong := [name for name, value in found.items() if not math.isfinite(value)]:
        raise ValueError(
            f"{folder}: {wrong[0]} is {found[wrong[0]]}; its model is damaged or diverged, so train it again"
        )
    leave_processes()


def _accuracy(folder: str, run: ClassificationRun) -> tuple[dict[str, float], int | None, ImageSet]:
    """The figures of a classifier, the images that it has seen, and those that it was evaluated on."""
    classifier = load_classifier(folder)
    images = open_validation(run.data, on_main=on_main)
    if images is None:
        raise ValueError(f"no images were held out of {folder}; give --data.validation, such as test or 0.2")
    images = as_trained(classifier.shape, classifier.pixel_format, classifier.classes, images)
    classifier.net.to(process_state().device)
    found = accuracy(classifier, images, run.classification.validation_batch)
    assert found is not None, "no interrupt callback was given"
    return found, classifier.images_seen, images


def _quality(folder: str, run: DiffusionRun) -> tuple[dict[str, float], int | None, ImageSet]:
    """The metrics of a diffusion model, the images that it has seen, and those that it was compared with."""
    if run.quality.judge is None:
        raise ValueError(
            f"quality.judge is null, but the metrics of {folder}, a diffusion model, need a classifier of such images; "
            "give --quality.judge RUN, a run of train.py --task classification"
        )
    own = read_run(folder, []).data
    part = run.data.validation
    other_split = isinstance(part, str) and part != own.split
    if not (part == own.validation or other_split or _is_moved(run.data, own)):
        raise ValueError(
            f"data.validation={part} is not what the run held out (data.validation={own.validation}), so "
            "some of these images were trained on; leave it out, or give --data.source OTHER"
        )
    model = load_model(folder)
    trained_on = open_images(own, on_main=on_main)
    quality = run.open_quality(model, trained_on)
    assert quality is not None, "a judge was given"
    model.net.to(process_state().device)
    found = quality.measure(model.net)
    assert found is not None, "no interrupt callback was given"
    return found, model.images_seen, quality.held_out


def _settings_help(folder: str, given: Mapping[str, str]) -> list[str]:
    """The settings that can be changed, with those of the run in `folder`."""
    config = _config_of(folder)
    file, _ = read_settings(config)
    return Schema(RUNS[require_known("task", str(file.pop("task", None)), RUNS)], file, given, config).fields(*ALLOWED)


def _config_of(folder: str) -> Path:
    config = Path(folder, "config.yaml")
    if not config.is_file():
        raise ValueError(f"{folder!r} is not a run folder (no config.yaml); give one of train.py; {USAGE}")
    return config


def read_run(folder: str, flags: Sequence[str]) -> ClassificationRun | DiffusionRun:
    """The settings of a run, changed by `flags`. Raises ValueError for a folder that is not a run.

    The images that the run held out, and its label file, belong to its own source and split: of another one all images
    are evaluated, unless `flags` name a part.
    """
    config = _config_of(folder)
    own, given = read_flags(flags)
    if wrong := next((name for name in (*own, *given) if not name.startswith(ALLOWED)), None):
        raise ValueError(f"'--{wrong}' cannot be used with evaluate.py; {USAGE}")
    parsed = parse(RUNS, ["--config", str(config), "--run", folder, *flags])
    if not isinstance(parsed.run, ClassificationRun | DiffusionRun):
        raise ValueError(f"{folder} is a run of {parsed.task}, for which no evaluation is known")
    run = parsed.run
    own_data = parse(RUNS, ["--config", str(config), "--run", folder]).run.data
    moved = _is_moved(run.data, own_data)
    if (moved or run.data.split != own_data.split) and "data.validation" not in given:
        run = replace(run, data=replace(run.data, validation=run.data.split))
    if moved and "data.label_file" not in given:
        run = replace(run, data=replace(run.data, label_file=None))
    return run


def _is_moved(data: DataConfig, own: DataConfig) -> bool:
    """Whether the images have another source than those of the run."""
    return os.path.realpath(os.path.expanduser(data.source)) != os.path.realpath(os.path.expanduser(own.source))


if __name__ == "__main__":
    main()
