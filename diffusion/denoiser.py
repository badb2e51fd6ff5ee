"""The calling conventions for everything that denoises; samplers and guidance know only these.

`Denoiser` speaks of timesteps, at which the image shrinks while the noise grows; `SigmaDenoiser` of noise levels, above
which the image stays as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from diffusion.prediction import clean_and_noise
from diffusion.schedule import Schedule


@runtime_checkable
class Denoiser(Protocol):
    """Anything that maps noisy images, their timesteps and labels to its best guess of the clean images.

    The guess is not clipped to the range of the images; samplers do that where their method says so.
    """

    def __call__(
        self, x: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], label: Int[Tensor, "b"] | None
    ) -> Float[Tensor, "b c h w"]: ...


@runtime_checkable
class SigmaDenoiser(Protocol):
    """Anything that maps images x = x0 + sigma noise, their noise levels and labels to its best guess of x0.

    `sigma` is in units of the data (images in [-1, 1]). The guess is not clipped.
    """

    def __call__(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, "b"], label: Int[Tensor, "b"] | None
    ) -> Float[Tensor, "b c h w"]: ...


@dataclass(frozen=True)
class NetDenoiser:
    """Makes a `Denoiser` of a network `net(x, t, label)`, hiding what it predicts.

    The network must take images of the type of `x`; its answer may be of another, as under autocast.
    """

    net: Callable[..., Tensor]
    schedule: Schedule
    prediction: str = "epsilon"

    def __call__(
        self, x: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], label: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The guess of the clean images, in the type of `x`."""
        alpha, sigma = self.schedule.at(t, x.dtype)
        x0, _ = clean_and_noise(self.prediction, self.net(x, t, label).to(x.dtype), x, alpha, sigma)
        return x0
