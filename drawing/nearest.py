"""Each image beside the training images that are nearest to it: whether a model repeats what it was trained on."""

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drawing.given import open_given
from drawing.options import OF_RUN
from metrics.neighbours import nearest
from pictures.grid import draw_samples
from pipelines.diffusion import DiffusionModel
from residual.weights.config import read_config
from training.data import DataConfig, Images, open_images
from training.output_folder import model_home
from training.processes import on_main
from training.yaml_file import read_settings

NEIGHBOURS = 3
COLUMNS = 12
BATCH, BATCH_BYTES = 4096, 2**28
"""images that are compared at a time, and their size in float64"""
TYPICAL = 1000
"""training images whose distance to the nearest other one is the measure of what is near"""


def open_training(source: str, model_name: str, model: DiffusionModel) -> Images:
    """The training images of --nearest: those of `source`, or of the run of the model. Raises ValueError without them,
    for images of another shape or with other values, and for missing values."""
    if model.inputs is not None and model.inputs.seen is not None:
        raise ValueError(f"nearest {source or model_name!r}: images with missing values have no distance; leave it out")
    images = _of_run(model_name, model) if source == OF_RUN else open_given("nearest", source, model)
    if (found := images.pixel_format.about) != (wanted := model.output_format.about):
        raise ValueError(
            f"nearest {source or model_name!r}: values are {found}, but the model's are {wanted}; convert them, or "
            "give others"
        )
    return images


def _of_run(model_name: str, model: DiffusionModel) -> Images:
    """The training images of the run of the model, without their conditions."""
    home = model_home(model_name)
    if home is None or not (home / "config.yaml").is_file():
        raise ValueError(f"nearest: {model_name!r} is no run folder; give --nearest SOURCE, its training images")
    settings, _ = read_settings(home / "config.yaml", is_record=True)
    fields = {name.removeprefix("data."): value for name, value in settings.items() if name.startswith("data.")}
    config = replace(read_config(DataConfig, fields), autoencoder=None)  # pictures are compared, also of latents
    try:
        images = open_images(config, on_main=on_main)
    except ValueError as error:
        raise ValueError(f"nearest {config.source!r}: {error}") from None
    if not isinstance(images, Images):
        raise ValueError(
            f"nearest {config.source!r}: the run streams its images; give --nearest SOURCE, a part of them"
        )
    if images.conditions:
        images = images.targets()
    if images.shape != model.output_shape:
        raise ValueError(
            f"nearest {config.source!r}: images of shape {images.shape}, but the model's are {model.output_shape}"
        )
    return images


def search(
    values: Float[Tensor, "m d"], images: Images, k: int = NEIGHBOURS
) -> tuple[Float[Tensor, "m near"], Float[Tensor, "m near"]]:
    """Distances to the k nearest of `images`, and their numbers. A distance is the root mean square of the difference,
    as a share of the range of values."""
    distances, numbers = torch.empty(len(values), 0).double(), torch.empty(len(values), 0).double()
    for some in _parts(np.arange(len(images)), images):
        found, at = nearest(values, _flat(images.read(some), images), min(k, len(some)))
        distances, numbers = torch.cat([distances, found], dim=1), torch.cat([numbers, some[0] + at.double()], dim=1)
        distances, order = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
        numbers = numbers.gather(1, order)
    return distances / values.shape[1] ** 0.5 / 2, numbers


def _parts(numbers: np.ndarray, images: Images) -> Iterator[np.ndarray]:
    """Parts of numbers of images, each of which fits into little memory."""
    size = max(1, min(BATCH, BATCH_BYTES // (8 * math.prod(images.shape))))
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _flat(values: np.ndarray, images: Images) -> Float[Tensor, "n d"]:
    return images.pixel_format.to_unit(torch.from_numpy(values)).flatten(1)


def write_nearest(
    folder: Path, files: list[str], read: Callable[[int], np.ndarray], training: Images, in_grid: int
) -> str:
    """Writes nearest.csv, with the nearest training images of each file, and nearest.png, which shows them beside it.

    `read` gives the values of an image by its number. Returns a line about the distances, and about those between
    training images, which are the measure of what is near.
    """
    closest, tiles = list[float](), list[np.ndarray]()
    with (folder / "nearest.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "training_image", "distance"])
        for some in _parts(np.arange(len(files)), training):
            values = np.stack([read(int(number)) for number in some]).astype(training.pixel_format.stored)
            for number, image, *found in zip(some, values, *search(_flat(values, training), training), strict=True):
                distances, near = (part.tolist() for part in found)
                table.writerows(
                    [files[number], int(k), f"{distance:.6f}"] for k, distance in zip(near, distances, strict=True)
                )
                closest.append(distances[0])
                if number < in_grid:
                    tiles += [image, *training.read(np.array(near, np.int64))]
    each = len(tiles) // in_grid
    columns = max(1, COLUMNS // each) * each
    draw_samples(np.stack(tiles), training.pixel_format, columns=columns).save(folder / "nearest.png")
    spread = np.unique(np.linspace(0, len(training) - 1, min(TYPICAL, len(training))).astype(int))
    between = torch.cat(
        [search(_flat(training.read(some), training), training, k=2)[0][:, -1] for some in _parts(spread, training)]
    )
    return (
        f"nearest training image: at a median distance of {np.median(closest):.3f}; training images are "
        f"{between.median():.3f} from the nearest other one"
    )
