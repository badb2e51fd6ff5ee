"""The folders that the page opens: what they hold, and which runs there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drawing.job import ALL
from pipelines.classification import ImageClassifier
from pipelines.diffusion import NO_LABEL, DiffusionModel
from pipelines.folder import model_folder, refuse_checkpoint
from pipelines.kinds import Model, loader
from pipelines.superresolution import DiffusionUpscaler, Upscaler, is_upscaler
from residual.names import amount
from storage.read import is_regular

MODEL_FILES = ("config.json", "model_index.json")
"""files by which a model folder, of this project or of diffusers, is known"""


@dataclass(frozen=True)
class Described:
    """What a model does, in a line, and the labels that it takes: all of them in turn first, none last."""

    about: str
    labels: tuple[str, ...] = ()


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run of train.py, which may not have saved a model yet."""
    return is_regular(Path(folder, "config.yaml"))


def require_folder(folder: str | None) -> str:
    """The folder, if there is one that is no checkpoint. Raises ValueError otherwise, also for a model on the hub."""
    folder = (folder or "").strip()
    if not folder:
        raise ValueError("no model is chosen; give a run folder (of train.py) or a model folder")
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder!r}; give a run folder (of train.py) or a model folder")
    refuse_checkpoint(Path(folder))
    return folder


def require_drawing(folder: str | None) -> str:
    """The folder, if there is one. Raises ValueError also for a model that enlarges pictures."""
    folder = require_folder(folder)
    if is_upscaler(folder):
        raise ValueError("this model enlarges pictures and draws none; use the tab Enlarge")
    return folder


def require_upscaler(folder: str | None) -> str:
    """The folder, if its model enlarges pictures. Raises ValueError otherwise."""
    folder = require_folder(folder)
    if model_folder(folder).is_dir() and not is_upscaler(folder):
        raise ValueError("this model enlarges no pictures; choose one that does, such as of --task superresolution")
    return folder


def require_models(folders: Sequence[str]) -> list[str]:
    """The folders, if each is a run or holds a model. Raises ValueError for the first that does not."""
    for folder in map(require_folder, folders):
        if not is_run(folder) and not any(is_regular(Path(folder, name)) for name in MODEL_FILES):
            raise ValueError(f"no model in {folder!r}; give a run folder (of train.py) or a model folder")
    return list(folders)


def find_runs(folder: Path) -> list[str]:
    """The run folders in a folder, the one that was changed last first."""
    runs = [path for path in folder.iterdir() if is_run(path)] if folder.is_dir() else []
    return [str(path) for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)]


def describe(folder: str) -> Described:
    """What the model in a folder does. Raises ValueError if there is none."""
    folder = require_folder(folder)
    return describe_model(loader(folder)(folder))


def describe_model(model: Model) -> Described:
    """What a model does."""
    seen = "" if model.images_seen is None else f", after {model.images_seen:,} training images"
    if isinstance(model, Upscaler):
        return Described(f"makes pictures {model.scale} times as high and wide{seen}")
    channels, height, width = model.output_shape if isinstance(model, DiffusionModel) else model.shape
    of = f"images of {height}×{width} px with {amount(channels, 'channel')}"
    if isinstance(model, ImageClassifier):
        return Described(f"classifies {of}: {amount(len(model.classes), 'class')}{seen}")
    names = () if model.classes is None else (ALL, *model.classes, *([] if model.null is None else [NO_LABEL]))
    return Described(f"draws {of}{seen}", names)


def save_model(model: Model, folder: Path) -> None:
    """Writes the model folder."""
    drawn = model.model if isinstance(model, DiffusionUpscaler) else model
    drawn.save(folder)
