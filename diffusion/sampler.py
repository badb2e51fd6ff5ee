"""Samplers: where a chain starts, its times, its solver, and whether denoised images are clipped."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.denoiser import UNCONDITIONED, Condition, Denoised, Denoiser, clipped
from diffusion.formulations import DDPM
from diffusion.noise import Formulation, Images, NoiseLevel
from diffusion.options import SAMPLER_NAMES, STEPS, STRETCH, SamplerName
from diffusion.seeds import standard_normal
from diffusion.solvers import DPMSolverPP2M, Euler, EulerAncestral, Heun, Predict, Solver
from residual.names import require_known

# The spacings were chosen by measurement (docs/benchmarks.md). With few steps the leading spacing, the published one of
# DDPM and DDIM, starts below T - 1, and the solvers draw worse. Heun's method keeps it, because the first step from the
# last timestep of the cosine schedule is too long for it.
LEADING, TRAILING = {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}
# Thresholding to the default `sample_max_value`, 1, is clipping; Euler's two schedulers have no such option.
LINSPACE = {"timestep_spacing": "linspace", "thresholding": True}

SCHEDULERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    # Song et al. 2021, eq. 12
    "ddim": ("DDIMScheduler", LEADING),
    # Ho et al. 2020, algorithm 2
    "ddpm": ("DDPMScheduler", LEADING),
    # Lu et al. 2022, "DPM-Solver++", algorithm 2, and its form with noise (appendix B.3)
    "dpmpp_2m": ("DPMSolverMultistepScheduler", LINSPACE),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", LINSPACE | {"algorithm_type": "sde-dpmsolver++"}),
    # Zhao et al. 2023, algorithms 5 and 6
    "unipc": ("UniPCMultistepScheduler", LINSPACE),
    # Karras et al. 2022: algorithm 1 with one and with two evaluations per step
    "euler": ("EulerDiscreteScheduler", TRAILING),
    "heun": ("HeunDiscreteScheduler", LEADING),
    # k-diffusion's sample_euler_ancestral
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", TRAILING),
}
"""diffusers' scheduler, by name, with its settings, that draws the same images as each sampler with a DDPM model."""


Start = Callable[[NoiseLevel, Images], Images]
"""the first noisy images of a chain, from standard normal noise"""


def pure_noise(level: NoiseLevel, noise: Images) -> Images:
    """Noise alone, as Euler's samplers in diffusers and EDM start (Karras et al. 2022, algorithm 1)."""
    return level.sigma * noise


def unit_variance(level: NoiseLevel, noise: Images) -> Images:
    """Noise with the variance of noisy images whose clean images have unit variance."""
    return level.scale() * noise


@dataclass(frozen=True)
class Sampler:
    """A start, falling times and a solver; and whether denoised images are clipped, if the formulation allows it."""

    start: Start
    spacing: str
    """spacing of whole timesteps: leading, trailing or linspace"""
    solver: Solver
    clip: bool

    @property
    def options(self) -> frozenset[str]:
        """The options of the solver, such as eta or churn."""
        return frozenset(name for name in ("eta", "churn") if getattr(self.solver, name, None) is not None)

    @property
    def learned_variance(self) -> bool:
        """Whether the denoiser has to return its learned variance."""
        return getattr(self.solver, "learned_variance", None) is True


