"""Samplers: where a chain starts, its times, its solver, and whether denoised images are clipped."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from jaxtyping import Float
from torch import Tensor

from diffusion.denoiser import UNCONDITIONED, Condition, Denoiser
from diffusion.formulations import DDPM
from diffusion.noise import Formulation, Images, NoiseLevel
from diffusion.seeds import standard_normal
from diffusion.solvers import DPMSolverPP2M, Euler, EulerAncestral, Heun, Predict, Solver
from residual.names import require_known

# The spacings were chosen by measurement (docs/benchmarks.md). With few steps the leading spacing, the published one of
# DDPM and DDIM, starts below T - 1, and the solvers draw worse. Heun's method keeps it, because the first step from the
# last timestep of the cosine schedule is too long for it.
LEADING, TRAILING = {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}
# Thresholding to the default `sample_max_value`, 1, is clipping; Euler's two schedulers have no such option.
LINSPACE = {"timestep_spacing": "linspace", "thresholding": True}

SCHEDULERS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    # Song et al. 2021, eq. 12
    "ddim": (DDIMScheduler, LEADING),
    # Ho et al. 2020, algorithm 2
    "ddpm": (DDPMScheduler, LEADING),
    # Lu et al. 2022, "DPM-Solver++", algorithm 2, and its form with noise (appendix B.3)
    "dpmpp_2m": (DPMSolverMultistepScheduler, LINSPACE),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, LINSPACE | {"algorithm_type": "sde-dpmsolver++"}),
    # Zhao et al. 2023, algorithms 5 and 6
    "unipc": (UniPCMultistepScheduler, LINSPACE),
    # Karras et al. 2022: algorithm 1 with one and with two evaluations per step
    "euler": (EulerDiscreteScheduler, TRAILING),
    "heun": (HeunDiscreteScheduler, LEADING),
    # k-diffusion's sample_euler_ancestral
    "euler_ancestral": (EulerAncestralDiscreteScheduler, TRAILING),
}
"""The scheduler of diffusers, with its settings, that draws the same images as each sampler does with a DDPM model."""


Start = Callable[[NoiseLevel, Images], Images]
"""the first noisy images of a chain, from standard normal noise"""


def pure_noise(level: NoiseLevel, noise: Images) -> Images:
    """Noise alone, as Euler's samplers in diffusers and EDM start (Karras et al. 2022, algorithm 1)."""
    return level.sigma * noise


def unit_variance(level: NoiseLevel, noise: Images) -> Images:
    """Noise with the variance of noisy images whose clean images have unit variance."""
    return level.scale() * noise


@runtime_checkable
class Sampler(Protocol):
    """What `sample` needs: a start, falling times, and the chain between them."""

    @property
    def start(self) -> Start:
        """The first noisy images."""
        ...

    @property
    def spacing(self) -> str:
        """Spacing of whole timesteps: leading, trailing or linspace."""
        ...

    @property
    def options(self) -> frozenset[str]:
        """Names of the options that `with_options` accepts."""
        ...

    def with_options(self, **options: float) -> "Sampler":
        """The sampler with other options."""
        ...

    def check(self, formulation: Formulation) -> None:
        """Raises ValueError if models of this formulation cannot be sampled."""
        ...

    def chain(
        self,
        predict: Predict,
        formulation: Formulation,
        x: Images,
        times: Float[Tensor, "times"],
        generators: list[torch.Generator],
    ) -> Iterator[Images]:
        """The images after each step."""
        ...


