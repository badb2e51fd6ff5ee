"""Changes of a given image or between two: what is known of an image, inversion, interpolation. Each changes the
denoiser, the noise or the times of `sample`; none is another sampler."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusion.denoiser import Condition, Denoised, Denoiser
from diffusion.noise import Formulation, Images, Times
from diffusion.sampler import Sampler
from diffusion.solvers import Euler

Projection = Callable[[Images], Images]
"""the nearest images that agree with what is known of them"""
GREY = (0.299, 0.587, 0.114)
"""weights of red, green and blue in the grey value of a picture (ITU-R BT.601, as Pillow's mode L)"""


def projected(denoise: Denoiser, project: Projection) -> Denoiser:
    """Denoised images that agree with what is known: `x0 + A⁺ (y - A x0)` for known values `y = A x` (Wang et al. 2022,
    DDNM, eq. 13). A learned variance is unchanged."""

    def denoise_projected(x: Images, time: Times, condition: Condition) -> Denoised:
        x0 = denoise(x, time, condition)
        channels = x.shape[1]
        return torch.cat([project(x0[:, :channels]), x0[:, channels:]], dim=1)

    return denoise_projected


def keep_pixels(images: Images, drawn: Bool[Tensor, "b 1 h w"]) -> Projection:
    """The pixels of `images` outside `drawn` are known: inpainting."""
    return lambda x0: torch.where(drawn, x0, images)


def keep_grey(grey: Float[Tensor, "b 1 h w"]) -> Projection:
    """The grey values in [-1, 1] are known, of images with three channels: colourisation.

    Colours outside [-1, 1] move towards grey, which leaves their grey value, until they are inside.
    """
    weights = torch.tensor(GREY, device=grey.device).view(1, 3, 1, 1)

    def project(x0: Images) -> Images:
        missing = grey - (weights * x0).sum(dim=1, keepdim=True)
        colour = x0 + weights / weights.square().sum() * missing - grey
        room = torch.where(colour > 0, 1 - grey, 1 + grey) / colour.abs().clamp(min=torch.finfo(x0.dtype).tiny)
        return grey + colour * room.amin(dim=1, keepdim=True).clamp(0, 1)

    return project


def grey_values(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """The grey values of colour images, in the same range."""
    return (torch.tensor(GREY, device=images.device).view(1, 3, 1, 1) * images).sum(dim=1, keepdim=True)


def between_labels(denoise: Denoiser, labels: Int[Tensor, "b"], share: Float[Tensor, "b"]) -> Denoiser:
    """`denoise`, moved by `share`, from 0 to 1, from its own label to another.

    Denoised images are interpolated, and with them the scores of both classes: a share s draws from a density that is
    proportional to `p(x | first)^(1 - s) p(x | second)^s` at each noise level.
    """

    def denoise_between(x: Images, time: Times, condition: Condition) -> Denoised:
        first, second = (denoise(x, time, given) for given in (condition, replace(condition, label=labels)))
        return first.lerp(second, share.view(-1, 1, 1, 1))

    return denoise_between


def slerp(first: Images, second: Images, share: Float[Tensor, "b"]) -> Images:
    """Spherical interpolation of two sets of noise (Shoemake 1985): unlike on a line, the variance stays that of noise.

    `share` is 0 for the first and 1 for the second.
    """
    share = share.view(-1, 1, 1, 1)
    norms = first.flatten(1).norm(dim=1) * second.flatten(1).norm(dim=1)
    cosine = (first * second).flatten(1).sum(dim=1) / norms
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos().view(-1, 1, 1, 1)
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / angle.sin()


def invert(
    denoise: Denoiser,
    formulation: Formulation,
    sampler: Sampler,
    images: Images,
    condition: Condition,
    *,
    steps: int,
) -> Iterator[Images]:
    """The noise from which `sample` with the same arguments reconstructs `images` in [-1, 1] (Song et al. 2021, DDIM,
    section 5.4): yields the starting images and those after each of `steps` - 1 steps; the last are the noise.

    The solver is Euler's, which DDIM without noise equals, on rising times. The images count as noisy ones of the
    lowest noise level.
    """
    times = formulation.times(steps, sampler.spacing).to(images.device)[:-1].flip(0)

    def predict(x: Images, time: Float[Tensor, ""]) -> Denoised:
        with torch.no_grad():
            return denoise(x, time.expand(len(x)), condition)

    x = formulation.level(times[:1]).alpha * images
    yield x
    ones = torch.ones_like(images)
    for time, noisy in zip(times[1:], Euler()(predict, formulation, x, times, []), strict=True):
        yield noisy / sampler.start(formulation.level(time[None]), ones)
