"""From stored bytes to what the network sees, on the device."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from training.data.nonleaky import non_leaky
from training.random import GlobalRandom


def augment(
    image: UInt8[Tensor, "b c h w"], random: GlobalRandom, flip: bool, non_leaky_probability: float = 0.0
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 9"] | None]:
    """Float32 images in [-1, 1] (0 becomes -1, 255 becomes 1), and what the network is to be told of each.

    With `flip` half of them are mirrored left to right, of which the network is told nothing. With a probability, EDM's
    changes are made (see `non_leaky`), of which it is told all. Everything is drawn from `random`, image by image, so
    it does not depend on processes or micro-batches.
    """
    if flip:
        mirrored = random.uniform() < 0.5
        image = torch.where(mirrored[:, None, None, None], image.flip(-1), image)
    image = image.float().div_(127.5).sub_(1)
    return non_leaky(image, random, non_leaky_probability) if non_leaky_probability > 0 else (image, None)
