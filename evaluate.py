"""Evaluate a trained classifier.

python evaluate.py RUN
python evaluate.py RUN --data.source my_images
torchrun --nproc_per_node 4 -- evaluate.py RUN

Prints accuracy and loss of the averaged model on the held-out images, or on other images of the same classes: on all of
data.split, unless data.validation names a part of them.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.classification import load_classifier
from residual.names import require_known
from storage.show import printable
from tasks import RUNS
from tasks.accuracy import accuracy
from tasks.classification import ClassificationRun, as_trained
from training.cli import Schema, parse, read_flags
from training.data import open_validation
from training.processes import leave_processes, on_main, process_state
from training.script import VERSION, command, require_printed, show_and_exit
from training.yaml_file import read_settings

USAGE = "usage: evaluate.py RUN [--data.KEY VALUE ...] [--classification.validation_batch N]"
ALLOWED = ("data.", "classification.validation_batch")


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
    state = process_state()
    classifier = load_classifier(folder)
    images = open_validation(run.data, on_main=on_main)
    if images is None:
        raise ValueError(f"no images were held out of {folder}; give --data.validation, such as test or 0.2")
    images = as_trained(classifier.shape, classifier.pixel_format, classifier.classes, images)
    classifier.net.to(state.device)
    found = accuracy(classifier, images, run.classification.validation_batch)
    assert found is not None, "no interrupt callback was given"
    if state.is_main_process:
        print(f"model: {printable(folder)} at {classifier.images_seen or 0:,} images seen\nimages: {images}")
        for name, value in found.items():
            right = f" ({round(value * len(images)):,} of {len(images):,})" if name.startswith("top") else ""
            print(f"{name}: {value:.4f}{right}")
        require_printed()
    if wrong := [name for name, value in found.items() if not math.isfinite(value)]:
        raise ValueError(
            f"{folder}: {wrong[0]} is {found[wrong[0]]}; its model is damaged or diverged, so train it again"
        )
    leave_processes()


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


def read_run(folder: str, flags: Sequence[str]) -> ClassificationRun:
    """The settings of a run, changed by `flags`. Raises ValueError for a folder that is not a run of a classifier.

    The images that the run held out, and its label file, belong to its own source and split: of another one all images
    are evaluated, unless `flags` name a part.
    """
    config = _config_of(folder)
    own, given = read_flags(flags)
    if wrong := next((name for name in (*own, *given) if not name.startswith(ALLOWED)), None):
        raise ValueError(f"'--{wrong}' cannot be used with evaluate.py; {USAGE}")
    parsed = parse(RUNS, ["--config", str(config), "--run", folder, *flags])
    if not isinstance(parsed.run, ClassificationRun):
        raise ValueError(f"{folder} is a run of {parsed.task}; only classifiers can be evaluated so far")
    run = parsed.run
    own_data = parse(RUNS, ["--config", str(config), "--run", folder]).run.data
    moved = len({os.path.realpath(os.path.expanduser(data.source)) for data in (run.data, own_data)}) > 1
    if (moved or run.data.split != own_data.split) and "data.validation" not in given:
        run = replace(run, data=replace(run.data, validation=run.data.split))
    if moved and "data.label_file" not in given:
        run = replace(run, data=replace(run.data, label_file=None))
    return run


if __name__ == "__main__":
    main()
