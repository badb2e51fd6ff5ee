"""Distances between two sets of images, computed from their features. Any network may compute the features."""

from metrics.distances import PARTS, frechet_distance, inception_score, kernel_distance
from metrics.neighbours import density_coverage, memorised, precision_recall

__all__ = [
    "PARTS",
    "density_coverage",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "memorised",
    "precision_recall",
]
