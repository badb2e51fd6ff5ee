"""Guidance: a denoiser moved away from a worse one, or along the gradient of a classifier."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.denoiser import Condition, Denoised, Denoiser
from diffusion.noise import Formulation, Images, Times
from diffusion.options import ALL_LEVELS

LogProbability = Callable[[Images, Times, Int[Tensor, "b"]], Float[Tensor, "b"]]
"""the logarithm of the probability of each label, given the noisy image and its time"""


def guided(
    given: Denoiser,
    free: Denoiser,
    scale: float,
    formulation: Formulation,
    interval: tuple[float, float] = ALL_LEVELS,
    limit: float = math.inf,
    rescale: float = 0.0,
) -> Denoiser:
    """`free + scale (given - free)` (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    `free` is the same network without the label, or a worse network (Karras et al. 2024, autoguidance). Scale 0 is
    `free`, 1 is `given`, above 1 extrapolates. Guidance is applied where `sigma / alpha` lies in `interval`; elsewhere
    the result is `given` (Kynkäänniemi et al. 2024). Extrapolated images leave the range of images; they are clipped to
    [-`limit`, `limit`] (see `clipped` for the reason). A learned variance is that of `given`.

    `rescale`, from 0 to 1, is the share of the result that is scaled to the standard deviation which each image has in
    `given` (Lin et al. 2023, eq. 15 and 16, on the denoised image).
    """

    def denoise(x: Images, time: Times, condition: Condition) -> Denoised:
        x0 = given(x, time, condition)
        inside = _inside(formulation, time, interval)
        return x0 if inside is False else _between(x, x0, free(x, time, condition), scale, limit, rescale, inside)

    return denoise if scale != 1 else given


def classifier_free(
    denoise: Denoiser,
    scale: float,
    null: int | None,
    formulation: Formulation,
    interval: tuple[float, float] = ALL_LEVELS,
    limit: float = math.inf,
    rescale: float = 0.0,
) -> Denoiser:
    """`guided` by the same network without its label, both evaluated in one batch of double size.

    `null` is the label that means “no label”, None for networks without labels. Numbers (`Condition.numbers`) are 0
    beside it. Scale 0 ignores the labels and scale 1 is plain `denoise`; neither needs the second evaluation; at scale
    0 the learned variance is the one without labels, too. The denoiser raises ValueError if it is called without labels
    and numbers.
    """

    def both(x: Images, time: Times, condition: Condition) -> Denoised:
        if condition.label is None and (null is not None or condition.numbers is None):
            raise ValueError(f"guidance={scale:g} needs a label for each image; give labels, or guidance 1")
        inside = _inside(formulation, time, interval)
        if inside is False:
            return denoise(x, time, condition)
        unlabelled = _unlabelled(condition, null)
        if scale == 0 and inside is True and not rescale:
            return denoise(x, time, unlabelled)
        x0, free = denoise(x.repeat(2, 1, 1, 1), time.repeat(2), _concatenated(condition, unlabelled)).chunk(2)
        return _between(x, x0, free, scale, limit, rescale, inside)

    return both if scale != 1 else denoise


def classifier_guided(
    denoise: Denoiser,
    log_probability: LogProbability,
    scale: float,
    formulation: Formulation,
    interval: tuple[float, float] = ALL_LEVELS,
    limit: float = math.inf,
    rescale: float = 0.0,
) -> Denoiser:
    """`x0 + scale sigma² / alpha · grad log p(label | x)`, with the gradient with respect to the noisy image `x`.

    Dhariwal & Nichol 2021, eq. 14, as a change of the denoised image; Song et al. 2021, eq. 14. With `denoise` without
    the label, scale 1 is the denoiser of the label, if the classifier is exact; above 1 the label counts more. With
    `denoise` of the label, or guided by another function here, both add up. Scale 0 is `denoise`. Pure noise
    (alpha 0) does not depend on the label, so nothing is added there. Interval, limit and rescale as in `guided`. The
    denoiser raises ValueError if it is called without labels.
    """

    def denoise_guided(x: Images, time: Times, condition: Condition) -> Denoised:
        if condition.label is None:
            raise ValueError("guidance by a classifier needs a label for each image; give labels")
        given = denoise(x, time, condition)
        if (inside := _inside(formulation, time, interval)) is False:
            return given
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            gradient = torch.autograd.grad(log_probability(noisy, time, condition.label).sum(), noisy)[0]
        level = formulation.level(time)
        factor = torch.where(level.alpha > 0, level.sigma.square() / level.alpha, 0)
        moved = given[:, : x.shape[1]] + scale * factor * gradient
        return _finished(given, moved, limit, rescale, inside)

    return denoise_guided if scale != 0 else denoise


def _unlabelled(condition: Condition, null: int | None) -> Condition:
    """The condition without label and numbers."""
    label, numbers = condition.label, condition.numbers
    return replace(
        condition,
        label=None if label is None or null is None else torch.full_like(label, null),
        numbers=None if numbers is None else torch.zeros_like(numbers),
    )


def _inside(formulation: Formulation, time: Times, interval: tuple[float, float]) -> bool | torch.Tensor:
    """True or False where all images agree, else a mask (b, 1, 1, 1)."""
    if interval == ALL_LEVELS:
        return True
    ratio = formulation.level(time).ratio
    mask = (interval[0] <= ratio) & (ratio <= interval[1])
    return bool(mask.all()) if bool(mask.all()) == bool(mask.any()) else mask


def _between(
    x: Images,
    given: Denoised,
    free: Float[Tensor, "b _ h w"],
    scale: float,
    limit: float,
    rescale: float,
    inside: bool | torch.Tensor,
) -> Denoised:
    """`free` may lack the learned variance that `given` has."""
    channels = x.shape[1]
    x0, free = given[:, :channels], free[:, :channels]
    return _finished(given, free + scale * (x0 - free), math.inf if 0 <= scale <= 1 else limit, rescale, inside)


def _finished(given: Denoised, moved: Images, limit: float, rescale: float, inside: bool | torch.Tensor) -> Denoised:
    """The guided images, rescaled and clipped; `given` where guidance does not act. The variance is that of `given`."""
    x0, variance = given[:, : moved.shape[1]], given[:, moved.shape[1] :]
    if rescale:
        spread = x0.flatten(1).std(dim=1) / moved.flatten(1).std(dim=1).clamp(min=torch.finfo(x0.dtype).tiny)
        moved = torch.lerp(moved, spread[:, None, None, None] * moved, rescale)
    if limit < math.inf:
        moved = moved.clamp(-limit, limit)
    return torch.cat([moved if isinstance(inside, bool) else torch.where(inside, moved, x0), variance], dim=1)


def _concatenated(first: Condition, second: Condition) -> Condition:
    pairs = {name: (value, getattr(second, name)) for name, value in vars(first).items()}
    return Condition(**{name: None if pair[0] is None else torch.cat(pair) for name, pair in pairs.items()})
