"""Conditions for images that are drawn during training, and tasks that take images alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from residual.names import amount
from training.data import DataConfig, ImageSet


@dataclass(frozen=True)
class Examples:
    """Conditions and numbers of images: those of a number come again after the last one."""

    images: ImageSet

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """`image` and `vector` of `DiffusionModel.denoising`, as far as the images have them."""
        images, indices = self.images, np.array(numbers) % len(self.images)
        given: dict[str, Any] = {}
        if images.conditions:
            stored = np.empty((len(indices), *images.shape), images.pixel_format.stored)
            images.read(indices, stored)
            given["image"] = images.pixel_format.to_unit(torch.from_numpy(stored))[:, -images.conditions :]
        if images.vectors is not None:
            given["vector"] = images.vectors[indices].tolist()
        return given


def require_plain(images: ImageSet, config: DataConfig) -> None:
    """Raises ValueError, for tasks that take images alone, for those with conditions or missing values."""
    found = {
        "data.condition": amount(images.conditions, "channel") if images.conditions else None,
        "data.static": None if images.static is None else amount(len(images.static), "field"),
        "data.vector_columns": ", ".join(images.vector_columns) or None,
        "data.missing": True if config.missing else None,
    }
    for name, value in found.items():
        if value is not None:
            raise ValueError(f"{name} ({value}) is for the task diffusion only; leave it out")
