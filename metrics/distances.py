"""Distances between the distributions of two sets of features, through torchmetrics."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
"""images of each subset, as published; all images where there are fewer"""
PARTS = 10
"""parts over which the inception score is averaged, as published; it needs as many images"""
CHUNK = 1000
"""images that a metric receives at a time"""
LOCAL: dict[str, Any] = {"sync_on_compute": False}
"""for metrics of torchmetrics, which would otherwise add up the features of all processes: each set is whole here"""


class _Identity(nn.Module):
    """Stands for the network inside a metric of torchmetrics, which then receives features instead of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m _"]) -> float:
    """Fréchet distance between Gaussians with the means and covariances of the features (Heusel et al. 2017, eq. 6).

    With the features of the published Inception network this is FID. The expectation falls with the number of images,
    so compare distances only at equal n and m. Computed in float64. Raises ValueError for features that are not finite,
    of unequal width, or of too few images for a covariance of full rank.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    check_features(real=real, drawn=drawn)
    for name, features in (("real", real), ("drawn", drawn)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"{len(features)} {name} images are too few for the covariance of {features.shape[1]} features; "
                f"give at least {features.shape[1] + 1}"
            )
    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1]), **LOCAL).set_dtype(torch.float64)
    _update(metric, real.double(), drawn.double())
    return max(0.0, metric.compute().item())


def kernel_distance(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m _"], seed: int = 0) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (x y / d + 1)³ (Bińkowski et al. 2018, section 4).

    With the features of the published Inception network this is KID. Mean and standard deviation over 100 random
    subsets of 1000 images, or of as many as both sets have. Unbiased, so it can be below 0.
    Raises ValueError for features that are not finite, of unequal width, or of fewer than two images.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    check_features(real=real, drawn=drawn)
    size = min(len(real), len(drawn), KERNEL_SUBSET_SIZE)
    with _reproducible(seed):
        metric = KernelInceptionDistance(
            feature=_Identity(real.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size, **LOCAL
        )
        _update(metric, real.double(), drawn.double())
        mean, std = metric.compute()
    return mean.item(), std.item()


def inception_score(probabilities: Float[Tensor, "n classes"], seed: int = 0) -> tuple[float, float]:
    """exp of the mean divergence of the class probabilities from their mean (Salimans et al. 2016, section 4).

    Mean and standard deviation over ten random parts of the images. From 1 to the number of classes.
    Raises ValueError for rows that are no probabilities, and for fewer than ten images.
    """
    from torchmetrics.image.inception import InceptionScore

    check_features(probabilities=probabilities)
    sums = probabilities.double().sum(dim=1)
    if probabilities.min() < 0 or (sums - 1).abs().max() > 1e-3:
        raise ValueError("probabilities: every row should sum to 1 and have no number below 0")
    if len(probabilities) < PARTS:
        raise ValueError(f"{len(probabilities)} images are too few for an inception score; give at least {PARTS}")
    logits = probabilities.double().clamp(min=1e-300).log()  # the metric takes the softmax
    with _reproducible(seed):
        metric = InceptionScore(feature=_Identity(probabilities.shape[1]), splits=PARTS, **LOCAL)
        for part in logits.split(CHUNK):
            metric.update(part)
        mean, std = metric.compute()
    return mean.item(), std.item()


def check_features(**sets: Float[Tensor, "_ _"]) -> None:
    """Raises ValueError, with the name of the set, for features that no metric can use."""
    for name, features in sets.items():
        if len(features) < 2:
            raise ValueError(f"{name}: {len(features)} images are too few for a metric; give at least 2")
        if not features.isfinite().all():
            bad = int((~features.isfinite().all(dim=1)).sum())
            raise ValueError(f"{name}: the features of {bad} of {len(features)} images are not finite")
    widths = {name: features.shape[1] for name, features in sets.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"features of unequal width: {widths}; use one network for both sets")


def _update(metric: nn.Module, real: Tensor, drawn: Tensor) -> None:
    for features, is_real in ((real, True), (drawn, False)):
        for part in features.split(CHUNK):
            metric.update(part, real=is_real)  # type: ignore[operator]


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator, from which torchmetrics draws, inside the block; hides a warning about memory."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(seed)
        warnings.filterwarnings("ignore", "Metric .* will save all extracted features in buffer")
        yield
