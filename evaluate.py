"""Evaluate a trained model.

python evaluate.py RUN
python evaluate.py RUN --data.source my_images
python evaluate.py RUN --quality.judge CLASSIFIER --quality.steps 18
python evaluate.py RUN --ema 0.02 0.05 0.1
torchrun --nproc_per_node 4 -- evaluate.py RUN

The averaged model is compared with the held-out images, or with those of another source: with all of data.split, unless
data.validation names a part of them. Of a classifier, accuracy and loss are printed. A diffusion model draws as many
images with the same labels; their distances from the held-out ones are printed, by the features of a classifier of such
images, a run of train.py --task classification.

--ema gives other averages of the run: a number below 1 is a width (relative standard deviation), reconstructed from the
snapshots of ema.power_widths; from 1 it is a half-life in images that the run tracked. Of several, the best is marked:
that with the lowest Fréchet distance, or the highest accuracy.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DiffusionModel, load_model
from residual.names import require_known
from storage.show import printable
from tasks import RUNS
from tasks.accuracy import AccuracyEvaluation, accuracy
from tasks.classification import ClassificationRun, as_trained
from tasks.diffusion import DiffusionRun
from tasks.quality import Quality
from training.averages import Average, RunAverages, load_average
from training.cli import Schema, parse, read_flags
from training.data import DataConfig, ImageSet, open_images, open_validation
from training.processes import leave_processes, on_main, process_state
from training.script import VERSION, command, require_printed, show_and_exit
from training.yaml_file import read_settings

USAGE = (
    "usage: evaluate.py RUN [--ema NUMBER ...] [--data.KEY VALUE ...] [--quality.KEY VALUE ...] "
    "[--classification.validation_batch N]"
)
Figures = dict[str, float]
Measure = Callable[[Any], Figures | None]
ALLOWED = ("data.", "quality.", "classification.validation_batch")


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, evaluates, prints one line per figure."""
    if not argv:
        raise ValueError(f"no run is given; {USAGE}")
    folder, flags = (None, argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    chosen, flags = _split_averages(flags)
    own, given = read_flags(flags)
    if "version" in own:
        show_and_exit(VERSION)
    if "help" in own:
        show_and_exit("\n".join([__doc__, USAGE, *([] if folder is None else _settings_help(folder, given))]))
    if folder is None:
        raise ValueError(f"no run is given before {argv[0]}; {USAGE}")
    run = read_run(folder, flags)
    averages: list[Average | None] = [RunAverages(folder).choose(value) for value in chosen] or [None]
    load: Callable[..., Any] = load_model if isinstance(run, DiffusionRun) else load_classifier
    model = load_average(load, folder, averages[0])
    images, measure = _quality(folder, run, model) if isinstance(run, DiffusionRun) else _accuracy(folder, run, model)
    rows, is_main = list[Figures](), process_state().is_main_process
    for average in tqdm(averages, unit="average", disable=None if is_main and len(averages) > 1 else True):
        found = measure(load_average(load, folder, average) if rows else model)
        assert found is not None, "no interrupt callback was given"
        rows.append(found)
    if is_main:
        print(f"model: {printable(folder)} at {model.images_seen or 0:,} images seen\nimages: {images}")
        if len(rows) > 1:
            print("\n".join(_table(averages, rows)))
        else:
            if averages[0] is not None:
                print(f"ema: {averages[0].about}")
            for name, value in rows[0].items():
                right = f" ({round(value * len(images)):,} of {len(images):,})" if name.startswith("top") else ""
                print(f"{name}: {value:.4f}{right}")
        require_printed()
    if wrong := [(name, value) for row in rows for name, value in row.items() if not math.isfinite(value)]:
        name, value = wrong[0]
        raise ValueError(f"{folder}: {name} is {value}; its model is damaged or diverged, so train it again")
    leave_processes()


def _accuracy(folder: str, run: ClassificationRun, classifier: ImageClassifier) -> tuple[ImageSet, Measure]:
    """The images that classifiers of a run are evaluated on, and a function that does."""
    images = open_validation(run.data, on_main=on_main)
    if images is None:
        raise ValueError(f"no images were held out of {folder}; give --data.validation, such as test or 0.2")
    images = as_trained(classifier.shape, classifier.pixel_format, classifier.classes, images)

    def measure(model: ImageClassifier) -> Figures | None:
        model.net.to(process_state().device)
        return accuracy(model, images, run.classification.validation_batch)

    return images, measure


def _quality(folder: str, run: DiffusionRun, model: DiffusionModel) -> tuple[ImageSet, Measure]:
    """The images that those of diffusion models of a run are compared with, and a function that does."""
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
    quality = run.open_quality(model, open_images(own, on_main=on_main))
    assert quality is not None, "a judge was given"

    def measure(model: DiffusionModel) -> Figures | None:
        model.net.to(process_state().device)
        return quality.measure(model.net)

    return quality.held_out, measure


def _table(averages: Sequence[Average | None], rows: Sequence[Figures]) -> list[str]:
    """One line for each average, with the best one marked."""
    figures = {**Quality.figures, **AccuracyEvaluation.figures}
    name = next(name for name in rows[0] if name in figures and figures[name].best)
    best = figures[name].choose(range(len(rows)), key=lambda row: rows[row][name])
    lines = [["ema", "images seen", "error", *rows[0]]]
    for average, row in zip(averages, rows, strict=True):
        assert average is not None, "there are several"
        lines.append([average.name, f"{average.images:,}", f"{average.error:.2%}", *(f"{row[key]:.4f}" for key in row)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
    return [f"{text}  best" if number == best + 1 else text for number, text in enumerate(texts)]


def _split_averages(words: Sequence[str]) -> tuple[list[float], list[str]]:
    """The numbers of --ema, which may be several words, or one with commas; and the other flags."""
    found, left, inside = list[float](), list[str](), False
    for word in words:
        name, equals, text = word.partition("=")
        if name == "--ema":
            found, inside = [], not equals
            values = text if equals else ""
        elif inside and not word.startswith("--"):
            values = word
        else:
            inside = False
            left.append(word)
            continue
        try:
            found += [float(value) for value in values.split(",") if value.strip()]
        except ValueError:
            raise ValueError(f"ema={values} is not a number; give widths below 1, or half-lives in images") from None
    if not found and len(left) < len(words):
        raise ValueError("ema has no value; give widths below 1, or half-lives in images")
    return found, left


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
