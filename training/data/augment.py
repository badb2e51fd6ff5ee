"""From stored bytes to what the network sees, on the device."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from training.random import GlobalRandom


def augment(image: UInt8[Tensor, "b c h w"], random: GlobalRandom, flip: bool) -> Float[Tensor, "b c h w"]:
    """Float32 images in [-1, 1] (0 becomes -1, 255 becomes 1), with `flip` mirrored left to right half of the time.

    Which ones is drawn from `random`, one number per image, so it does not depend on processes or micro-batches.
    """
    if flip:
        mirrored = random.uniform() < 0.5
        image = torch.where(mirrored[:, None, None, None], image.flip(-1), image)
    return image.float().div_(127.5).sub_(1)
