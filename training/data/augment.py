"""From stored bytes to what the network sees, on the device."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from training.data.nonleaky import non_leaky
from training.data.pixel_format import PixelFormat
from training.random import GlobalRandom


def augment(
    image: Shaped[Tensor, "b c h w"],
    pixels: PixelFormat,
    random: GlobalRandom,
    flip: bool,
    non_leaky_probability: float = 0.0,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 9"] | None]:
    """Float32 images in [-1, 1] (see `PixelFormat`), and what the network is to be told of each.

    With `flip` half of them are mirrored left to right, of which the network is told nothing. With a probability, EDM's
    changes are made (see `non_leaky`), of which it is told all. Everything is drawn from `random`, image by image, so
    it does not depend on processes or micro-batches.
    """
    image = pixels.to_unit(image)
    if flip:
        mirrored = random.uniform() < 0.5
        image = torch.where(mirrored[:, None, None, None], image.flip(-1), image)
    return non_leaky(image, random, non_leaky_probability) if non_leaky_probability > 0 else (image, None)
