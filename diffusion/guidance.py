"""Classifier-free guidance: a denoiser made of a denoiser."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.denoiser import Denoiser


def guided(denoise: Denoiser, scale: float, null: int) -> Denoiser:
    """Moves the guess away from the unconditional one: `free + scale (given - free)` (Ho & Salimans 2022, eq. 6, with
    scale = 1 + w).

    The exaggerated guess leaves the range of images, [-1, 1], and is clipped to it before the sampler sees it: clipped
    by the sampler alone, the noise that is left in x would belong to another image, and grow (Saharia et al. 2022,
    section 2.3, static thresholding).

    Scale 0 ignores the labels, 1 is plain `denoise`, above 1 exaggerates what is particular to the label. Other scales
    than these two cost twice the work, in one batch of double size. `null` is the label that means "no label".
    The denoiser raises ValueError if it is called without labels.
    """
    if scale == 1:
        return denoise

    def both(
        x: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], label: Int[Tensor, "b"] | None
    ) -> Float[Tensor, "b c h w"]:
        if label is None:
            raise ValueError(f"guidance={scale:g} needs a label for each image; give labels, or guidance 1")
        free_label = torch.full_like(label, null)
        if scale == 0:
            return denoise(x, t, free_label)
        given, free = denoise(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([label, free_label])).chunk(2)
        return (free + scale * (given - free)).clamp(-1, 1)

    return both
