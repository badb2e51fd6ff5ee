"""The kinds of trained models, and which of them a folder holds."""

from collections.abc import Callable
from pathlib import Path

from pipelines.classification import DESCRIPTION_FILE as CLASSIFIER
from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.folder import model_folder
from pipelines.superresolution import DiffusionUpscaler, EDSRUpscaler, is_upscaler, load_upscaler
from storage.read import is_regular

Model = DiffusionModel | ImageClassifier | EDSRUpscaler | DiffusionUpscaler


def loader(path: str | Path) -> Callable[..., Model]:
    """The function that loads the model of a run folder, of a model folder, or of a repository on the hub.

    It is `load_classifier`, `load_upscaler` or `load_model`, which also reads folders of diffusers. Raises ValueError
    for a run that has not saved a model yet, and for a repository that cannot be downloaded.
    """
    folder = model_folder(path)
    if is_regular(folder / CLASSIFIER):
        return load_classifier
    return load_upscaler if is_upscaler(folder) else load_model
