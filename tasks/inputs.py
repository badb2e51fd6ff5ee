"""What the images of a run give to the network besides themselves: its inputs, and conditions to draw images for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pictures.pixel_format import BYTES
from pipelines.inputs import Inputs, numbers_of, positions, standardised
from pipelines.regression import RegressionModel
from residual.names import amount
from training.data import ImageSet
from training.data.statistics import sample_numbers

PREDICTED = 32
"""images that a regression predicts at a time"""


def inputs_of(
    images: ImageSet, missing: bool, crop_px: int | None = None, crop_positions: str | None = None
) -> Inputs | None:
    """The inputs of a network that is trained on these images, whose values may be `missing`, or on squares of them;
    None if there are none besides the images. `crop_px` and `crop_positions` are those of `augment`."""
    channels = images.shape[0] - images.conditions
    seen = None
    if missing:
        known = np.ones(images.shape, bool) if images.seen is None else images.seen
        seen = torch.from_numpy(known[:channels].copy())
    size, is_periodic = (images.shape[1], images.shape[2]), crop_positions == "periodic_width"
    fields = [] if images.static is None else [standardised(torch.from_numpy(images.static))]
    fields += [] if crop_positions is None else [positions(*size, is_periodic)]
    is_cut = crop_px is not None and crop_px < max(size)
    inputs = Inputs(
        channels=images.conditions,
        pixel_format=images.pixel_format.channels(channels, images.shape[0]) if images.conditions else BYTES,
        static=torch.cat(fields) if fields else None,
        seen=seen,
        numbers=None if images.vectors is None else numbers_of(images.vector_columns, images.vectors),
        whole=size if is_cut and (images.conditions or fields or missing) else None,
        periodic_width=is_periodic,
    )
    return inputs if inputs.count(channels) or inputs.numbers else None


def check_predicts(model: RegressionModel, images: ImageSet, missing: bool) -> None:
    """Raises ValueError if a regression was not trained on images like these, with the same units and inputs."""
    inputs, channels = inputs_of(images, missing), images.shape[0] - images.conditions
    if inputs is None or not inputs.channels:
        raise ValueError("the images have no condition from which they could be predicted; give data.condition")
    pairs = {
        "images": (model.shape[0], channels),
        "pixel_format": (model.pixel_format, images.pixel_format.channels(0, channels)),
    }
    wanted = inputs.document() | {"fields_sha256": None}
    found = model.inputs.document() | {"fields_sha256": None}
    pairs |= {name: (found[name], wanted[name]) for name in wanted}
    for name, (its, given) in pairs.items():
        if its != given:
            raise ValueError(
                f"it was trained with {name}={its}, but the images have {given}; train one on these images"
            )


def residual_std(model: RegressionModel, images: ImageSet) -> tuple[float, ...]:
    """The standard deviation of what a regression does not predict, per channel, over a sample of the images."""
    numbers = sample_numbers(len(images))
    channels, device = images.shape[0] - images.conditions, next(model.net.parameters()).device
    squares, count = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(numbers), PREDICTED):
        some = numbers[start : start + PREDICTED]
        stored = np.empty((len(some), *images.shape), images.pixel_format.stored)
        images.read(some, stored)
        image = images.pixel_format.to_unit(torch.from_numpy(stored).to(device))
        vector = None if images.vectors is None else torch.from_numpy(images.vectors[some]).to(device)
        fields = model.inputs.with_static(image[:, channels:])
        with torch.no_grad():
            error = (image[:, :channels] - model(*model.training(fields, vector))).double().cpu()
        squares += error.nan_to_num().square().sum(dim=(0, 2, 3))
        count += (~error.isnan()).sum(dim=(0, 2, 3))
    found = (squares / count).sqrt()
    if bad := [channel for channel, std in enumerate(found.tolist()) if not std > 0]:
        raise ValueError(f"channel {bad[0]} is predicted exactly, so nothing is left to draw; leave it out")
    return tuple(found.tolist())


def given_of(inputs: Inputs | None, images: ImageSet, numbers: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """`image` and `vector` of `DiffusionModel.denoising`, as far as the model takes them: the condition, in the values
    of its training, and the numbers of the images with these numbers. Those of a number come again after the last."""
    given, indices = dict[str, Any](), np.asarray(numbers) % len(images)
    if inputs is None:
        return given
    if inputs.channels:
        stored = np.empty((len(indices), *images.shape), images.pixel_format.stored)
        images.read(indices, stored)
        given["image"] = inputs.pixel_format.to_unit(torch.from_numpy(stored[:, -inputs.channels :]))
    if inputs.numbers is not None and images.vectors is not None:
        given["vector"] = images.vectors[indices].tolist()
    return given


def require_pixels(autoencoder: str | None) -> None:
    """Raises ValueError, for tasks that take pixels, if `data.autoencoder` is given."""
    if autoencoder is not None:
        raise ValueError(f"data.autoencoder={autoencoder} is for the task diffusion only; leave it out")


def require_plain(images: ImageSet, missing: bool) -> None:
    """Raises ValueError, for tasks that take images alone, for those with conditions or, if `missing`, without some
    values."""
    found = {
        "data.condition": amount(images.conditions, "channel") if images.conditions else None,
        "data.static": None if images.static is None else amount(len(images.static), "field"),
        "data.vector_columns": ", ".join(images.vector_columns) or None,
        "data.missing": True if missing else None,
    }
    for name, value in found.items():
        if value is not None:
            raise ValueError(f"{name} ({value}) is for the tasks diffusion and regression only; leave it out")
