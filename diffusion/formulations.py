"""The formulations: DDPM's discrete schedules, EDM's preconditioning, flow matching."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.noise import NoiseLevel, PerImage, Random, Times
from residual.names import require_known

SCHEDULES: dict[str, dict[str, Any]] = {
    # Ho et al. 2020, section 4
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    # linear in the square root of beta: Rombach et al. 2022, the values of their released models
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    # Nichol & Dhariwal 2021, eq. 17
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
# prediction -> its weights (a, b) of the clean image and the noise, and diffusers' name for it
PREDICTIONS: dict[str, tuple[Callable[[PerImage, PerImage], tuple[Tensor, Tensor]], str]] = {
    "epsilon": (lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(sigma)), "epsilon"),
    "x0": (lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(sigma)), "sample"),
    "v": (lambda alpha, sigma: (-sigma, alpha), "v_prediction"),  # Salimans & Ho 2022, appendix D
}
SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "leading": lambda total, steps: torch.arange(steps - 1, -1, -1) * (total // steps),
    "trailing": lambda total, steps: (total - torch.arange(steps, dtype=torch.float64) * total / steps).round() - 1,
    "linspace": lambda total, steps: torch.linspace(total - 1, 0, steps + 1, dtype=torch.float64).round()[:-1],
}
"""Whole timesteps of a sampler's steps out of `total`, falling: the three spacings of diffusers' schedulers."""
VARIANCES = ("fixed_large", "fixed_small")
MAX_TIMESTEPS = 1_000_000
MAX_RATIO = 1e9
"""of `sigma / alpha` where times are computed from it; pure noise in float32"""


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """Discrete timesteps with alpha² + sigma² = 1 (Ho et al. 2020, eq. 4).

    The unit of time is the timestep, 0 … `timesteps` - 1; -1 is the clean image. Between timesteps alpha and sigma are
    interpolated linearly, which keeps alpha² + sigma² = 1 within 1e-4. The published betas belong to 1000 timesteps.
    For T of them they are multiplied by 1000 / T, as in Nichol & Dhariwal 2021's code.

    Raises ValueError for an unknown name, too few timesteps (a beta would reach 1), or more than a million.
    """

    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """growth of the noise over the timesteps: linear (Ho et al. 2020), scaled_linear (Rombach et al. 2022), cosine
    (Nichol and Dhariwal 2021)"""
    timesteps: int = 1000
    """number of noise levels"""
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"
    """what the network predicts: the noise, the clean image, or their mixture v (Salimans and Ho 2022)"""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """variance of the noise that each step of the ddpm sampler adds: beta (large) or the posterior's (small)"""
    zero_terminal_snr: bool = False
    """rescale the schedule so that the last noise level is pure noise (Lin et al. 2023). Not for epsilon, from which
    the image cannot be computed there"""

    network_fields: ClassVar[tuple[str, ...]] = ("schedule", "timesteps", "prediction", "zero_terminal_snr")
    later_fields: ClassVar[frozenset[str]] = frozenset({"zero_terminal_snr"})
    clips_x0: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_known("schedule", self.schedule, SCHEDULES)
        require_known("prediction", self.prediction, PREDICTIONS)
        require_known("variance", self.variance, VARIANCES)
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError("zero_terminal_snr=true does not go with prediction=epsilon; choose v or x0")
        least = int(1000 * SCHEDULES[self.schedule].get("beta_end", 0.001)) + 1
        if self.timesteps < least:
            raise ValueError(
                f"timesteps={self.timesteps} is too few for the {self.schedule} schedule; give at least {least} "
                "(1000 is the published number)"
            )
        if self.timesteps > MAX_TIMESTEPS:
            raise ValueError(f"timesteps={self.timesteps} is too many; give at most {MAX_TIMESTEPS}")

    def level(self, time: Times) -> NoiseLevel:
        alphas, sigmas = _tables(self, time.device, time.dtype)
        below = time.floor()
        low = below.long() + 1  # entry 0 of the tables is the clean image
        high = (low + 1).clamp(max=self.timesteps)
        alpha, sigma = (
            table[low].lerp(table[high], time - below).view(-1, 1, 1, 1) for table in (alphas, sigmas)
        )  # exact at whole timesteps
        a, b = PREDICTIONS[self.prediction][0](alpha, sigma)
        return NoiseLevel(alpha, sigma, torch.ones_like(alpha), time, a, b)

    def draw_time(self, random: Random) -> Times:
        return random.integers(self.timesteps).float()

    def time_at(self, ratio: Times) -> Times:
        """The largest `sigma / alpha` is that of the last timestep, or `MAX_RATIO`; larger ones are clamped to it."""
        alphas, sigmas = _tables(self, ratio.device, ratio.dtype)
        ratios = sigmas / alphas
        ratio = ratio.minimum(ratios[-1]).clamp(max=MAX_RATIO)
        low = (torch.searchsorted(ratios, ratio, right=True) - 1).clamp(max=self.timesteps - 1)
        alpha, sigma = alphas[low], sigmas[low]
        rise = (sigmas[low + 1] - sigma) - ratio * (alphas[low + 1] - alpha)
        return low - 1 + ((ratio * alpha - sigma) / rise).clamp(0, 1)

    def times(self, steps: int, spacing: str = "leading") -> Float[Tensor, "times"]:
        return torch.cat([SPACINGS[spacing](self.timesteps, steps).float(), torch.tensor([-1.0])])

    def scheduler_config(self) -> dict[str, Any]:
        """The arguments of a diffusers scheduler; denoised images are clipped to [-1, 1], as published."""
        betas = dict(SCHEDULES[self.schedule])
        for end in {"beta_start", "beta_end"} & betas.keys():
            betas[end] *= 1000 / self.timesteps
        return {
            "num_train_timesteps": self.timesteps,
            **betas,
            "variance_type": self.variance,
            "clip_sample": True,
            "clip_sample_range": 1.0,
            "prediction_type": PREDICTIONS[self.prediction][1],
            "rescale_betas_zero_snr": self.zero_terminal_snr,
        }


