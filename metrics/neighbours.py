"""Metrics of two sets of features that compare distances to nearest neighbours."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metrics.distances import check_features

ROWS = 1024
"""rows of a matrix of distances that are computed at a time"""


def precision_recall(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m _"], k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 to 3).

    Precision is the share of drawn images in the support of the real ones, recall the share of real images in the
    support of the drawn ones. The support of a set is the union of balls around its images, each as large as
    the distance to the k-th nearest other image of the set. Raises ValueError for features that no metric can use, and
    for a k that the sets do not allow.
    """
    _check(real, drawn, k)
    precision = _balls(drawn, real, _radius(real, k))[0] > 0
    recall = _balls(real, drawn, _radius(drawn, k))[0] > 0
    return precision.double().mean().item(), recall.double().mean().item()


def density_coverage(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m _"], k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, eq. 7 and 8).

    Density is the mean number of balls around real images in which a drawn image lies, divided by k. Its expectation is
    1 for equal distributions. Coverage is the share of real images whose ball holds a drawn image. Raises ValueError as
    `precision_recall` does.
    """
    _check(real, drawn, k)
    count, hit = _balls(drawn, real, _radius(real, k))
    return count.double().mean().item() / k, hit.double().mean().item()


def memorised(
    drawn: Float[Tensor, "m d"], training: Float[Tensor, "n _"], held_out: Float[Tensor, "n2 _"], seed: int = 0
) -> float:
    """Share of drawn images whose nearest training image is nearer than their nearest held-out image.

    About 0.5 if the model generalises, more if it repeats training images (Meehan et al. 2020 compare the same
    distances). The larger of the two sets is reduced at random to the size of the smaller one, because the nearest of
    more images is nearer. Raises ValueError for features that no metric can use.
    """
    check_features(drawn=drawn, training=training, held_out=held_out)
    count = min(len(training), len(held_out))
    generator = torch.Generator().manual_seed(seed)
    near, far = (
        nearest(drawn, part[torch.randperm(len(part), generator=generator)[:count].to(part.device)])[0][:, 0]
        for part in (training, held_out)
    )
    return (near < far).double().mean().item()


def nearest(
    images: Float[Tensor, "m d"], others: Float[Tensor, "n d"], k: int = 1
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Distances of each image to the k nearest ones of another set, and their numbers; the nearest first."""
    found = [distance.topk(k, dim=1, largest=False) for distance in _distances(images, others)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _check(real: Tensor, drawn: Tensor, k: int) -> None:
    check_features(real=real, drawn=drawn)
    most = min(len(real), len(drawn)) - 1
    if not 1 <= k <= most:
        raise ValueError(f"k={k} nearest neighbours: give 1 to {most}, the other images of the smaller set")


def _radius(features: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n"]:
    """Distance of each image to the k-th nearest other image of its set."""
    return torch.cat([distance.kthvalue(k + 1, dim=1).values for distance in _distances(features, features)])


def _balls(
    images: Float[Tensor, "m d"], centres: Float[Tensor, "n d"], radius: Float[Tensor, "n"]
) -> tuple[Int[Tensor, "m"], Bool[Tensor, "n"]]:
    """In how many of the balls each image lies, and which balls hold an image."""
    counts, hit = [], torch.zeros_like(radius, dtype=torch.bool)
    for distance in _distances(images, centres):
        inside = distance <= radius
        counts.append(inside.sum(dim=1))
        hit |= inside.any(dim=0)
    return torch.cat(counts), hit


def _distances(images: Float[Tensor, "m d"], others: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "rows n"]]:
    """All distances in float64, `ROWS` images at a time."""
    others = others.double()
    for part in images.double().split(ROWS):
        yield torch.cdist(part, others)
