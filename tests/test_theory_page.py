"""The pictures of docs/theory.md come from an exact denoiser."""

import torch
from torch.testing import assert_close

from benchmarks.theory import FORMULATIONS, finite_set, paths
from diffusion import Condition


def test_the_denoiser_of_two_images_is_their_posterior_mean() -> None:
    """For images -1 and 1 in one pixel the mean is tanh(alpha x / sigma²)."""
    images, x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), torch.linspace(-2, 2, 5).view(5, 1, 1, 1)
    for formulation in FORMULATIONS.values():
        time = formulation.time_at(torch.full((5,), 0.8))
        level = formulation.level(time)
        expected = (level.alpha * x / level.sigma**2).tanh()
        assert_close(finite_set(formulation, images)(x, time, Condition()), expected, rtol=1e-5, atol=1e-5)


def test_chains_end_at_the_images() -> None:
    points = torch.tensor([-0.9, 0.2, 0.8])
    ends = torch.from_numpy(paths(FORMULATIONS["DDPM, cosine"], points.view(3, 1, 1, 1), 100, "euler")[-1])
    assert (ends[:, None] - points).abs().min(dim=1).values.max() < 0.01
