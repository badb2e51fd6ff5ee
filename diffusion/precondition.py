"""Networks behind a change of scale: the four preconditionings of Karras et al. 2022, table 1.

A noisy image is x = x0 + sigma noise: the noise grows, the image stays. A network F that was trained on inputs of
another scale, told the noise by another number, to predict something else, is a denoiser all the same:

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

Levels = Float[Tensor, "b"]
Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """A column of table 1: functions of the noise levels (b,), and the levels that networks of this kind were made for.

    Noise levels are standard deviations in units of the data (images in [-1, 1]).
    """

    c_skip: Curve
    """share of the noisy image in the guess"""
    c_out: Curve
    """scale of the network's answer"""
    c_in: Curve
    """scale of what the network sees"""
    c_noise: Curve
    """the number by which the network is told the noise level, in the place of its timestep"""
    sigma_min: float = 0.0
    """lowest level that a sampler should ask for"""
    sigma_max: float = math.inf
    """highest level that a sampler should ask for"""
    round_sigma: Curve = torch.Tensor.float
    """the nearest levels that the network knows; samplers should ask for these"""


def edm(sigma_data: float = 0.5) -> Preconditioning:
    """EDM: input and target of the network have unit variance at every noise level (eq. 7 and appendix B.6).

    `sigma_data` is the standard deviation of the data. Raises ValueError if it is not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data={sigma_data} should be the standard deviation of the data, above 0")

    def variance(sigma: Levels) -> Levels:
        return sigma.square() + sigma_data**2

    return Preconditioning(
        c_skip=lambda sigma: sigma_data**2 / variance(sigma),
        c_out=lambda sigma: sigma * sigma_data / variance(sigma).sqrt(),
        c_in=lambda sigma: 1 / variance(sigma).sqrt(),
        c_noise=lambda sigma: sigma.log() / 4,
    )


def ve() -> Preconditioning:
    """Variance exploding (Song et al. 2021): the network sees the image as it is, and predicts the noise negated.

    Made for levels from 0.02 to 100.
    """
    return Preconditioning(
        c_skip=torch.ones_like,
        c_out=lambda sigma: sigma,
        c_in=torch.ones_like,
        c_noise=lambda sigma: (sigma / 2).log(),
        sigma_min=0.02,
        sigma_max=100.0,
    )


def vp(beta_d: float = 19.9, beta_min: float = 0.1, timesteps: int = 1000, epsilon_t: float = 1e-5) -> Preconditioning:
    """Variance preserving (Song et al. 2021): the continuous form of DDPM's linear schedule, for networks that predict
    the noise of an image scaled to unit variance, at times `epsilon_t` to 1 that they are told as 0 … `timesteps` - 1.
    """
    ends = vp_sigma(torch.tensor([epsilon_t, 1.0]), beta_d, beta_min).tolist()
    return Preconditioning(
        c_skip=torch.ones_like,
        c_out=torch.neg,
        c_in=_unit_variance,
        c_noise=lambda sigma: (timesteps - 1) * vp_time(sigma, beta_d, beta_min),
        sigma_min=ends[0],
        sigma_max=ends[1],
    )


def vp_sigma(t: Levels, beta_d: float = 19.9, beta_min: float = 0.1) -> Levels:
    """The noise level of the variance preserving process at time t in 0 … 1 (table 1, first row of "VP")."""
    return (beta_d * t.square() / 2 + beta_min * t).expm1().sqrt()


def vp_time(sigma: Levels, beta_d: float = 19.9, beta_min: float = 0.1) -> Levels:
    """The time at which the variance preserving process has this noise level: the inverse of `vp_sigma`."""
    log = sigma.square().log1p()
    return 2 * log / ((beta_min**2 + 2 * beta_d * log).sqrt() + beta_min)  # free of the cancellation in the textbook's


def iddpm(c_1: float = 0.001, c_2: float = 0.008, timesteps: int = 1000) -> Preconditioning:
    """Improved DDPM (Nichol & Dhariwal 2021) and ADM: networks that predict the noise of an image scaled to unit
    variance, at whole timesteps of the cosine schedule.

    Level j of `iddpm_levels` is timestep `timesteps` - 1 - j. The network is told the nearest timestep of a level; the
    scales belong to the level itself.
    """

    def nearest(sigma: Levels) -> Int[Tensor, "b"]:
        u = iddpm_levels(c_1, c_2, timesteps, sigma.device)
        return (sigma[:, None] - u).abs().argmin(dim=1)

    u = iddpm_levels(c_1, c_2, timesteps)
    return Preconditioning(
        c_skip=torch.ones_like,
        c_out=torch.neg,
        c_in=_unit_variance,
        c_noise=lambda sigma: (timesteps - 1 - nearest(sigma)).float(),
        sigma_min=u[-1].item(),
        sigma_max=u[0].item(),
        round_sigma=lambda sigma: iddpm_levels(c_1, c_2, timesteps, sigma.device)[nearest(sigma)],
    )


@lru_cache(maxsize=16)
def iddpm_levels(
    c_1: float = 0.001, c_2: float = 0.008, timesteps: int = 1000, device: torch.device | str = "cpu"
) -> Float[Tensor, "timesteps"]:
    """The noise levels u_j of the cosine schedule, falling from j = 0 (table 1, column "iDDPM"; u_M = 0 is left out).

    `c_1` keeps the steps near pure noise from growing without bound, `c_2` those near the image from vanishing.
    """
    angle = torch.arange(timesteps + 1, dtype=torch.float64) * (math.pi / 2 / (timesteps * (c_2 + 1)))
    alpha2 = angle.sin().square()
    # The recursion u[j-1]² + 1 = (u[j]² + 1) / max(alpha2[j-1] / alpha2[j], c_1), from u[M] = 0, is a product.
    kept = (alpha2[:-1] / alpha2[1:]).clamp(min=c_1).flip(0).cumprod(0).flip(0)
    return (1 / kept - 1).sqrt().to(device, torch.float32)


PRECONDITIONINGS: dict[str, Callable[[], Preconditioning]] = {"edm": edm, "iddpm": iddpm, "ve": ve, "vp": vp}


@dataclass(frozen=True)
class Preconditioned:
    """Makes a `SigmaDenoiser` of a network `net(x, t, label)` and the preconditioning that it is trained with.

    Of a network that also predicts variances, in further channels, the first channels are used.
    """

    net: Callable[..., Tensor]
    by: Preconditioning

    def __call__(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, "b"], label: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The guess of the clean images, in the type of `x`; all but the network is computed in float32."""
        image, sigma = x.float(), sigma.float()
        c_skip, c_out, c_in = (c(sigma)[:, None, None, None] for c in (self.by.c_skip, self.by.c_out, self.by.c_in))
        answer = self.net(c_in * image, self.by.c_noise(sigma), label)[:, : x.shape[1]]
        return (c_skip * image + c_out * answer.float()).to(x.dtype)


def _unit_variance(sigma: Levels) -> Levels:
    """The scale at which images of unit variance keep it when noise is added."""
    return 1 / (sigma.square() + 1).sqrt()
