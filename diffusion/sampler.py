"""From noise to images, with the schedulers of diffusers.

A scheduler is handed the guess of the clean image (`prediction_type="sample"`), whatever the network predicts; for
these samplers that gives the same images as the network's own answer does.
"""

from collections import deque
from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.names import known
from diffusion.schedule import Schedule
from diffusion.seeds import normal

SAMPLERS: dict[str, Any] = {
    "ddim": DDIMScheduler,  # Song et al. 2021, eq. 12
    "ddpm": DDPMScheduler,  # Ho et al. 2020, algorithm 2
}


def check(sampler: str, steps: int, schedule: Schedule, eta: float = 0.0) -> None:
    """Raises ValueError if the sampler is unknown, takes no `eta`, or cannot make this number of steps."""
    known("sampler", sampler, SAMPLERS)
    if steps < 1:
        raise ValueError(f"steps={steps} makes no image; give 1 to {schedule.timesteps}")
    if steps > schedule.timesteps:
        raise ValueError(
            f"steps={steps} is more than the {schedule.timesteps} timesteps of the model; "
            f"give {schedule.timesteps} or fewer"
        )
    if eta != 0 and not _takes_eta(sampler):
        able = ", ".join(name for name in SAMPLERS if _takes_eta(name))
        raise ValueError(f"eta={eta:g} has no meaning for sampler {sampler}; leave it out, or choose: {able}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta:g} is outside 0 (no noise is added) … 1 (as much as DDPM adds)")


def first_timestep(steps: int, schedule: Schedule) -> int:
    """Where a chain of `steps` starts: the published spacing is every (T // steps)-th timestep, counted from 0."""
    return (steps - 1) * (schedule.timesteps // steps)


def late_start(steps: int, schedule: Schedule) -> str | None:
    """A warning if the chain starts far below T - 1, where images are not yet pure noise, with the nearest better
    number of steps; None if all is well. It happens with few steps, and above T / 2."""
    last = schedule.timesteps - 1
    good = [n for n in range(1, last + 2) if first_timestep(n, schedule) >= 0.9 * last]
    if steps in good:
        return None
    nearest = min(good, key=lambda n: abs(n - steps))
    return (
        f"{steps} steps start at timestep {first_timestep(steps, schedule)} of {last}, where images are not yet pure "
        f"noise, and may look wrong; {nearest} steps start higher"
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

    The last ones are the samples, in [-1, 1]. `label` is one class per image; `eta` is how much noise DDIM adds, from
    0 (none) to 1. Raises ValueError as `check` does.
    """
    check(sampler, steps, schedule, eta)
    scheduler = SAMPLERS[sampler](**_config(sampler, schedule))
    scheduler.set_timesteps(steps)
    options = {"eta": eta} if _takes_eta(sampler) else {}
    x = normal(generators, shape, device)
    yield x
    for t in scheduler.timesteps:
        with torch.no_grad():  # not around the yield: the caller's code is none of our business
            x0 = denoise(x, t.to(x.device).expand(len(x)), label)
            x = scheduler.step(x0, t, x, generator=generators, return_dict=False, **options)[0]
        yield x


def draw(
    denoise: Denoiser, schedule: Schedule, generators: list[torch.Generator], *args: Any, **options: Any
) -> Tensor:
    """The last images of `denoising`, which has the same arguments: samples (b, c, h, w) in [-1, 1]."""
    last = deque(denoising(denoise, schedule, generators, *args, **options), maxlen=1).pop()
    return last.clamp(-1, 1)


def _config(sampler: str, schedule: Schedule) -> dict[str, Any]:
    config = schedule.scheduler_config("sample")
    return {key: value for key, value in config.items() if key in signature(SAMPLERS[sampler].__init__).parameters}


def _takes_eta(sampler: str) -> bool:
    return "eta" in signature(SAMPLERS[sampler].step).parameters
