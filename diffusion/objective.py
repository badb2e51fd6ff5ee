"""The training loss: how far the network's answer is from its target, one number per image."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.prediction import noised, target
from diffusion.schedule import Schedule


def squared_error(
    net: Callable[..., Tensor],
    x0: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    noise: Float[Tensor, "b c h w"],
    label: Int[Tensor, "b"] | None = None,
    *,
    schedule: Schedule,
    prediction: str = "epsilon",
) -> Float[Tensor, "b"]:
    """Mean squared error of each image's answer `net(x, t, label)`: L_simple of Ho et al. 2020, eq. 14.

    `x0` in [-1, 1], `t` in 0 … T - 1, `noise` standard normal. Everything but the network is computed in `x0`'s type
    (float32 in training), whatever the network computes in.
    """
    alpha, sigma = schedule.at(t, x0.dtype)
    answer = net(noised(x0, noise, alpha, sigma), t, label).to(x0.dtype)
    return (answer - target(prediction, x0, noise, alpha, sigma)).square().mean(dim=(1, 2, 3))


def drop_labels(label: Int[Tensor, "b"], uniform: Float[Tensor, "b"], share: float, null: int) -> Int[Tensor, "b"]:
    """The labels, of which those with `uniform < share` become `null`: a net that learns to do without labels can be
    guided by them (Ho & Salimans 2022, algorithm 1)."""
    return torch.where(uniform < share, null, label)