@dataclass(frozen=True)
class Integrator:
    """A sampler of one of our solvers, for any formulation."""

    start: Start
    spacing: str
    solver: Solver
    clip: bool
    """whether denoised images are clipped, for formulations that allow it"""

    @property
    def options(self) -> frozenset[str]:
        return frozenset(field.name for field in fields(self.solver))  # type: ignore[arg-type]

    def with_options(self, **options: float) -> "Integrator":
        return replace(self, solver=replace(self.solver, **options))  # type: ignore[type-var]

    def check(self, formulation: Formulation) -> None:
        """Every formulation can be integrated."""

    def chain(
        self,
        predict: Predict,
        formulation: Formulation,
        x: Images,
        times: Float[Tensor, "times"],
        generators: list[torch.Generator],
    ) -> Iterator[Images]:
        clip = self.clip and formulation.clips_x0

        def predict_clipped(x: Images, time: Float[Tensor, ""]) -> Images:
            return predict(x, time).clamp(-1, 1) if clip else predict(x, time)

        return self.solver(
            predict_clipped, formulation, x, times, lambda: standard_normal(generators, x.shape[1:], x.device)
        )


@dataclass(frozen=True)
class FromDiffusers:
    """A sampler that calls a scheduler of diffusers, for what must equal its pipelines. For DDPM models.

    The scheduler receives the denoised image (`prediction_type="sample"`), whatever the network predicts. This class
    alone knows that diffusers' timesteps are integers.
    """

    name: str
    """key of SCHEDULERS"""
    eta: float = 0.0
    """noise that DDIM adds, from 0 (none) to 1 (as much as DDPM)"""

    @property
    def spacing(self) -> str:
        return SCHEDULERS[self.name][1]["timestep_spacing"]

    @property
    def options(self) -> frozenset[str]:
        return frozenset({"eta"} & set(signature(SCHEDULERS[self.name][0].step).parameters))

    def with_options(self, **options: float) -> "FromDiffusers":
        chosen = replace(self, **options)  # type: ignore[arg-type]
        if not 0 <= chosen.eta <= 1:
            raise ValueError(f"eta={chosen.eta:g} is outside 0 (no noise is added) … 1 (as much as DDPM adds)")
        return chosen

    def check(self, formulation: Formulation) -> None:
        if not isinstance(formulation, DDPM):
            others = ", ".join(name for name, sampler in SAMPLERS.items() if isinstance(sampler, Integrator))
            raise ValueError(
                f"sampler={self.name} needs the timesteps of a ddpm model, but this model is a "
                f"{type(formulation).__name__} model; choose: {others}"
            )

    @property
    def start(self) -> Start:
        return lambda level, noise: noise

    def scheduler(self, formulation: DDPM, steps: int) -> Any:
        """The scheduler, before the first of `steps`."""
        kind, settings = SCHEDULERS[self.name]
        config = formulation.scheduler_config() | {"prediction_type": "sample"}
        accepted = signature(kind.__init__).parameters
        scheduler = kind(**{key: value for key, value in config.items() if key in accepted}, **settings)
        scheduler.set_timesteps(steps)
        return scheduler

    def chain(
        self,
        predict: Predict,
        formulation: Formulation,
        x: Images,
        times: Float[Tensor, "times"],
        generators: list[torch.Generator],
    ) -> Iterator[Images]:
        assert isinstance(formulation, DDPM), "checked before"
        scheduler = self.scheduler(formulation, len(times) - 1)
        accepted = signature(scheduler.step).parameters
        given = {"generator": generators, "eta": self.eta}
        options = {name: value for name, value in given.items() if name in accepted}
        for timestep, time in zip(scheduler.timesteps, times, strict=False):
            x = scheduler.step(predict(x, time), timestep, x, return_dict=False, **options)[0]
            yield x


SAMPLERS: dict[str, Sampler] = {
    "ddim": FromDiffusers("ddim"),
    "ddpm": FromDiffusers("ddpm"),
    "dpmpp_2m": Integrator(unit_variance, "linspace", DPMSolverPP2M(), clip=True),
    "dpmpp_2m_sde": FromDiffusers("dpmpp_2m_sde"),
    "unipc": FromDiffusers("unipc"),
    "euler": Integrator(pure_noise, "trailing", Euler(), clip=False),
    "heun": Integrator(unit_variance, "leading", Heun(), clip=True),
    "euler_ancestral": Integrator(pure_noise, "trailing", EulerAncestral(), clip=False),
}
MAX_STEPS = 1_000_000


