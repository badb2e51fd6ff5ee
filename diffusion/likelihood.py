"""The likelihood of images under the probability-flow equation (Song et al. 2021, appendix D.2)."""

import math
from collections import deque

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.noise import Formulation, Images
from diffusion.seeds import standard_normal
from diffusion.solvers import DPMSolverPP2M

LOWEST, HIGHEST = 0.01, 100.0
"""noise levels (sigma / alpha) between which the equation is solved; or to the highest of the formulation"""


def log_likelihood(
    denoise: Denoiser,
    formulation: Formulation,
    images: Images,
    condition: Condition,
    generators: list[torch.Generator],
    *,
    steps: int = 50,
    probes: int = 1,
) -> Float[Tensor, "b"]:
    """The logarithm of the probability density of each image, in nats. There is one generator per image.

    In `y = x / alpha` and `r = sigma / alpha` the equation is `dy / dr = (y - x0) / r`, so along its solution the
    density falls by `(d - div x0) / r dr`, with d values per image. The trace `div x0` is estimated by `probes` random
    vectors of signs (Hutchinson 1990; Skilling 1989), the same at all levels. From `LOWEST` to `HIGHEST`, the solver
    makes `steps` steps of equal ratio; there y is taken for normal with the standard deviation r. The images are taken
    for those at the lowest level. Exact for Gaussian images, as the number of steps grows.
    """
    device, per_image = images.device, images[0].numel()
    highest = formulation.level(formulation.times(1, "trailing")[:1]).ratio.item()
    ratios = torch.logspace(math.log10(LOWEST), math.log10(min(HIGHEST, highest)), steps + 1, device=device)
    signs = [standard_normal(generators, images.shape[1:], device).sign().to(images) for _ in range(probes)]
    falls = list[Tensor]()

    def predict(x: Images, time: Float[Tensor, ""]) -> Images:
        alpha = formulation.level(time[None]).alpha
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            x0 = denoise(noisy, time.expand(len(x)), condition)
            traces = [
                (torch.autograd.grad((x0 * sign).sum(), noisy, retain_graph=True)[0] * sign).flatten(1).sum(dim=1)
                for sign in signs
            ]
        falls.append(per_image - alpha.flatten() * torch.stack(traces).mean(dim=0))
        return x0.detach()

    times = formulation.time_at(ratios)
    first = formulation.level(times[:1])
    steps_of_solver = DPMSolverPP2M()(predict, formulation, first.alpha * images, times, generators)
    x = deque(steps_of_solver, maxlen=1).pop()
    last = formulation.level(times[-1:])
    predict(x, times[-1])
    fall = torch.trapezoid(torch.stack(falls), formulation.level(times).ratio.flatten().log(), dim=0)
    normal = torch.distributions.Normal(0.0, last.ratio).log_prob(x / last.alpha).flatten(1).sum(dim=1)
    return normal + fall