@dataclass(frozen=True)
class FromDiffusers:
    """A solver that calls a scheduler of diffusers, for what must equal its pipelines. For DDPM models.

    The scheduler receives the denoised image (`prediction_type="sample"`), whatever the network predicts, and clips it.
    Only this class depends on the integer timesteps of diffusers.
    """

    name: str
    """key of SCHEDULERS"""
    eta: float | None = None
    """noise that DDIM adds, from 0 (none) to 1 (as much as DDPM); None for other schedulers"""
    learned_variance: bool | None = None
    """whether the noise that DDPM adds has the learned variance, which `predict` returns behind the denoised image
    (Nichol & Dhariwal 2021, eq. 15), and not that of the formulation; None for other schedulers"""
    skipped: int = 0
    """steps of the whole chain that come before `times`"""
    steps: int | None = None
    """steps of the whole chain; None: it ends with `times`"""
    clip: bool = True
    """whether denoised images are clipped to [-1, 1], as far as the scheduler does so"""

    def __call__(
        self,
        predict: Predict,
        formulation: Formulation,
        x: Images,
        times: Float[Tensor, "times"],
        generators: list[torch.Generator],
    ) -> Iterator[Images]:
        import diffusers

        assert isinstance(formulation, DDPM), "choose_sampler checks it"
        scheduler_name, settings = SCHEDULERS[self.name]
        kind = getattr(diffusers, scheduler_name)
        config = formulation.scheduler_config() | {"prediction_type": "sample"}
        if self.learned_variance:
            config["variance_type"] = "learned_range"
        arguments = _accepted(kind.__init__, config) | dict(settings)
        if not self.clip:
            arguments |= dict.fromkeys({"clip_sample", "thresholding"} & arguments.keys(), False)
        scheduler = kind(**arguments)
        scheduler.set_timesteps(self.skipped + len(times) - 1 if self.steps is None else self.steps)
        options = _accepted(scheduler.step, {"generator": generators, "eta": self.eta})
        for timestep, time in zip(scheduler.timesteps[self.skipped :], times[:-1], strict=False):
            x = scheduler.step(predict(x, time), timestep, x, return_dict=False, **options)[0]
            yield x


def _accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in signature(function).parameters}


def _from_diffusers(name: str, **options: Any) -> Sampler:
    spacing = SCHEDULERS[name][1]["timestep_spacing"]
    return Sampler(lambda level, noise: noise, spacing, FromDiffusers(name, **options), clip=False)


_SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": _from_diffusers("ddim", eta=0.0),
    "ddpm": _from_diffusers("ddpm", learned_variance=False),
    "dpmpp_2m": Sampler(unit_variance, "linspace", DPMSolverPP2M(), clip=True),
    "dpmpp_2m_sde": _from_diffusers("dpmpp_2m_sde"),
    "unipc": _from_diffusers("unipc"),
    "euler": Sampler(pure_noise, "trailing", Euler(), clip=False),
    "heun": Sampler(unit_variance, "leading", Heun(), clip=True),
    "euler_ancestral": Sampler(pure_noise, "trailing", EulerAncestral(), clip=False),
}
SAMPLERS: dict[str, Sampler] = {name: _SAMPLERS[name] for name in SAMPLER_NAMES}
MAX_STEPS = 1_000_000
MAX_OPTION = {"eta": 1.0, "churn": 1e6}


def choose_sampler(
    name: str, formulation: Formulation, steps: int, learned_variance: bool = False, **options: float
) -> Sampler:
    """The sampler of this name with these options, of which 0 is the default.

    With `learned_variance` ddpm uses the variance that the network predicts; other samplers have no use for it.

    Raises ValueError if the name is unknown, an option has no meaning for the sampler or is out of range, the sampler
    cannot draw from such a model, or the number of steps does not fit the model's timesteps.
    """
    sampler = SAMPLERS[require_known("sampler", name, SAMPLERS)]
    given: dict[str, float | bool] = {option: value for option, value in options.items() if value != 0}
    for option, value in given.items():
        require_known("option of samplers", option, MAX_OPTION)
        if option not in sampler.options:
            able = ", ".join(other for other, row in SAMPLERS.items() if option in row.options)
            raise ValueError(f"{option}={value:g} has no meaning for sampler {name}; leave it out, or choose: {able}")
        if not 0 < value <= MAX_OPTION[option]:
            raise ValueError(f"{option}={value:g} is out of range; give 0 (no added noise) to {MAX_OPTION[option]:g}")
    if isinstance(sampler.solver, FromDiffusers) and not isinstance(formulation, DDPM):
        others = ", ".join(name for name, row in SAMPLERS.items() if not isinstance(row.solver, FromDiffusers))
        raise ValueError(
            f"sampler={name} needs the timesteps of a ddpm model, but the formulation of this model is "
            f"{type(formulation).__name__}; choose: {others}"
        )
    if name == "dpmpp_2m_sde" and isinstance(formulation, DDPM) and formulation.zero_terminal_snr:
        raise ValueError(
            f"sampler={name} cannot start at the pure noise of zero_terminal_snr (diffusers' scheduler may compute the "
            "root of a negative number); choose dpmpp_2m or euler_ancestral"
        )
    _check_steps(name, formulation, steps)
    if learned_variance and getattr(sampler.solver, "learned_variance", None) is not None:
        given["learned_variance"] = True
    return replace(sampler, solver=replace(sampler.solver, **given)) if given else sampler  # type: ignore[type-var]


