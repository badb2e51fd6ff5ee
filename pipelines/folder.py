"""Folders with a trained model: the files of its network, and one that describes the rest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pictures.pixel_format import PixelFormat
from pictures.units import AnyFormat, Units
from residual.names import amount
from residual.weights.config import convert, read_config, read_json
from residual.weights.keymap import check_state
from residual.weights.pretrained import local_folder
from storage.read import is_regular

RECORD = "best.json"
"""what is known of the best model of a run, in its folder"""


def find_model(path: str | Path, description: str) -> tuple[Path, int | None]:
    """The model folder of a run folder (its newest), or `path` itself; and the images seen, where they are known.

    `description` is the name of the file that describes such models. Raises ValueError, with the reason, if there is
    no such model.
    """
    path = _open(path)
    is_run = (path / "config.yaml").is_file()
    folder = path / "model" if is_run else path
    if not (folder / description).is_file():
        other = f"its model has no {description}, so it belongs to another task"
        of_run = other if folder.is_dir() else "its training has not saved one yet"
        of_folder = f"it has neither config.yaml nor {description}"
        if (folder / "config.json").is_file():
            others = sorted({path.name for path in folder.glob("*.json")} - {"config.json", RECORD})
            of_folder += (
                f", but {others[0]}, so it belongs to another task"
                if others
                else ", only a network; RUN/model is the whole model, which export.py RUN --push uploads"
            )
        reason = of_run if is_run else of_folder
        raise ValueError(f"no model in {str(path)!r}: {reason}; give a run folder (of train.py) or a model folder")
    return folder, images_seen(path) if is_run else _recorded_images(folder)


def model_folder(path: str | Path) -> Path:
    """The model folder of a run folder, a model folder itself, or that of a repository on the hub.

    Raises ValueError if there is none yet.
    """
    if not (Path(path) / "config.yaml").is_file():
        return _open(path)
    if not (Path(path) / "model").is_dir():
        raise ValueError(f"the run {str(path)!r} has not saved a model yet; continue it, or give another model")
    return Path(path) / "model"


def _open(path: str | Path) -> Path:
    """The folder, or that of a repository on the hub. Raises ValueError for a checkpoint."""
    folder = local_folder(path)
    refuse_checkpoint(folder)
    return folder


def refuse_checkpoint(folder: Path) -> None:
    """Raises ValueError for a checkpoint, which holds no config; the error names its run."""
    if folder.parent.name == "checkpoints" and (folder / "state.json").is_file():
        raise ValueError(f"{folder} is a checkpoint, from which only its run goes on; give {folder.parents[1]}")


def replace_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Replaces all weights and buffers. Raises ValueError with the differences if names or shapes do not fit."""
    check_state(weights, net.state_dict())
    net.load_state_dict(weights)


def check_finite(net: nn.Module, folder: Path) -> None:
    """Raises ValueError for weights that are not finite."""
    if broken := next((name for name, weight in net.named_parameters() if not weight.isfinite().all()), None):
        raise ValueError(f"{folder}: the weight {broken} is not finite, so its training diverged; use an older one")


def read_format(document: Mapping[str, Any]) -> AnyFormat:
    """The pixel format or the units in the description of a model. Raises ValueError for anything else."""
    found = document["pixel_format"]
    is_standardised = isinstance(found, Mapping) and "mean" in found
    return read_config(Units if is_standardised else PixelFormat, found)


def read_counts(document: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The training images of each class in the description of a model; None where it has none.

    Raises ValueError for another type.
    """
    counts = document.get("class_counts")
    try:
        return convert(counts, tuple[int, ...] | None)
    except TypeError:
        raise ValueError(f"class_counts={counts!r} should be a list of whole numbers") from None


def check_counts(counts: Sequence[int] | None, classes: int, folder: Path) -> None:
    """Raises ValueError for training images per class that belong to another number of classes, or that are none."""
    if counts is not None and not (len(counts) == classes and min(counts) >= 0 < max(counts)):
        of = amount(classes, "class")
        raise ValueError(f"{folder}: class_counts={list(counts)} are not the training images of {of}")


def images_seen(run: Path) -> int | None:
    """The number of the newest checkpoint. The model folder is written together with each checkpoint."""
    numbers = [int(folder.name) for folder in run.glob("checkpoints/*") if folder.name.isdecimal()]
    return max(numbers, default=None)


def _recorded_images(folder: Path) -> int | None:
    """The images seen by the best model of a run, from its best.json; None for another model folder."""
    if not is_regular(folder / RECORD):
        return None
    seen = read_json(folder / RECORD).get("images_seen")
    return seen if isinstance(seen, int) else None
