"""Bits per dimension of images under a diffusion model."""

import math

import numpy as np
import torch
from jaxtyping import Float

from diffusion import Condition, generators
from diffusion.likelihood import log_likelihood
from pictures.pixel_format import PixelFormat
from pictures.units import AnyFormat
from pipelines.diffusion import DiffusionModel
from pipelines.drawn import gather_drawn
from tasks.comparison import QualityConfig, class_names
from tasks.judge import pixels_of
from training.data import Images
from training.processes import gather, process_state

Bits = Float[np.ndarray, "n"]
"""bits per dimension of each image"""


@torch.no_grad()
def bits_per_dimension(model: DiffusionModel, images: Images, config: QualityConfig, what: str) -> Bits:
    """Bits per dimension of `num` random images (None: of all), in `steps` steps, for the labels that they have.

    Integers are dequantised: uniform noise of one unit of the stored pixels is added (Theis et al. 2016, section 3.1),
    and the width of a unit counts. Of real numbers these are the bits of the density in units of [-1, 1].

    Call it on every process; the network has to be on the device. Raises ValueError, with `what` the images are, for
    images of another kind, for classes that the model does not have, and for a model with conditions, numbers, static
    fields, missing values or an autoencoder.
    """
    if model.inputs is not None:
        raise ValueError("likelihood is that of images alone, but the model takes more than a label; leave it out")
    if model.autoencoder is not None:
        raise ValueError("likelihood is that of pixels, but the model draws latents of an autoencoder; leave it out")
    if (given := pixels_of(images)) != (taken := pixels_of(model)):
        raise ValueError(f"the model draws {taken}, but {what} are {given}")
    chosen = np.random.default_rng(config.seed).permutation(len(images))[: config.num]
    part, state = images.part(chosen), process_state()
    labels, found = _labels(model, part, what), list[tuple[int, float]]()
    denoise, spacing = model.denoiser(), model.pixel_format.spacing
    mine = np.arange(state.process_index, len(part), state.num_processes)
    for numbers in np.split(mine, range(config.batch, len(mine), config.batch)):
        sources = generators(config.seed, numbers.tolist())
        x = model.pixel_format.to_unit(torch.from_numpy(part.read(numbers)))
        if spacing is not None:
            x += spacing * (torch.stack([torch.rand(x.shape[1:], generator=source) for source in sources]) - 0.5)
        label = None if labels is None else torch.tensor(labels)[numbers].to(state.device)
        condition = Condition(label=label)
        nats = log_likelihood(denoise, model.formulation, x.to(state.device), condition, sources, steps=config.steps)
        bits = -nats / (x[0].numel() * math.log(2)) - (0 if spacing is None else math.log2(spacing))
        found += zip(numbers.tolist(), bits.tolist(), strict=True)
    return np.array(gather_drawn(found, len(part), gather))


def _labels(model: DiffusionModel, images: Images, what: str) -> list[int] | None:
    """The labels of images by the names of their classes; that for none if they have no classes."""
    if model.classes is None:
        return None
    names = class_names(images)
    if names is None:
        if model.null is None:
            raise ValueError(f"{what} have no labels, but the model was not trained without; see data.labels")
        return [model.null] * len(images)
    if unknown := sorted(set(names) - set(model.classes)):
        raise ValueError(f"{what} have the class {unknown[0]!r}, which the model lacks; see data.labels")
    return [model.classes.index(name) for name in names]


def describe_noise(pixel_format: AnyFormat) -> str:
    """How images are dequantised, in words."""
    if not isinstance(pixel_format, PixelFormat):
        return "bits of the density of standardised values"
    if pixel_format.spacing is None:
        return "bits of the density in units of [-1, 1]"
    return f"uniform noise of one unit of {pixel_format.low:g} … {pixel_format.high:g}"
