"""How much of the image and how much noise a noisy image holds at each timestep, as published.

x = alpha[t] x0 + sigma[t] noise,  alpha² + sigma² = 1  (Ho et al. 2020, eq. 4; alpha² is their "alpha bar").
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import DDPMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from residual.names import require_known

PUBLISHED: dict[str, dict[str, Any]] = {
    # Ho et al. 2020, section 4
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    # linear in the square root of beta: Rombach et al. 2022, the values of their released models
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    # Nichol & Dhariwal 2021, eq. 17
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
MOST_TIMESTEPS = 1_000_000
VARIANCES = ("fixed_large", "fixed_small")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A published noise schedule, for any number of timesteps; the tables are those of diffusers' schedulers.

    The published betas belong to 1000 timesteps; for T of them they are multiplied by 1000 / T, so that the last one
    is nearly pure noise for every T (as in Nichol & Dhariwal 2021's code).
    Raises ValueError for an unknown name or variance, if T is so small that a beta would reach 1, or above a million.
    """

    name: str = "linear"
    """one of PUBLISHED"""
    timesteps: int = 1000
    """T: noise levels are numbered 0 (almost clean) to T - 1 (noise)"""
    variance: str = "fixed_large"
    """of the noise that a DDPM step adds: "fixed_large" (beta) or "fixed_small" (the posterior's); ibid., 3.2"""

    def __post_init__(self) -> None:
        require_known("schedule", self.name, PUBLISHED)
        require_known("variance", self.variance, VARIANCES)
        least = int(1000 * PUBLISHED[self.name].get("beta_end", 0.001)) + 1
        if self.timesteps < least:
            raise ValueError(
                f"timesteps={self.timesteps} is too few for the {self.name} schedule; give at least {least} "
                "(1000 is what was published)"
            )
        if self.timesteps > MOST_TIMESTEPS:
            raise ValueError(f"timesteps={self.timesteps} is too many; give at most {MOST_TIMESTEPS}")

    def scheduler_config(self, prediction: str) -> dict[str, Any]:
        """The arguments of a diffusers scheduler of this schedule, for a network with this kind of prediction.

        The guess of the clean image is clipped to [-1, 1], the range of the images, as published.
        """
        betas = dict(PUBLISHED[self.name])
        for end in {"beta_start", "beta_end"} & betas.keys():
            betas[end] *= 1000 / self.timesteps
        return {
            "num_train_timesteps": self.timesteps,
            **betas,
            "variance_type": self.variance,
            "clip_sample": True,
            "clip_sample_range": 1.0,
            "prediction_type": prediction,
        }

    def at(
        self, t: Int[Tensor, "b"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
        """(alpha, sigma) at the timesteps `t`, on their device, shaped to multiply images."""
        alpha, sigma = _tables(self, t.device, dtype)
        return alpha[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1)


@lru_cache(maxsize=16)
def _tables(schedule: Schedule, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All of alpha and sigma; their roots are taken in float64 on the CPU, since not every device has float64."""
    alpha2 = DDPMScheduler(**schedule.scheduler_config("epsilon")).alphas_cumprod.double()
    return alpha2.sqrt().to(device, dtype), (1 - alpha2).sqrt().to(device, dtype)
