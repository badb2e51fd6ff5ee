"""Features along the depth of a model: their rank, distances, variation, and what can be decoded from them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residual.probes.visit import line, record


class Spread(NamedTuple):
    """How much the features of several images differ.

    `effective_rank` is the exponential of the entropy of the normalised singular values of the centred features (Roy
    and Vetterli 2007), `stable_rank` their squared Frobenius norm over the squared spectral norm. `distance` is the
    mean distance of two images over the root mean square norm. All are 0 if the features are equal.
    """

    effective_rank: float
    stable_rank: float
    distance: float


def spreads(model: nn.Module, x: Float[Tensor, "b *_"], names: Sequence[str] | None = None) -> dict[str, Spread]:
    """Rank and distance of the outputs of each block. They fall with depth where representations collapse."""
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} image: the spread of features needs at least 2")
    return {visit.name: _spread(visit.y.flatten(1)) for visit in record(model, x, names).visits}


def _spread(features: Tensor) -> Spread:
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    if not values[0] > 0:
        return Spread(0.0, 0.0, 0.0)
    entropy = torch.special.entr(values / values.sum()).sum()
    distance = torch.pdist(features).mean() / features.square().sum(dim=1).mean().sqrt()
    return Spread(float(entropy.exp()), float((values / values[0]).square().sum()), float(distance))


def decodability(
    model: nn.Module,
    x: Float[Tensor, "b *_"],
    target: Tensor | None = None,
    names: Sequence[str] | None = None,
    *,
    train_share: float = 0.5,
    ridge: float = 1e-3,
) -> dict[str, float]:
    """R² of a linear map from the outputs of each block to the target, by default the input (Alain and Bengio 2016).

    Ridge regression is fitted to the first images and evaluated on the others. `ridge` is in units of the mean
    eigenvalue of the centred features' Gram matrix. 1 is perfect; 0 is as good as the mean.
    """
    target, train = x if target is None else target, round(train_share * len(x))
    if not 2 <= train <= len(x) - 1 or len(target) != len(x) or not ridge > 0:
        raise ValueError(
            f"train_share={train_share} of {len(x)} images must leave 2 to fit and 1 to test, with as many targets "
            f"({len(target)}) and a positive ridge ({ridge})"
        )
    y = target.flatten(1) - target[:train].flatten(1).mean(dim=0)
    scores = {}
    for visit in record(model, x, names).visits:
        features = visit.y.flatten(1)
        features = features - features[:train].mean(dim=0)
        gram = features @ features[:train].T
        weight = (ridge * gram.diagonal().mean()).clamp_min(torch.finfo(x.dtype).tiny)
        dual = torch.linalg.solve(gram[:train] + weight * torch.eye(train, dtype=x.dtype, device=x.device), y[:train])
        error = y[train:] - gram[train:] @ dual
        scores[visit.name] = float(1 - error.square().sum() / y[train:].square().sum())
    return scores


class Variation(NamedTuple):
    """Total variation of a block's shortcut, branch and output, each divided by that of its input."""

    shortcut: float
    branch: float
    output: float


def total_variations(
    model: nn.Module,
    start: Float[Tensor, "*size"],
    end: Float[Tensor, "*size"],
    names: Sequence[str] | None = None,
    *,
    points: int = 64,
) -> dict[str, Variation]:
    """Lengths of the curves that each block makes of a line between two images, sampled at `points`.

    If the merge is a plain sum of unit scales, |V_s - V_f| ≤ V_y ≤ V_s + V_f by the triangle inequality.
    """
    found = {}
    for visit in record(model, line(start, end, points), names).visits:
        x, *others = (part.flatten(1).diff(dim=0).norm(dim=1).sum() for part in (visit.x, visit.s, visit.f, visit.y))
        found[visit.name] = Variation(*(float(part / x) for part in others))
    return found
