"""Evaluate a trained classifier.

python evaluate.py RUN
python evaluate.py RUN --data.source my_images --data.validation test
torchrun --nproc_per_node 4 -- evaluate.py RUN

Prints accuracy and loss of the averaged model on the held-out images, or on other images of the same classes.
"""

from collections.abc import Sequence
from pathlib import Path

from pipelines.classification import load_classifier
from tasks import RUNS
from tasks.accuracy import accuracy
from tasks.classification import ClassificationRun, as_trained
from training.cli import parse, read_flags
from training.data import open_validation
from training.processes import leave_processes, on_main, process_state
from training.script import command

USAGE = "usage: evaluate.py RUN [--data.KEY VALUE ...] [--classification.validation_batch N]"
ALLOWED = ("data.", "classification.validation_batch")


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, evaluates, prints one line per figure."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}")
        raise SystemExit(0 if argv else 2)
    folder, *flags = argv
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
        print(f"model: {folder} at {classifier.images_seen or 0:,} images seen\nimages: {images}")
        for name, value in found.items():
            right = f" ({round(value * len(images)):,} of {len(images):,})" if name.startswith("top") else ""
            print(f"{name}: {value:.4f}{right}")
    leave_processes()


def read_run(folder: str, flags: Sequence[str]) -> ClassificationRun:
    """The settings of a run, changed by `flags`. Raises ValueError for a folder that is not a run of a classifier."""
    config = Path(folder, "config.yaml")
    if not config.is_file():
        raise ValueError(f"{folder!r} is not a run folder (no config.yaml); give one of train.py; {USAGE}")
    own, given = read_flags(flags)
    if wrong := next((name for name in (*own, *given) if not name.startswith(ALLOWED)), None):
        raise ValueError(f"'--{wrong}' cannot be used with evaluate.py; {USAGE}")
    parsed = parse(RUNS, ["--config", str(config), "--run", folder, *flags])
    if not isinstance(parsed.run, ClassificationRun):
        raise ValueError(f"{folder} is a run of {parsed.task}; only classifiers can be evaluated so far")
    return parsed.run


if __name__ == "__main__":
    main()
