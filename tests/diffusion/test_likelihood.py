import math

import pytest
import torch

from diffusion import DDPM, EDM, Condition, generators
from diffusion.likelihood import log_likelihood
from tests.diffusion.closed_form import ALL, ideal

SOURCES = generators(0, range(400))


def bits(nats: torch.Tensor, values: int = 16) -> torch.Tensor:
    return -nats / (values * math.log(2))


@pytest.mark.parametrize("name", ALL)
def test_bits_of_gaussian_images_are_those_of_their_density(name: str) -> None:
    x = 0.2 * torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.Normal(0.0, 0.2).log_prob(x).flatten(1).sum(dim=1)
    found = log_likelihood(ideal(ALL[name], 0.2), ALL[name], x, Condition(), SOURCES[:50], steps=60)
    assert (bits(found) - bits(exact)).abs().max() < 0.01


def correlated(formulation, root: torch.Tensor, mean: torch.Tensor):
    """The denoiser of images N(mean, root root^T): the posterior mean."""
    covariance = root @ root.T

    def denoise(x, time, condition):
        level = formulation.level(time)
        alpha, sigma = level.alpha.flatten()[0], level.sigma.flatten()[0]
        gain = alpha * covariance @ (alpha**2 * covariance + sigma**2 * torch.eye(16)).inverse()
        return (mean + (x.flatten(1) - alpha * mean) @ gain.T).view(x.shape)

    return denoise


@pytest.mark.parametrize("formulation", [DDPM(schedule="cosine", prediction="v"), EDM()])
def test_the_mean_over_correlated_images_is_within_a_hundredth_of_a_bit(formulation) -> None:
    random = torch.Generator().manual_seed(0)
    root = 0.3 * torch.eye(16) + 0.03 * torch.randn(16, 16, generator=random)
    mean = torch.linspace(-0.5, 0.5, 16)
    x = mean + torch.randn(400, 16, generator=random) @ root.T
    exact = torch.distributions.MultivariateNormal(mean, root @ root.T).log_prob(x)
    denoise, images = correlated(formulation, root, mean), x.view(400, 1, 4, 4)
    found = log_likelihood(denoise, formulation, images, Condition(), SOURCES, steps=60, probes=4)
    assert (bits(found).mean() - bits(exact).mean()).abs() < 0.01


def test_more_probes_lower_the_error_of_the_trace() -> None:
    random = torch.Generator().manual_seed(1)
    root = 0.2 * torch.eye(16) + 0.1 * torch.randn(16, 16, generator=random)
    images, denoise = torch.zeros(40, 1, 4, 4), correlated(EDM(), root, torch.zeros(16))
    spread = [
        bits(log_likelihood(denoise, EDM(), images, Condition(), SOURCES[:40], steps=10, probes=probes)).std()
        for probes in (1, 8)
    ]
    assert spread[1] < 0.6 * spread[0]
