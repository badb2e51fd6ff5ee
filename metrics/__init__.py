"""Distances between two sets of images, from their features; scores of ensembles of fields, and spectra of fields.

Any network may compute the features.
"""

from metrics.distances import PARTS, frechet_distance, inception_score, kernel_distance
from metrics.ensembles import crps, ensemble_rmse, rank_histogram, spread_skill
from metrics.neighbours import density_coverage, memorised, precision_recall
from metrics.spectrum import power_spectrum, spectrum_error

__all__ = [
    "PARTS",
    "crps",
    "density_coverage",
    "ensemble_rmse",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "memorised",
    "power_spectrum",
    "precision_recall",
    "rank_histogram",
    "spectrum_error",
    "spread_skill",
]