def choose_sampler(name: str, formulation: Formulation, steps: int, **options: float) -> Sampler:
    """The sampler of this name, with the options that are not zero.

    Raises ValueError if the name is unknown, an option has no meaning for the sampler or is out of range, the sampler
    cannot draw from such a model, or the number of steps does not fit the model's timesteps.
    """
    require_known("sampler", name, SAMPLERS)
    sampler = SAMPLERS[name]
    given = {option: value for option, value in options.items() if value != 0}
    for option, value in given.items():
        if option not in sampler.options:
            able = ", ".join(other for other, row in SAMPLERS.items() if option in row.options)
            raise ValueError(f"{option}={value:g} has no meaning for sampler {name}; leave it out, or choose: {able}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{option}={value:g} is out of range; give 0 or more")
    sampler.check(formulation)
    _check_steps(name, formulation, steps)
    return sampler.with_options(**given)


def _check_steps(name: str, formulation: Formulation, steps: int) -> None:
    limit = formulation.timesteps if isinstance(formulation, DDPM) else MAX_STEPS
    if not 1 <= steps <= limit:
        reason = "draws no image" if steps < 1 else f"is more than the {limit} timesteps of the model"
        raise ValueError(f"steps={steps} {reason}; give 1 to {limit}")
    if not _distinct(name, formulation, steps):
        fewer = next(n for n in range(steps - 1, 0, -1) if _distinct(name, formulation, n))
        raise ValueError(f"steps={steps} of sampler {name} would use a timestep of the model twice; give {fewer}")


def _distinct(name: str, formulation: Formulation, steps: int) -> bool:
    return bool((formulation.times(steps, SAMPLERS[name].spacing).diff() < 0).all())


def late_start(name: str, formulation: Formulation, steps: int) -> str | None:
    """A warning if the chain starts far below the last timestep, where images are not yet pure noise; else None.

    The warning names the nearest better number of steps. The leading spacing starts late with few steps, and with more
    than half of the timesteps.
    """
    if not isinstance(formulation, DDPM) or SAMPLERS[name].spacing != "leading":
        return None
    last = formulation.timesteps - 1
    first = {n: (n - 1) * (formulation.timesteps // n) for n in range(1, last + 2)}
    good = [n for n in first if first[n] >= 0.9 * last]
    if steps in good:
        return None
    nearest = min(good, key=lambda n: abs(n - steps))
    return (
        f"{steps} steps of {name} start at timestep {first[steps]} of {last}, where images are not yet pure noise, "
        f"and may look wrong; {nearest} steps start higher"
    )


def sample(
    denoise: Denoiser,
    formulation: Formulation,
    sampler: Sampler,
    generators: list[torch.Generator],
    shape: tuple[int, int, int],
    condition: Condition = UNCONDITIONED,
    *,
    steps: int = 50,
    device: torch.device | str = "cpu",
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Draws one image (c, h, w) per generator: yields the starting noise, then the images after each of the `steps`.

    Intermediate images are scaled to about unit variance. The last ones, the samples, are in about [-1, 1] (not
    clipped). `sampler` comes from `choose_sampler`.
    """
    times = formulation.times(steps, sampler.spacing).to(device)

    def predict(x: Images, time: Float[Tensor, ""]) -> Images:
        with torch.no_grad():  # scoped to the step, so that the caller's grad mode is unchanged across `yield`
            return denoise(x, time.expand(len(x)), condition)

    start = formulation.level(times[:1])
    x = sampler.start(start, standard_normal(generators, shape, device))
    yield x / start.scale()
    chain = sampler.chain(predict, formulation, x, times, generators)
    for time, images in zip(times[1:], chain, strict=True):
        yield images / formulation.level(time[None]).scale()
