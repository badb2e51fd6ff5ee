"""Posterior sampling, in closed form for Gaussian images with correlated pixels, and the operators."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion import EDM, Condition, Flow, choose_sampler, classifier_free, generators, sample
from diffusion.denoiser import UNCONDITIONED
from diffusion.posterior import Blur, Downsample, Observation, posterior
from tests.diffusion.closed_form import ALL, ideal_for, interior_times, posterior_of

SIDE = 4
SHAPE = (1, SIDE, SIDE)
OPERATORS = {
    "points": (),
    "blur": (Blur(0.6),),
    "downsample": (Downsample(2),),
    "blur and downsample": (Blur(0.5, "periodic"), Downsample(2)),
}


def covariance(scale=0.25):
    """Of pixels whose correlation falls with their distance."""
    place = torch.cartesian_prod(*2 * [torch.arange(SIDE, dtype=torch.float64)])
    return scale**2 * (-torch.cdist(place, place).square() / 6).exp() + 1e-4 * torch.eye(SIDE**2)


def matrix_of(operators):
    pixels = torch.eye(SIDE**2, dtype=torch.float64).view(-1, *SHAPE)
    return Observation(pixels, 1.0, operators).observe(pixels).flatten(1).T


def observed(operators, count, noise, share=1.0, seed=0):
    """Images, their observation, and the exact mean (b, n) and covariance of the images given it."""
    random = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, SIDE**2, generator=random, dtype=torch.float64)
    images = normal @ torch.linalg.cholesky(covariance()).T
    matrix = matrix_of(operators)
    known = torch.rand(len(matrix), generator=random) < share
    values = images @ matrix.T + noise * torch.randn(count, len(matrix), generator=random, dtype=torch.float64)
    mean, spread = posterior_of(covariance(), matrix[known], values[:, known], noise)
    side = math.isqrt(len(matrix))
    values = values.where(known, math.nan).view(count, 1, side, side)
    return images.view(-1, *SHAPE), Observation(values, noise, operators), mean, spread


@pytest.mark.parametrize("operators", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("formulation", ALL.values(), ids=ALL)
def test_denoised_images_are_the_mean_given_the_observation(formulation, operators) -> None:
    images, observation, *_ = observed(operators, 3, noise=0.1, share=0.7)
    for time in interior_times(formulation, 2):
        level = formulation.level(time[None])
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x = level.noisy(images, noise)
        seen = torch.cat([matrix_of(operators), level.alpha.item() / level.sigma.item() * torch.eye(SIDE**2)])
        values = torch.cat([observation.values.flatten(1), x.flatten(1) / level.sigma.item()], dim=1)
        unit = torch.cat([torch.full((len(values[0]) - SIDE**2,), 0.1), torch.ones(SIDE**2)]).double()
        known = ~values[0].isnan()
        mean, _ = posterior_of(covariance(), (seen / unit[:, None])[known], (values / unit)[:, known], 1.0)
        denoise = posterior(ideal_for(formulation, covariance()), observation, formulation, iterations=SIDE**2)
        assert_close(denoise(x, time.expand(3), UNCONDITIONED).flatten(1), mean, rtol=1e-6, atol=1e-8)


def drawn(formulation, observation, images_each, *, steps=40):
    """Samples of each observation (b, n, pixels)."""
    count = len(observation.values)
    repeated = Observation(
        observation.values.float().repeat_interleave(images_each, dim=0), observation.noise, observation.operators
    )
    denoise = posterior(ideal_for(formulation, covariance()), repeated, formulation)
    chosen = choose_sampler("dpmpp_2m", formulation, steps)
    *_, x = sample(denoise, formulation, chosen, generators(0, range(count * images_each)), SHAPE, steps=steps)
    return x.double().view(count, images_each, -1)


@pytest.mark.parametrize(
    ("formulation", "operators"),
    [(EDM(sigma_data=0.25), "points"), (Flow(shift=0.1), "downsample"), (EDM(sigma_data=0.25), "blur and downsample")],
)
def test_samples_have_mean_and_spread_of_the_posterior(formulation, operators) -> None:
    _, observation, mean, spread = observed(OPERATORS[operators], 1, noise=0.1, share=0.7)
    (x,) = drawn(formulation, observation, 400)
    error = (x.mean(dim=0) - mean[0]) / (spread.diagonal() / len(x)).sqrt()
    assert error.abs().max() < 4.5
    exact = torch.linalg.cholesky(spread)
    white = torch.linalg.solve_triangular(exact, (x - mean).T, upper=False)
    assert_close(
        white @ white.T / len(x), torch.eye(SIDE**2, dtype=torch.float64), rtol=0, atol=4.5 * (2 / len(x)) ** 0.5
    )


def test_the_error_falls_with_the_number_of_observations() -> None:
    errors, expected = [], []
    for share in (0.1, 0.25, 0.5, 1.0):
        images, observation, _, spread = observed((), 48, noise=0.05, share=share, seed=3)
        mean = drawn(EDM(sigma_data=0.25), observation, 8, steps=20).mean(dim=1)
        errors.append((mean - images.flatten(1)).square().mean())
        expected.append(spread.diagonal().mean() * (1 + 1 / 8))
    assert sorted(errors, reverse=True) == errors
    assert_close(torch.stack(errors), torch.stack(expected), rtol=0.2, atol=0)


@pytest.mark.parametrize("operators", OPERATORS.values(), ids=OPERATORS)
def test_an_observation_almost_without_noise_is_met(operators) -> None:
    _, observation, *_ = observed(operators, 4, noise=1e-3)
    x = drawn(EDM(sigma_data=0.25), observation, 1, steps=20)
    assert observation.error(x.view(-1, *SHAPE)).square().mean().sqrt() < 2


def test_more_iterations_are_nearer_to_the_exact_mean() -> None:
    _, observation, mean, _ = observed((), 4, noise=0.02)
    formulation, x = EDM(), torch.zeros(4, *SHAPE, dtype=torch.float64)
    errors = []
    for iterations in (0, 1, 3, 8, 30):
        denoise = posterior(ideal_for(formulation, covariance()), observation, formulation, iterations=iterations)
        errors.append((denoise(x, torch.full((4,), 1e4), UNCONDITIONED).flatten(1) - mean).abs().max().item())
    assert sorted(errors, reverse=True) == errors
    assert errors[0] > 0.1
    assert errors[-1] < 1e-5


def test_it_composes_with_other_denoisers() -> None:
    """Classifier-free guidance inside, a learned variance behind the image, a limit, and pure noise."""
    _, observation, *_ = observed((), 3, noise=0.1, share=0.5)
    x, time, label = observation.values.nan_to_num(nan=0.0), torch.full((3,), 0.5), Condition(torch.tensor([0, 1, 2]))
    plain = ideal_for(EDM(), covariance())

    def labelled(x, time, condition):
        x0 = plain(x, time, condition) + 0.1 * condition.label.view(-1, 1, 1, 1)
        return torch.cat([x0, 7 + 0 * x0], dim=1)

    def shifted(x, time, condition):
        return plain(x, time, condition) + 0.1 * (9 + 2 * (condition.label.view(-1, 1, 1, 1) - 9))

    both = posterior(classifier_free(labelled, 2.0, 9, EDM()), observation, EDM())(x, time, label)
    assert_close(both[:, :1], posterior(shifted, observation, EDM())(x, time, label))
    assert_close(both[:, 1:], torch.full_like(x, 7))
    small = posterior(shifted, observation, EDM(), limit=0.05)(x, time, label)
    assert_close(small, both[:, :1].clamp(-0.05, 0.05))
    last = torch.full((3,), 999.0)
    assert_close(posterior(shifted, observation, ALL["zero_terminal"])(x, last, label), shifted(x, last, label))


def test_noise_may_differ_between_channels() -> None:
    random = torch.Generator().manual_seed(0)
    x, values = torch.randn(2, 2, 2, *SHAPE[1:], generator=random)
    noise = torch.tensor([0.1, 2.0]).view(2, 1, 1)

    def denoise(x, time, condition):
        return x / (1 + time.view(-1, 1, 1, 1).square())

    both = posterior(denoise, Observation(values, noise), EDM())(x, torch.ones(2), UNCONDITIONED)
    for channel, std in enumerate((0.1, 2.0)):
        expected = (x / 1 + values / std**2)[:, channel] / (1 + 1 + 1 / std**2)
        assert_close(both[:, channel], expected)


IMAGES = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
PLACES = ["reflect", "periodic", "periodic_width"]


@pytest.mark.parametrize(
    "operator", [*(Blur(1.2, borders) for borders in PLACES), Downsample(2), Downsample(4)], ids=str
)
def test_operators_are_linear_and_keep_constants_and_channels(operator) -> None:
    seen = operator(IMAGES)
    assert tuple(seen.shape[2:]) == operator.size(12, 20)
    assert_close(operator(2 * IMAGES - IMAGES.flip(0)), 2 * seen - seen.flip(0))
    assert_close(operator(torch.ones_like(IMAGES)), torch.ones_like(seen))
    assert_close(operator(IMAGES[:, 1:2]), seen[:, 1:2])


def test_a_blur_is_a_gaussian_and_down_sampling_a_mean() -> None:
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    row = Blur(2.0)(point)[0, 0].sum(dim=0)
    place = torch.arange(21) - 10.0
    assert_close((row * place.square()).sum(), torch.tensor(4.0), rtol=1e-2, atol=0)
    assert_close(row[11:] / row[10], (place[11:].square() / -8).exp().where(place[11:] <= 8, 0))
    assert_close(Downsample(4)(IMAGES)[0, 0, 1, 2], IMAGES[0, 0, 4:8, 8:12].mean())


def test_the_borders_of_a_blur() -> None:
    across, down = IMAGES.roll(5, dims=3), IMAGES.roll(5, dims=2)
    moves = {
        "reflect": (False, False),
        "periodic": (True, True),
        "periodic_width": (True, False),
        "zeros": (False, False),
    }
    for borders, (wide, high) in moves.items():
        blur = Blur(1.0, borders)
        assert torch.allclose(blur(across), blur(IMAGES).roll(5, dims=3), atol=1e-6) == wide
        assert torch.allclose(blur(down), blur(IMAGES).roll(5, dims=2), atol=1e-6) == high
    assert Blur(1.0, "zeros")(torch.ones(1, 1, 12, 12))[0, 0, 0, 0] < 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(0.0), r"sigma=0 "),
        (lambda: Blur(math.nan), r"sigma=nan "),
        (lambda: Blur(3.0).size(12, 20), r"sigma=3 .*12x20.*2\.75"),
        (lambda: Blur(3.0)(IMAGES), r"sigma=3 "),
        (lambda: Downsample(1), r"downsample by 1 "),
        (lambda: Downsample(8).size(12, 20), r"downsample by 8 .*12x20"),
        (lambda: Downsample(8)(IMAGES), r"downsample by 8 "),
    ],
)
def test_operators_that_do_not_fit(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
