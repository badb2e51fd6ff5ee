from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from diffusion import DDPM, Condition, NetworkDenoiser, clipped, denoising_loss, drop_labels
from tests.diffusion.closed_form import ALL, interior_times

T = torch.tensor([0.0, 1, 300, 999], dtype=torch.float64)


def images(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 3, 4, 2, dtype=dtype) * 2 - 1, torch.randn(4, 3, 4, 2, dtype=dtype)


@pytest.mark.parametrize("name", ALL)
def test_loss_of_a_constant_output_has_a_closed_form(name: str) -> None:
    (x0, noise), time = images(), interior_times(ALL[name], 4)
    loss = denoising_loss(lambda x, t, label: 0 * x + 2, ALL[name], x0, noise, time)
    truth = ALL[name].level(time).target(x0, noise)
    assert_close(loss, (2 - truth).square().flatten(1).mean(1))


def test_loss_is_zero_for_the_right_output_and_belongs_to_one_image() -> None:
    x0, noise = images()
    right = denoising_loss(lambda x, t, label: noise, DDPM(), x0, noise, T)
    assert_close(right, torch.zeros(4, dtype=torch.float64), rtol=0, atol=0)
    spoiled = noise.clone()
    spoiled[2] += 1
    wrong = denoising_loss(lambda x, t, label: spoiled, DDPM(), x0, noise, T)
    assert_close(wrong, torch.tensor([0.0, 0, 1, 0], dtype=torch.float64))


def test_loss_stays_float32_around_a_bf16_network() -> None:
    x0, noise = images(torch.float32)
    seen = []

    def net(x, t, label):
        seen.append((x.dtype, t.dtype))
        return x.bfloat16()

    assert denoising_loss(net, DDPM(), x0, noise, T.float()).dtype == torch.float32
    assert NetworkDenoiser(net, DDPM())(x0, T.float(), Condition()).dtype == torch.float32
    assert seen == [(torch.float32, torch.float32)] * 2


def test_a_learned_uncertainty_weights_the_error_and_is_charged_for() -> None:
    (x0, noise), u = images(), torch.tensor([0.0, 1.0, -2.0, 3.0], dtype=torch.float64)
    error = denoising_loss(lambda x, t, label: x, DDPM(), x0, noise, T)
    loss = denoising_loss(lambda x, t, label: (x, u), DDPM(), x0, noise, T)
    assert_close(loss, error / u.exp() + u)


@pytest.mark.parametrize("name", ALL)
def test_a_denoiser_recovers_the_image_from_the_right_output(name: str) -> None:
    (x0, noise), time = images(torch.float32), interior_times(ALL[name], 4).float()
    level = ALL[name].level(time)
    denoise = NetworkDenoiser(lambda x, t, label: level.target(x0, noise), ALL[name])
    assert_close(denoise(level.noisy(x0, noise), time, Condition()), x0, rtol=0, atol=2e-3)


def test_every_part_of_a_condition_reaches_the_network() -> None:
    x0, noise = images(torch.float32)
    seen = {}

    def net(x, t, label, **options):
        seen.update(options, label=label, channels=x.shape[1])
        return x[:, :3]

    condition = Condition(torch.tensor([3, 1, 4, 1]), x0[:, :2], torch.ones(4, 9), torch.ones(4, 6))
    NetworkDenoiser(net, DDPM())(noise, T.float(), condition)
    assert seen["label"] is condition.label
    assert seen["channels"] == 5
    assert seen["augment"] is condition.augment
    assert seen["emb"] is condition.emb
    seen.clear()
    denoising_loss(net, DDPM(), x0, noise, T.float(), Condition())
    assert seen == {"label": None, "channels": 3}


def test_predicted_variances_are_left_out() -> None:
    _, noise = images(torch.float32)
    plain = NetworkDenoiser(lambda x, t, label: x, DDPM())
    with_variance = NetworkDenoiser(lambda x, t, label: torch.cat([x, x + 9], dim=1), DDPM())
    x0 = plain(noise, T.float(), Condition())
    assert_close(with_variance(noise, T.float(), Condition()), x0, rtol=0, atol=0)
    both = replace(with_variance, learned_variance=True)(noise, T.float(), Condition())
    assert_close(both, torch.cat([x0, noise + 9], dim=1), rtol=0, atol=0)


def test_clipping_is_a_wrapper() -> None:
    x, time = torch.linspace(-3, 3, 12).view(1, 3, 2, 2), torch.zeros(1)
    assert_close(clipped(lambda x, t, condition: x)(x, time, Condition()), x.clamp(-1, 1), rtol=0, atol=0)
    assert_close(clipped(lambda x, t, condition: x, -2, 0.5)(x, time, Condition()), x.clamp(-2, 0.5), rtol=0, atol=0)


def test_labels_are_dropped_one_image_at_a_time() -> None:
    label, uniform = torch.tensor([3, 1, 4, 1]), torch.tensor([0.0, 0.05, 0.1, 0.9])
    assert drop_labels(label, uniform, 0.1, null=10).tolist() == [10, 10, 4, 1]
    assert drop_labels(label, uniform, 0.0, null=10).tolist() == [3, 1, 4, 1]
    assert drop_labels(label, uniform, 1.0, null=10).tolist() == [10] * 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_clipping_does_not_hide_an_overflow(value: float) -> None:
    """3e38 can be held, but the image that it implies at the last timestep, 3e38 * sigma / alpha, cannot."""
    x, output = images(torch.float32)
    output[1, 2, 3, 0] = value
    denoise = clipped(NetworkDenoiser(lambda x, t, label: output, DDPM()))
    found = denoise(x, torch.full((4,), 999.0), Condition())
    assert found[1, 2, 3, 0].isnan()
    assert found.isnan().sum() == 1
