"""The training loss, written once for every formulation, and its weightings."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusion.denoiser import UNCONDITIONED, Condition, run_network
from diffusion.noise import Formulation, Images, NoiseLevel, PerImage, Times
from diffusion.variance import VariationalBound

Weighting = Callable[[NoiseLevel], PerImage]
"""weight of each image's squared error of x0; so one weighting gives one loss, whatever the network predicts"""

WEIGHTINGS: dict[str, Weighting | None] = {
    # the squared error of the network's output as it is: Ho et al. 2020, eq. 14; Karras et al. 2022, eq. 8
    "output": None,
    # the squared error of the noise, of the clean image, and of v
    "noise": lambda level: level.ratio**-2,
    "x0": lambda level: torch.ones_like(level.sigma),
    "v": lambda level: (level.alpha**2 + level.sigma**2) / level.sigma**2,
    # alpha² / sigma², at most gamma = 5: Hang et al. 2023, section 3.4
    "min_snr": lambda level: (level.ratio**-2).clamp(max=5),
    # sigmoid(2 - log SNR) on the error of the noise: Kingma & Gao 2023
    "sigmoid": lambda level: 1 / (level.ratio**2 + math.exp(-2)),
    # the loss of EDM with sigma_data = 0.5, for any formulation: Karras et al. 2022, table 1
    "edm": lambda level: level.ratio**-2 + 0.5**-2,
}
BOUND_WEIGHT = 0.001
"""lambda of the hybrid loss: Nichol & Dhariwal 2021, eq. 16"""


def denoising_loss(
    net: Callable[..., Tensor | tuple[Tensor, Tensor]],
    formulation: Formulation,
    x0: Images,
    noise: Images,
    time: Times,
    condition: Condition = UNCONDITIONED,
    weighting: Weighting | None = None,
    bound: VariationalBound | None = None,
    known: Bool[Tensor, "b c h w"] | None = None,
) -> Float[Tensor, "b"]:
    """Weighted mean squared error of each image, in the dtype of `x0` (float32 in training).

    `x0` in [-1, 1], `noise` standard normal, `time` in the unit of the formulation. A weighting is given on the error
    of x0, which is `(sigma / determinant)²` times that of the output; None counts the error of the output as it is.

    A network may return its output and the logarithm u of the error's expected size. The loss is then
    `error exp(-u) + u` (Karras et al. 2024).

    With `bound` the second half of the network's output channels is a learned variance, and `BOUND_WEIGHT` times the
    bound is added: the hybrid loss. Its gradient reaches the variance alone, not the prediction (Nichol & Dhariwal
    2021, section 3.1).

    Values that are not `known` have no error; all known ones of a batch have the same weight.

    Raises ValueError for another number of output channels.
    """
    level = formulation.level(time)
    x = level.noisy(x0, noise)
    output = run_network(net, level.c_in * x, level.c_noise, condition)
    output, logvar = output if isinstance(output, tuple) else (output, None)
    channels = x0.shape[1]
    if output.shape[1] != channels * (1 if bound is None else 2):
        rule = "as many" if bound is None else "twice as many, for the learned variance"
        raise ValueError(f"the network has {output.shape[1]} output channels for images of {channels}; give {rule}")
    output, fraction = output.to(x0.dtype).split((channels, output.shape[1] - channels), dim=1)
    error = (output - level.target(x0, noise)).square()
    error = (error if known is None else torch.where(known, error, 0)).mean(dim=(1, 2, 3))
    if weighting is not None:
        error = (weighting(level) * (level.sigma / level.determinant).square()).flatten() * error
    loss = error if logvar is None else error * (-logvar).exp() + logvar
    if bound is None:
        return loss
    return loss + BOUND_WEIGHT * bound(x0, level.split(x, output.detach())[0], fraction, time)


def drop_labels(label: Int[Tensor, "b"], uniform: Float[Tensor, "b"], share: float, null: int) -> Int[Tensor, "b"]:
    """The labels, with those where `uniform < share` replaced by `null` (Ho & Salimans 2022, algorithm 1).

    A network trained on them can be used with and without labels, as classifier-free guidance requires.
    """
    return torch.where(uniform < share, null, label)
