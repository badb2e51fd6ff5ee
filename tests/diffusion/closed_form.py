"""Gaussian data, for which the ideal denoiser and the sampling equation have closed forms."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion import DDPM, EDM, Condition, Flow, Formulation
from diffusion.noise import Images, NoiseLevel, Times

ALL = {
    "epsilon": DDPM(),
    "x0": DDPM(prediction="x0"),
    "v": DDPM(schedule="cosine", prediction="v"),
    "edm": EDM(),
    "flow": Flow(),
    "zero_terminal": DDPM(prediction="v", zero_terminal_snr=True),
}
"""one formulation for each kind of target"""


def spread(level: NoiseLevel, std: float) -> torch.Tensor:
    """Standard deviation of noisy images whose clean images are N(0, std²)."""
    return (level.alpha.square() * std**2 + level.sigma.square()).sqrt()


def ideal(formulation: Formulation, std: float = 0.2):
    """The denoiser of images whose pixels are N(0, std²): the posterior mean, linear in x."""

    def denoise(x: Images, time: Times, condition: Condition) -> Images:
        level = formulation.level(time)
        return level.alpha * std**2 / spread(level, std).square() * x

    return denoise


def interior_times(formulation: Formulation, count: int) -> Times:
    """Float64 times without pure noise and the clean image, spread over the formulation's own grid."""
    times = formulation.times(100, "leading").double()[10:-10]
    return times[torch.linspace(0, len(times) - 1, count).long()]


def ideal_for(formulation: Formulation, covariance: Float[Tensor, "n n"]):
    """The denoiser of images whose pixels are jointly normal with mean 0 and a covariance."""

    def denoise(x: Images, time: Times, condition: Condition) -> Images:
        level = formulation.level(time[:1])
        noisy = level.alpha.square()[0, 0] * covariance + level.sigma.square()[0, 0] * torch.eye(len(covariance))
        gain = level.alpha[0, 0] * torch.linalg.solve(noisy, covariance)
        return (x.flatten(1) @ gain.to(x)).view_as(x)

    return denoise


def posterior_of(
    covariance: Float[Tensor, "n n"], matrix: Float[Tensor, "m n"], values: Float[Tensor, "b m"], noise: float
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "n n"]]:
    """Mean and covariance of normal x with mean 0, given `values = matrix x + noise`."""
    gain = torch.linalg.solve(matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix)), matrix @ covariance)
    return values @ gain, covariance - (matrix @ covariance).T @ gain
