"""Solvers of the sampling equation, written once over the noise level `sigma / alpha`.

In `y = x / alpha` and `r = sigma / alpha` every formulation has the same probability-flow equation, `dy / dr = noise`,
with `noise = (x - alpha x0) / sigma` (Karras et al. 2022, eq. 1 and 4). Every step is written in `x`, so that pure
noise (alpha = 0) is a valid start.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.denoiser import Denoised
from diffusion.noise import Formulation, Images, NoiseLevel
from diffusion.seeds import standard_normal

Chain = Float[Tensor, "steps"]
"""falling times; the last one is that of the clean image, or of any lower noise level"""
Predict = Callable[[Images, Float[Tensor, ""]], Denoised]
"""expected clean images for noisy images that all have the same time"""
Generators = list[torch.Generator]
"""one source of random numbers per image"""


@runtime_checkable
class Solver(Protocol):
    """Yields the images after each step from `times[k]` to `times[k + 1]`. The last time is that of the clean image."""

    def __call__(
        self, predict: Predict, formulation: Formulation, x: Images, times: Chain, generators: Generators
    ) -> Iterator[Images]: ...


@dataclass(frozen=True)
class Step:
    """One step of a solver: the times and noise levels at both ends, and `sigma / alpha` as plain numbers."""

    time: Float[Tensor, ""]
    time_after: Float[Tensor, ""]
    now: NoiseLevel
    after: NoiseLevel
    ratio: float
    ratio_after: float


def steps_of(formulation: Formulation, times: Float[Tensor, "times"]) -> Iterator[Step]:
    """The steps between successive times. Raises ValueError if a step starts at the clean image."""
    ratios = formulation.level(times).ratio.flatten().tolist()
    if 0 in ratios[:-1]:
        raise ValueError("times reach the clean image before their end; start above it")
    levels = [formulation.level(time[None]) for time in times]
    for (time, time_after), (now, after), (ratio, ratio_after) in zip(
        pairwise(times), pairwise(levels), pairwise(ratios), strict=True
    ):
        yield Step(time, time_after, now, after, ratio, ratio_after)


@dataclass(frozen=True)
class Euler:
    """Euler's method: one evaluation per step, first order. For DDPM it is DDIM without noise.

    Karras et al. 2022, algorithm 1 without the correction; Song et al. 2021, eq. 12.
    """

    def __call__(
        self, predict: Predict, formulation: Formulation, x: Images, times: Chain, generators: Generators
    ) -> Iterator[Images]:
        for step in steps_of(formulation, times):
            x0 = predict(x, step.time)
            x = step.after.noisy(x0, step.now.noise_in(x, x0))
            yield x


@dataclass(frozen=True)
class Heun:
    """Heun's method: two evaluations per step, second order (Karras et al. 2022, algorithms 1 and 2).

    The last step, and a first one from pure noise, are Euler's. With `churn` above 0 each step within
    `churn_interval` (of `sigma / alpha`) first adds noise: S_churn, [S_tmin, S_tmax] and S_noise of algorithm 2.
    """

    churn: float = 0.0
    churn_interval: tuple[float, float] = (0.0, math.inf)
    noise_scale: float = 1.0

    def __call__(
        self, predict: Predict, formulation: Formulation, x: Images, times: Chain, generators: Generators
    ) -> Iterator[Images]:
        gamma = min(self.churn / (len(times) - 1), math.sqrt(2) - 1)
        low, high = self.churn_interval
        for step in steps_of(formulation, times):
            time, now, ratio = step.time, step.now, step.ratio
            if gamma > 0 and low <= ratio <= high and math.isfinite(ratio):
                time = formulation.time_at(now.ratio.flatten() * (1 + gamma))[0]
                raised = formulation.level(time[None])
                added = (raised.ratio.square() - now.ratio.square()).clamp(min=0).sqrt()
                x = raised.alpha * (x / now.alpha + self.noise_scale * added * _noise(x, generators))
                now, ratio = raised, raised.ratio.item()
            x0 = predict(x, time)
            noise = now.noise_in(x, x0)
            x = step.after.noisy(x0, noise)
            if step.ratio_after > 0 and math.isfinite(ratio):
                corrected = step.after.noise_in(x, predict(x, step.time_after))
                x = x + step.after.alpha * ((step.ratio_after - ratio) / 2) * (corrected - noise)
            yield x


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++ 2M: one evaluation per step, second order by the previous step's x0 (Lu et al. 2022, algorithm 2).

    The first and the last step are of first order.
    """

    def __call__(
        self, predict: Predict, formulation: Formulation, x: Images, times: Chain, generators: Generators
    ) -> Iterator[Images]:
        previous, h_previous = None, math.inf
        for step in steps_of(formulation, times):
            x0 = predict(x, step.time)
            h = math.log(step.ratio / step.ratio_after) if step.ratio_after > 0 else math.inf
            direction = x0
            if previous is not None and math.isfinite(h) and math.isfinite(h_previous):
                direction = x0 + (h / (2 * h_previous)) * (x0 - previous)
            x = (step.after.sigma / step.now.sigma) * x - step.after.alpha * math.expm1(-h) * direction
            yield x
            previous, h_previous = x0, h


@dataclass(frozen=True)
class EulerAncestral:
    """Euler's method to below the step's end, then noise up to it: k-diffusion's ancestral sampler."""

    def __call__(
        self, predict: Predict, formulation: Formulation, x: Images, times: Chain, generators: Generators
    ) -> Iterator[Images]:
        for step in steps_of(formulation, times):
            x0 = predict(x, step.time)
            share = step.ratio_after / step.ratio
            down, up = step.ratio_after * share, step.ratio_after * math.sqrt(1 - share**2)
            x = step.after.alpha * (x0 + down * step.now.noise_in(x, x0) + up * _noise(x, generators))
            yield x


def _noise(x: Images, generators: Generators) -> Images:
    return standard_normal(generators, x.shape[1:], x.device)
