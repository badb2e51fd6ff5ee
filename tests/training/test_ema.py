import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from training.ema import Ema, EmaConfig


def test_against_a_float64_recomputation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    ema = Ema(copy.deepcopy(model), model)
    averaged = [name for name, value in model.state_dict().items() if value.is_floating_point()]
    assert "1.running_var" in averaged
    expected = {name: model.state_dict()[name].double() for name in averaged}
    for step in range(50):
        keep = 1 - 0.5 ** (step + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
            model(torch.randn(2, 1, 5, 5))  # moves the buffers
        ema.update(keep)
        for name in averaged:
            expected[name] = keep * expected[name] + (1 - keep) * model.state_dict()[name].double()
    for name in averaged:
        assert_close(ema.model.state_dict()[name].double(), expected[name], rtol=0, atol=2e-6)
    assert ema.model.state_dict()["1.num_batches_tracked"] == 50


def test_the_average_is_apart_and_ready_to_use():
    model = nn.Linear(2, 2)
    ema = Ema(copy.deepcopy(model), model)
    before = model.weight.detach().clone()
    ema.update(0.0)
    assert_close(ema.model.weight, model.weight, rtol=0, atol=0)
    assert_close(model.weight.detach(), before, rtol=0, atol=0)
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert list(ema.model.state_dict()) == list(model.state_dict())


def test_a_weight_halves_over_the_halflife():
    assert EmaConfig(halflife_images=500, rampup=None).decay(10, batch=10) ** 50 == pytest.approx(0.5)


def test_rampup_shortens_the_halflife_early_on():
    config = EmaConfig(halflife_images=500, rampup=0.05)
    assert config.decay(200, batch=10) == pytest.approx(0.5), "half-life 0.05 * 200 = 10 images, one batch"
    assert config.decay(10_000, batch=10) == config.decay(1_000_000, batch=10) == pytest.approx(0.5 ** (10 / 500))


def test_without_a_halflife_nothing_is_averaged():
    assert EmaConfig(halflife_images=None).decay(10, batch=10) == 0
