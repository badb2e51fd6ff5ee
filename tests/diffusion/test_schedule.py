import math

import pytest
import torch
from diffusers import DDPMScheduler

from diffusion import PUBLISHED, Schedule


def test_linear_is_ho_et_al_at_its_ends():
    alpha, sigma = Schedule().at(torch.tensor([0, 999]), torch.float64)
    torch.testing.assert_close(alpha[0].square().item(), 1 - 1e-4, rtol=0, atol=1e-7)
    expected = math.prod(1 - (1e-4 + (0.02 - 1e-4) * t / 999) for t in range(1000))
    torch.testing.assert_close(alpha[1].square().item(), expected, rtol=1e-3, atol=0)
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)


def test_cosine_is_nichol_and_dhariwal():
    t = torch.tensor([0, 100, 500, 900])
    alpha, _ = Schedule(name="cosine").at(t, torch.float64)
    f = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731 the paper's name for it
    expected = torch.tensor([f((k + 1) / 1000) / f(0) for k in t.tolist()], dtype=torch.float64)
    torch.testing.assert_close(alpha.flatten().square(), expected, rtol=1e-4, atol=0)


def test_scaled_linear_is_linear_in_the_root_of_beta():
    alpha, _ = Schedule(name="scaled_linear").at(torch.arange(1000), torch.float64)
    alpha2 = alpha.flatten().square()
    root = (1 - alpha2[1:] / alpha2[:-1]).sqrt()
    torch.testing.assert_close(
        root.diff(), torch.full((998,), (0.012**0.5 - 0.00085**0.5) / 999).double(), rtol=0.05, atol=0
    )
    torch.testing.assert_close(root[-1].item(), 0.012**0.5, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_noising_is_that_of_the_exported_scheduler(name):
    schedule = Schedule(name=name)
    scheduler = DDPMScheduler(**schedule.scheduler_config("epsilon"))
    x0, noise, t = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.tensor([0, 10, 500, 999])
    alpha, sigma = schedule.at(t)
    torch.testing.assert_close(alpha * x0 + sigma * noise, scheduler.add_noise(x0, noise, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("timesteps", [30, 100, 1000, 4000])
def test_noise_grows_to_nearly_all_whatever_the_number_of_timesteps(name, timesteps):
    alpha, sigma = Schedule(name=name, timesteps=timesteps).at(torch.arange(timesteps), torch.float64)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (sigma.flatten().diff() > 0).all()
    assert alpha[-1] < 0.08


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cosin"}, r"unknown schedule 'cosin'; did you mean cosine\? \(of: linear, scaled_linear, cosine\)"),
        ({"name": "xyz"}, "unknown schedule 'xyz'; give one of: linear, scaled_linear, cosine"),
        ({"variance": "fixed_larg"}, "did you mean fixed_large"),
        ({"timesteps": 20}, "timesteps=20 is too few for the linear schedule; give at least 21"),
        ({"timesteps": 10**12}, "timesteps=1000000000000 is too many; give at most 1000000"),
        ({"name": "cosine", "timesteps": 0}, "timesteps=0 is too few for the cosine schedule; give at least 2"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_least_timesteps_work(name):
    with pytest.raises(ValueError, match="at least") as error:
        Schedule(name=name, timesteps=1)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert Schedule(name=name, timesteps=least).at(torch.tensor([least - 1]))[0].item() > 0
