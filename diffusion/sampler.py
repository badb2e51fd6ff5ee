"""From noise to images, with the schedulers of diffusers.

A scheduler is handed the guess of the clean image (`prediction_type="sample"`), whatever the network predicts, or the
noise that is left in x where it takes no such guess; that gives the same images as the network's own answer does.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

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
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.prediction import clean_and_noise
from diffusion.schedule import Schedule
from diffusion.seeds import normal
from residual.names import require_known


@dataclass(frozen=True)
class Sampler:
    """A scheduler of diffusers, and its settings beside those of the noise schedule."""

    scheduler: Any
    settings: Mapping[str, Any]
    prediction: str = "sample"
    """what it is handed"""

    def make(self, schedule: Schedule, steps: int) -> Any:
        """The scheduler, before the first of `steps`."""
        names = signature(self.scheduler.__init__).parameters
        config = {key: v for key, v in schedule.scheduler_config(self.prediction).items() if key in names}
        scheduler = self.scheduler(**config, **self.settings)
        scheduler.set_timesteps(steps)
        return scheduler

    @property
    def options(self) -> frozenset[str]:
        """The names of what its steps may be given."""
        return frozenset(signature(self.scheduler.step).parameters)


# Where the steps lie was chosen by measurement (docs/benchmarks.md). With few steps the leading spacing, the published
# one of DDPM and DDIM, starts below T - 1, and the solvers draw worse; but Heun's would be thrown off by the first step
# of the cosine schedule. Networks take whole timesteps, which Euler's and Heun's linspace would not give.
_LEADING, _TRAILING = {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}
# Thresholding to the default `sample_max_value`, 1, is what others call clip_sample; Euler's two have no such thing.
_LINSPACE = {"timestep_spacing": "linspace", "thresholding": True}

SAMPLERS: dict[str, Sampler] = {
    # Song et al. 2021, eq. 12
    "ddim": Sampler(DDIMScheduler, _LEADING),
    # Ho et al. 2020, algorithm 2
    "ddpm": Sampler(DDPMScheduler, _LEADING),
    # Lu et al. 2022, "DPM-Solver++", algorithm 2, and its form with noise (appendix B.3)
    "dpmpp_2m": Sampler(DPMSolverMultistepScheduler, _LINSPACE),
    "dpmpp_2m_sde": Sampler(DPMSolverMultistepScheduler, _LINSPACE | {"algorithm_type": "sde-dpmsolver++"}),
    # Zhao et al. 2023, algorithms 5 and 6
    "unipc": Sampler(UniPCMultistepScheduler, _LINSPACE),
    # Karras et al. 2022: algorithm 1 with one and with two calls of the network per step, without churn
    "euler": Sampler(EulerDiscreteScheduler, _TRAILING),
    "heun": Sampler(HeunDiscreteScheduler, _LEADING),
    # k-diffusion's sample_euler_ancestral
    "euler_ancestral": Sampler(EulerAncestralDiscreteScheduler, _TRAILING, prediction="epsilon"),
}


def check(sampler: str, steps: int, schedule: Schedule, eta: float = 0.0) -> None:
    """Raises ValueError if the sampler is unknown, takes no `eta`, or cannot make this number of steps."""
    require_known("sampler", sampler, SAMPLERS)
    if steps < 1:
        raise ValueError(f"steps={steps} makes no image; give 1 to {schedule.timesteps}")
    if steps > schedule.timesteps:
        raise ValueError(
            f"steps={steps} is more than the {schedule.timesteps} timesteps of the model; "
            f"give {schedule.timesteps} or fewer"
        )
    if not _spaced(sampler, steps, schedule):
        fewer = next(n for n in range(steps - 1, 0, -1) if _spaced(sampler, n, schedule))
        raise ValueError(
            f"steps={steps} cannot be spaced over the {schedule.timesteps} timesteps of the model by sampler {sampler} "
            f"(a fault of diffusers' rounding); give {fewer}"
        )
    if eta != 0 and "eta" not in SAMPLERS[sampler].options:
        able = ", ".join(name for name, row in SAMPLERS.items() if "eta" in row.options)
        raise ValueError(f"eta={eta:g} has no meaning for sampler {sampler}; leave it out, or choose: {able}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta:g} is outside 0 (no noise is added) … 1 (as much as DDPM adds)")


def first_timestep(sampler: str, steps: int, schedule: Schedule) -> int:
    """Where a chain of `steps` starts: the leading spacing is every (T // steps)-th timestep, counted from 0."""
    if SAMPLERS[sampler].settings["timestep_spacing"] != "leading":
        return schedule.timesteps - 1
    return (steps - 1) * (schedule.timesteps // steps)


def late_start(sampler: str, steps: int, schedule: Schedule) -> str | None:
    """A warning if the chain starts far below T - 1, where images are not yet pure noise, with the nearest better
    number of steps; None if all is well. The leading spacing does it with few steps, and above T / 2."""
    last = schedule.timesteps - 1
    good = [n for n in range(1, last + 2) if first_timestep(sampler, n, schedule) >= 0.9 * last]
    if steps in good:
        return None
    nearest = min(good, key=lambda n: abs(n - steps))
    return (
        f"{steps} steps of {sampler} start at timestep {first_timestep(sampler, steps, schedule)} of {last}, where "
        f"images are not yet pure noise, and may look wrong; {nearest} steps start higher"
    )


def denoising(
    denoise: Denoiser,
    schedule: Schedule,
    generators: list[torch.Generator],
    shape: tuple[int, int, int],
    label: Int[Tensor, "b"] | None = None,
    *,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    device: torch.device | str = "cpu",
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Draws one image (c, h, w) per generator: yields the starting noise, then the images after each of the `steps`.

    They are scaled as the network sees them, the last ones, the samples, to [-1, 1], which they may leave by a little.
    `label` is one class per image; `eta` is how much noise DDIM adds, from 0 (none) to 1. Heun calls the network twice
    in every step but the last. Raises ValueError as `check` does.
    """
    check(sampler, steps, schedule, eta)
    row = SAMPLERS[sampler]
    scheduler = row.make(schedule, steps)
    given = {"generator": generators, "eta": eta}
    options = {name: value for name, value in given.items() if name in row.options}
    x = normal(generators, shape, device) * scheduler.init_noise_sigma
    for moment in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, moment)
        if getattr(scheduler, "state_in_first_order", True):  # false in the middle of a step of Heun's
            yield seen
        with torch.no_grad():  # not around the yield: the caller's code is none of our business
            t = moment.to(x.device, torch.long).expand(len(x))
            answer = denoise(seen, t, label)
            if row.prediction == "epsilon":
                _, answer = clean_and_noise("sample", answer, seen, *schedule.at(t, x.dtype))
            x = scheduler.step(answer, moment, x, return_dict=False, **options)[0]
    yield x


def draw(
    denoise: Denoiser, schedule: Schedule, generators: list[torch.Generator], *args: Any, **options: Any
) -> Tensor:
    """The last images of `denoising`, which has the same arguments: samples (b, c, h, w) in [-1, 1]."""
    last = deque(denoising(denoise, schedule, generators, *args, **options), maxlen=1).pop()
    return last.clamp(-1, 1)


def _spaced(sampler: str, steps: int, schedule: Schedule) -> bool:
    """Whether the scheduler visits as many different timesteps as it makes steps, and none below 0."""
    timesteps = SAMPLERS[sampler].make(schedule, steps).timesteps
    return len(timesteps.unique()) == steps and timesteps.min().item() >= 0
