"""The bound that trains a learned variance, against the published formulas in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import norm
from torch.testing import assert_close

from diffusion import DDPM, VariationalBound, denoising_loss

TIMES = [0, 1, 2, 500, 998]
SPACING = 2 / 255


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """8-bit images with both ends of the range, denoised images, and a learned variance beyond [-1, 1]."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.randint(256, (len(TIMES), 3, 4, 2), generator=g)
    x0[:, 0, 0], x0[:, 1, 0] = 0, 255
    x0 = x0 * SPACING - 1
    return x0, x0 + 0.02 * torch.randn(x0.shape, generator=g), 1.2 * torch.randn(x0.shape, generator=g)


def published(formulation: DDPM, t: int, x0: np.ndarray, denoised: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Timestep t's term of L_vlb per value, in bits (Nichol & Dhariwal 2021, eq. 5, 6 and 10 to 15), as written there.

    At the ends of the range the interval is infinite (Ho et al. 2020, eq. 13).
    """
    beta = DDPMScheduler(**formulation.scheduler_config()).betas.double().numpy()
    alpha, bar = 1 - beta, np.cumprod(1 - beta)
    before = np.append(1.0, bar[:-1])
    posterior = (1 - before) / (1 - bar) * beta

    def mean_of_step(clean: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (np.sqrt(before[t]) * beta[t] * clean + np.sqrt(alpha[t]) * (1 - before[t]) * x) / (1 - bar[t])

    v = (fraction + 1) / 2
    variance = np.exp(v * np.log(beta[t]) + (1 - v) * np.log(posterior[max(t, 1)]))
    x = np.sqrt(bar[t]) * x0 + 0.3  # any noisy image
    theirs = mean_of_step(denoised, x)
    if t == 0:
        at_low, at_high = x0 < -0.999, x0 > 0.999
        high = np.where(at_high, 1.0, norm.cdf(x0 + 1 / 255, theirs, np.sqrt(variance)))
        low = np.where(at_low, 0.0, norm.cdf(x0 - 1 / 255, theirs, np.sqrt(variance)))
        return -np.log2(np.maximum(high - low, 1e-12))
    ours = mean_of_step(x0, x)
    ratio = posterior[t] / variance
    return (ratio - 1 - np.log(ratio) + (ours - theirs) ** 2 / variance) / (2 * np.log(2))


@pytest.mark.parametrize(
    "formulation",
    [DDPM(), DDPM(schedule="cosine"), DDPM(prediction="v", zero_terminal_snr=True)],
    ids=["linear", "cosine", "zero terminal"],
)
def test_every_term_equals_the_published_one(formulation: DDPM) -> None:
    given = batch()
    found = VariationalBound(formulation, SPACING)(*given, torch.tensor(TIMES).float())
    for row, t in enumerate(TIMES):
        term = published(formulation, t, *(values[row].double().numpy() for values in given))
        assert found[row].item() == pytest.approx(1000 * term.mean(), rel=2e-4, abs=1e-5), t


def test_the_length_of_the_chain_is_a_factor() -> None:
    x0, denoised, fraction = batch()
    formulation = DDPM(schedule="cosine", timesteps=50)
    found = VariationalBound(formulation, SPACING)(x0, denoised, fraction, torch.full((len(TIMES),), 7.0))
    term = published(formulation, 7, x0[0].double().numpy(), denoised[0].double().numpy(), fraction[0].double().numpy())
    assert found[0].item() == pytest.approx(50 * term.mean(), rel=1e-4)


def test_real_numbers_have_a_density_and_fine_integers_nearly_that() -> None:
    x0, denoised, fraction = batch()
    x0, time = 0.5 * x0, torch.zeros(len(TIMES))
    denoised = x0 + (denoised - x0).clamp(-0.02, 0.02)
    beta = DDPMScheduler().betas.double().numpy()
    small = beta[1] * beta[0] / (1 - (1 - beta[0]) * (1 - beta[1]))
    v = (fraction.double().numpy() + 1) / 2
    std = np.exp((v * np.log(beta[0]) + (1 - v) * np.log(small)) / 2)
    bits = -norm.logpdf(x0.double().numpy(), denoised.double().numpy(), std) / np.log(2)
    density = VariationalBound(DDPM(), None)(x0, denoised, fraction, time)
    assert_close(density.double(), torch.from_numpy(1000 * bits.mean(axis=(1, 2, 3))), rtol=1e-4, atol=0)
    fine = VariationalBound(DDPM(), 2 / 65535)(x0, denoised, fraction, time)
    assert_close(fine, density + 1000 * np.log2(65535 / 2), rtol=1e-3, atol=0)


def test_a_value_far_from_the_image_has_a_finite_loss_and_gradient() -> None:
    x0 = torch.tensor([-1.0, -0.5, 0.5, 1.0]).view(4, 1, 1, 1)
    for shift in (0.03, -0.03, 0.05, -0.05, 2.0, -2.0):
        fraction = torch.zeros(4, 1, 1, 1, requires_grad=True)
        loss = VariationalBound(DDPM(), SPACING)(x0, x0 + shift, fraction, torch.zeros(4))
        assert loss.isfinite().all()
        loss.sum().backward()
        assert fraction.grad is not None
        assert fraction.grad.isfinite().all()
        if abs(shift) < 0.1:  # a wider distribution makes the inner values more probable
            assert (fraction.grad[1:3] < 0).all()


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_hybrid_loss_is_the_plain_one_and_the_bound_without_a_gradient_to_the_prediction(prediction: str) -> None:
    (x0, _, fraction), noise = batch(), torch.randn(len(TIMES), 3, 4, 2, generator=torch.Generator().manual_seed(1))
    formulation, time = DDPM(prediction=prediction), torch.tensor(TIMES).float()  # type: ignore[arg-type]
    level = formulation.level(time)
    output = torch.cat([level.target(x0, noise) + 0.1 * noise.flip(0), fraction], dim=1).requires_grad_()
    bound = VariationalBound(formulation, SPACING)

    def gradient(net: Callable[..., torch.Tensor], **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        loss = denoising_loss(net, formulation, x0, noise, time, **options)  # type: ignore[arg-type]
        return loss, torch.autograd.grad(loss.sum(), output)[0]

    hybrid, with_bound = gradient(lambda x, t, label: output, bound=bound)
    plain, without = gradient(lambda x, t, label: output[:, :3])
    denoised = level.split(level.noisy(x0, noise), output[:, :3])[0]
    assert_close(hybrid, plain + 0.001 * bound(x0, denoised, fraction, time))
    assert_close(with_bound[:, :3], without[:, :3], rtol=0, atol=0)
    assert (with_bound[:, 3:] != 0).any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize(("channels", "bound"), [(6, None), (1, None), (3, VariationalBound(DDPM(), None))])
def test_output_channels_that_do_not_fit_are_an_error(channels: int, bound: VariationalBound | None) -> None:
    x0, _, _ = batch()
    with pytest.raises(ValueError, match=f"{channels} output channels for images of 3"):
        denoising_loss(
            lambda x, t, label: x[:, :1].repeat(1, channels, 1, 1),
            DDPM(),
            x0,
            x0,
            torch.ones(len(TIMES)),
            bound=bound,
        )
