"""Gaussian data, for which the ideal denoiser and the sampling equation have closed forms."""

import torch

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