def unclipped(sampler: Sampler) -> Sampler:
    """The sampler for values without a range, which clips no denoised images."""
    solver = sampler.solver
    if isinstance(solver, FromDiffusers):
        solver = replace(solver, clip=False)
    return replace(sampler, clip=False, solver=solver)


def _check_steps(name: str, formulation: Formulation, steps: int) -> None:
    limit = formulation.timesteps if isinstance(formulation, DDPM) else MAX_STEPS
    if not 1 <= steps <= limit:
        whole = " timesteps of the model" if isinstance(formulation, DDPM) else ""
        reason = "draws no image" if steps < 1 else f"is more than {limit}{whole}"
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


def steps_made(steps: int, strength: float, resample: int = 1) -> int:
    """The number of steps, at least one, that are the share `strength` of a chain, each made `resample` times."""
    return max(1, round(strength * steps)) * resample


def stretches(first: int, last: int, resample: int) -> list[tuple[int, int]]:
    """The stretches from step `first` to `last` in the order in which `sample` makes them, as pairs of steps."""
    ends = [last] if resample == 1 else [*range(last, first, -STRETCH)][::-1]
    return [pair for pair in pairwise([first, *ends]) for _ in range(resample)]


def sample(
    denoise: Denoiser,
    formulation: Formulation,
    sampler: Sampler,
    generators: list[torch.Generator],
    shape: tuple[int, int, int],
    condition: Condition = UNCONDITIONED,
    *,
    steps: int = STEPS,
    device: torch.device | str = "cpu",
    origin: Images | None = None,
    strength: float = 1.0,
    noise: Images | None = None,
    resample: int = 1,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Draws one image (c, h, w) per generator: yields the starting noise, then the images after each of the `steps`.

    With `origin`, images in [-1, 1] on `device`, the chain starts at these with noise, and only the last
    `steps_made(steps, strength)` steps are made (Meng et al. 2022, SDEdit). `noise` replaces the standard normal noise
    that the generators give first.

    With `resample` above 1, each stretch of `STRETCH` steps is made so many times: at its end, noise is added up to
    the level of its start (Lugmayr et al. 2022, RePaint, section 4.2). Where a part of each image is known, this brings
    the rest into harmony with it.

    Intermediate images are scaled to about unit variance. The last ones, the samples, are in about [-1, 1] (not
    clipped). `sampler` comes from `choose_sampler`.
    """
    skipped = 0 if origin is None else steps - steps_made(steps, strength)
    times = formulation.times(steps, sampler.spacing).to(device)

    if sampler.clip and formulation.clips_x0:
        denoise = clipped(denoise)

    def predict(x: Images, time: Float[Tensor, ""]) -> Denoised:
        with torch.no_grad():  # scoped to the step, so that the caller's grad mode is unchanged across `yield`
            return denoise(x, time.expand(len(x)), condition)

    level = formulation.level(times[skipped : skipped + 1])
    drawn = standard_normal(generators, shape, device)
    noise = drawn if noise is None else noise
    x = sampler.start(level, noise) if origin is None else level.noisy(origin, noise)
    yield x / level.scale()
    at, solver = skipped, sampler.solver
    for first, last in stretches(skipped, steps, resample):
        if first < at:
            x = _raised(x, formulation.level(times[at, None]), formulation.level(times[first, None]), generators)
        if isinstance(solver, FromDiffusers):
            solver = replace(solver, skipped=first, steps=steps)
        part, at = times[first : last + 1], last
        for time, x in zip(part[1:], solver(predict, formulation, x, part, generators), strict=True):  # noqa: B020
            yield x / formulation.level(time[None]).scale()


def _raised(x: Images, low: NoiseLevel, high: NoiseLevel, generators: list[torch.Generator]) -> Images:
    """Noisy images at a higher noise level."""
    share = high.alpha / low.alpha
    added = (high.sigma.square() - (share * low.sigma).square()).clamp(min=0).sqrt()
    return share * x + added * standard_normal(generators, x.shape[1:], x.device)
