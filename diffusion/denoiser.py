"""Denoisers: the one calling convention of samplers and guidance, and the wrappers that compose."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.noise import Formulation, Images, Times

T = TypeVar("T")
Network = Callable[..., Tensor]
"""`net(x, c_noise, label, *, emb, augment)`; keywords that a condition does not set are not passed"""


@dataclass(frozen=True)
class Condition:
    """Everything besides the noisy image and its time that a network can be conditioned on."""

    label: Int[Tensor, "b"] | None = None
    """class of each image"""
    image: Float[Tensor, "b c h w"] | None = None
    """image that is concatenated to the noisy one"""
    augment: Float[Tensor, "b a"] | None = None
    """description of how each image was augmented (Karras et al. 2022, appendix F.2)"""
    emb: Float[Tensor, "b e"] | None = None
    """vector that is added to the embedding of the noise level"""
    numbers: Float[Tensor, "b n"] | None = None
    """continuous conditions of each image, all 0 where they are hidden; they enter the network before `augment`, as one
    vector with it"""


UNCONDITIONED = Condition()
Denoised = Float[Tensor, "b d h w"]
"""clean images; behind their channels, those of a learned variance if the denoiser was made to return it"""


@runtime_checkable
class Denoiser(Protocol):
    """Maps noisy images, their times and conditions to the expected clean images x0, in the dtype of `x`.

    The result is not clipped to the range of images; see `clipped`.
    """

    def __call__(self, x: Images, time: Times, condition: Condition) -> Denoised: ...


def run_network(
    net: Callable[..., T], x: Images, c_noise: Times, condition: Condition, dtype: torch.dtype | None = None
) -> T:
    """The output of a network for scaled noisy images under a condition. `dtype` is that of its input; None: of `x`."""
    if condition.image is not None:
        x = torch.cat([x, condition.image], dim=1)
    x = x.to(dtype)
    numbers, augment = condition.numbers, condition.augment
    if numbers is not None:
        augment = numbers if augment is None else torch.cat([numbers, augment], dim=1)
    given = {"emb": condition.emb, "augment": augment}
    return net(x, c_noise, condition.label, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class NetworkDenoiser:
    """The denoiser that a network implies under the formulation that it was trained with.

    Everything but the network is computed in the dtype of `x`, which should be float32; so is the noise level that the
    network receives. Values that overflow become NaN, so that no clipping hides them.
    """

    net: Network
    formulation: Formulation
    learned_variance: bool = False
    """whether to return the learned variance, the second half of the network's output channels, too; else it is left
    out"""
    dtype: torch.dtype | None = None
    """of the images that the network receives, for a network in bfloat16; None: that of `x`"""

    def __call__(self, x: Images, time: Times, condition: Condition) -> Denoised:
        level = self.formulation.level(time)
        output = run_network(self.net, level.c_in * x, level.c_noise, condition, self.dtype).to(x.dtype)
        x0 = level.split(x, output[:, : x.shape[1]])[0]
        if self.learned_variance:
            x0 = torch.cat([x0, output[:, x.shape[1] :]], dim=1)
        return x0.nan_to_num(nan=math.nan, posinf=math.nan, neginf=math.nan)


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Denoised images clipped to a range (Saharia et al. 2022, section 2.3, static thresholding).

    The clipping comes before the solver's step. Otherwise the noise that the step derives from x0 is inconsistent, and
    errors accumulate.
    """

    def denoise_clipped(x: Images, time: Times, condition: Condition) -> Images:
        return denoise(x, time, condition).clamp(low, high)

    return denoise_clipped