@lru_cache(maxsize=16)
def _tables(
    formulation: DDPM, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "times"], Float[Tensor, "times"]]:
    """alpha and sigma of the clean image and of all timesteps.

    The roots are taken in float64 on the CPU, since not every device has float64.
    """
    from diffusers import DDPMScheduler

    alpha2 = DDPMScheduler(**formulation.scheduler_config()).alphas_cumprod.double()
    alpha2 = torch.cat([torch.ones(1, dtype=torch.float64), alpha2])
    return alpha2.sqrt().to(device, dtype), (1 - alpha2).sqrt().to(device, dtype)


def _require_between(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError for values whose squares float32 cannot hold, and for those that are not finite."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range; give {low:g} to {high:g}")


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Noise is added to the image, x = x0 + sigma noise; input and target of the network have unit variance.

    The unit of time is sigma, in units of the data (images in [-1, 1]). Karras et al. 2022, eq. 7 and table 1:
    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), so F is trained towards (x0 - c_skip x) / c_out.

    Raises ValueError for values out of range, and for sigma_min above sigma_max.
    """

    sigma_data: float = 0.5
    """standard deviation of the images' values"""
    sigma_min: float = 0.002
    """lowest noise level of the samplers' steps; the last step goes to zero"""
    sigma_max: float = 80.0
    """noise level at which samplers start"""
    p_mean: float = -1.2
    """mean of the logarithm of sigma in training"""
    p_std: float = 1.2
    """standard deviation of the logarithm of sigma in training"""

    network_fields: ClassVar[tuple[str, ...]] = ("sigma_data",)
    later_fields: ClassVar[frozenset[str]] = frozenset()
    clips_x0: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("sigma_data", "sigma_min", "sigma_max", "p_std"):
            _require_between(name, getattr(self, name), 1e-6, 1e6)
        _require_between("p_mean", self.p_mean, -20, 20)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be below sigma_max={self.sigma_max}; lower sigma_min")

    def level(self, time: Times) -> NoiseLevel:
        sigma = time.view(-1, 1, 1, 1)
        spread = sigma.hypot(torch.full_like(sigma, self.sigma_data))  # standard deviation of the noisy image
        return NoiseLevel(
            alpha=torch.ones_like(sigma),
            sigma=sigma,
            c_in=1 / spread,
            c_noise=time.log() / 4,
            a=sigma / (self.sigma_data * spread),
            b=-self.sigma_data / spread,
        )

    def draw_time(self, random: Random) -> Times:
        return (self.p_mean + self.p_std * random.normal()).exp()

    def time_at(self, ratio: Times) -> Times:
        return ratio

    def times(self, steps: int, spacing: str = "leading") -> Float[Tensor, "times"]:
        """Levels whose 7th roots fall evenly, then zero (Karras et al. 2022, eq. 5)."""
        high, low = self.sigma_max ** (1 / 7), self.sigma_min ** (1 / 7)
        share = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        return torch.cat([(high + share * (low - high)) ** 7, torch.zeros(1)]).float()


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Flow matching on straight lines: x = (1 - t) x0 + t noise, and the network predicts noise - x0.

    The unit of time is t, 0 (clean image) … 1 (noise). Lipman et al. 2023, section 4.1; Liu et al. 2023, eq. 1.
    Raises ValueError for values out of range.
    """

    time_scale: float = 1000.0
    """the network receives this number times t, so that embeddings made for timesteps serve it"""
    times_in_training: Literal["uniform", "logit_normal"] = "uniform"
    """distribution of t in training: uniform, or t = 1 / (1 + exp(-z)) with a normal z (Esser et al. 2024, eq. 19)"""
    logit_mean: float = 0.0
    """mean of z, for logit_normal: above 0 there are more high noise levels"""
    logit_std: float = 1.0
    """standard deviation of z, for logit_normal"""
    shift: float = 1.0
    """moves t in training and of the samplers' steps to shift t / (1 + (shift - 1) t): above 1 to higher noise levels,
    as large images need (Esser et al. 2024, eq. 23)"""

    network_fields: ClassVar[tuple[str, ...]] = ("time_scale",)
    later_fields: ClassVar[frozenset[str]] = frozenset({"times_in_training", "logit_mean", "logit_std", "shift"})
    clips_x0: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_between("time_scale", self.time_scale, 1e-6, 1e6)
        require_known("times_in_training", self.times_in_training, ("uniform", "logit_normal"))
        _require_between("logit_mean", self.logit_mean, -10, 10)
        _require_between("logit_std", self.logit_std, 1e-3, 10)
        _require_between("shift", self.shift, 1e-3, 1e3)

    def level(self, time: Times) -> NoiseLevel:
        sigma = time.view(-1, 1, 1, 1)
        one = torch.ones_like(sigma)
        return NoiseLevel(alpha=1 - sigma, sigma=sigma, c_in=one, c_noise=self.time_scale * time, a=-one, b=one)

    def draw_time(self, random: Random) -> Times:
        if self.times_in_training == "logit_normal":
            return self._shifted((self.logit_mean + self.logit_std * random.normal()).sigmoid())
        return self._shifted(1 - random.uniform())  # never 0, where some weightings are infinite

    def _shifted(self, t: Float[Tensor, "times"]) -> Float[Tensor, "times"]:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time_at(self, ratio: Times) -> Times:
        return 1 / (1 + 1 / ratio)  # 0 at ratio 0, and 1 where it is infinite

    def times(self, steps: int, spacing: str = "leading") -> Float[Tensor, "times"]:
        return self._shifted(torch.linspace(1, 0, steps + 1))


FORMULATIONS: dict[str, type] = {"ddpm": DDPM, "edm": EDM, "flow": Flow}
"""The formulations by the name that settings and model folders use."""
