"""The bound that trains a learned variance of the ddpm sampler's steps."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.formulations import DDPM
from diffusion.noise import Images, Times

Table = Float[Tensor, "times 1 1 1"]
MIN_PROBABILITY = 1e-12
"""of a value at timestep 0, as in the published code; where the probability is less, it has no gradient"""


@dataclass(frozen=True)
class VariationalBound:
    """An estimate of L_vlb for each image from its timestep: T times the term of this timestep, in bits per value.

    Nichol & Dhariwal 2021, eq. 4 to 15. The variance of a step is `exp(w log beta + (1 - w) log beta~)`, where beta~ is
    the posterior's variance and `w = (fraction + 1) / 2`; `fraction` is the second half of the network's output. The
    term of timestep t > 0 is the KL divergence of the step from the posterior. At timestep 0 beta~ is zero and takes
    its value at timestep 1. The term is the negative logarithm of the probability of the data.
    """

    formulation: DDPM
    spacing: float | None
    """distance of neighbouring values of the data, which are in [-1, 1]: 2 / 255 for 8-bit pictures. The probability at
    timestep 0 is that of the interval of this length around the value; the first and the last interval are infinite.
    None for real numbers, of which it is the density, so the term may be negative"""

    def __call__(self, x0: Images, denoised: Images, fraction: Images, time: Times) -> Float[Tensor, "b"]:
        small, large, weight = (table[time.long()] for table in _tables(self.formulation, time.device))
        excess = (fraction + 1) / 2 * (large - small)
        logvar = small + excess
        error = x0 - denoised
        distance = (weight * error).square() * (-logvar).exp()
        divergence = (excess + torch.expm1(-excess) + distance) / 2
        nats = torch.where(time.view(-1, 1, 1, 1) == 0, self._surprise(x0, error, logvar), divergence)
        return self.formulation.timesteps / math.log(2) * nats.mean(dim=(1, 2, 3))

    def _surprise(self, x0: Images, error: Images, logvar: Images) -> Images:
        """The negative logarithm of the probability of `x0` under N(x0 - error, exp(logvar))."""
        if self.spacing is None:
            return (error.square() * (-logvar).exp() + logvar + math.log(2 * math.pi)) / 2
        half, root2_std = self.spacing / 2, math.sqrt(2) * (logvar / 2).exp()
        low = ((error - half) / root2_std).masked_fill(x0 < half - 1, -math.inf)
        high = ((error + half) / root2_std).masked_fill(x0 > 1 - half, math.inf)
        # mirrored to the upper tail, where erfc resolves small probabilities
        low, high = torch.where(error < 0, -high, low), torch.where(error < 0, -low, high)
        probability = (torch.special.erfc(low) - torch.special.erfc(high)) / 2
        return -probability.clamp(min=MIN_PROBABILITY).log()


@lru_cache(maxsize=16)
def _tables(formulation: DDPM, device: torch.device) -> tuple[Table, Table, Table]:
    """log beta~, log beta, and the weight of x0 in the posterior's mean, at all timesteps (eq. 10 and 11)."""
    from diffusers import DDPMScheduler

    beta = DDPMScheduler(**formulation.scheduler_config()).betas.double()
    alpha2 = (1 - beta).cumprod(dim=0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha2[:-1]])
    small = beta * (1 - before) / (1 - alpha2)
    small[0] = small[1]
    tables = (small.log(), beta.log(), beta * before.sqrt() / (1 - alpha2))
    a, b, c = (table.float().view(-1, 1, 1, 1).to(device) for table in tables)
    return a, b, c
