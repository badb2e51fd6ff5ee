import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from training.ema import MAX_WIDTH, MIN_WIDTH, Ema, EmaConfig, power_exponent


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
    assert EmaConfig(halflife_images=500, rampup=None).decays(10, batch=10)["ema"] ** 50 == pytest.approx(0.5)


def test_rampup_shortens_all_halflives_early_on():
    config = EmaConfig(halflife_images=500, rampup=0.05, more_halflife_images=(300, 5))
    assert config.names == ("ema", "ema-300", "ema-5")
    assert config.decays(200, batch=10) == pytest.approx({"ema": 0.5, "ema-300": 0.5, "ema-5": 0.25}), "0.05 * 200"
    late = {"ema": 0.5 ** (10 / 500), "ema-300": 0.5 ** (10 / 300), "ema-5": 0.25}
    assert config.decays(10_000, batch=10) == config.decays(1_000_000, batch=10) == pytest.approx(late)


def test_without_a_halflife_nothing_is_averaged():
    assert EmaConfig(halflife_images=None).decays(10, batch=10) == {"ema": 0}


def test_published_widths_have_the_published_exponents():
    assert (power_exponent(0.05), power_exponent(0.1)) == pytest.approx((16.97, 6.94), abs=0.005)
    assert power_exponent(12**-0.5) == pytest.approx(0, abs=1e-9), "equal weights"


@pytest.mark.parametrize("width", [MIN_WIDTH, 0.02, 0.05, 0.1, 0.25, MAX_WIDTH])
def test_a_width_is_the_standard_deviation_of_the_profile(width):
    nodes, weights = np.polynomial.legendre.leggauss(2000)
    time, exponent = (nodes + 1) / 2, power_exponent(width)
    profile = weights / 2 * (exponent + 1) * time**exponent
    mean = (profile * time).sum()
    assert profile.sum() == pytest.approx(1, rel=1e-8)
    assert (profile * (time - mean) ** 2).sum() ** 0.5 == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_a_power_function_average_has_its_closed_form(width):
    config, batch, updates = EmaConfig(power_widths=(width,)), 8, 30
    trajectory = torch.randn(updates, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(2, 3, bias=False).double()
    ema = Ema(copy.deepcopy(model), model)
    for number, weights in enumerate(trajectory):
        with torch.no_grad():
            model.weight.copy_(weights)
        ema.update(config.decays((number + 1) * batch, batch)[f"ema-{width}"])
    edges = (torch.arange(updates + 1, dtype=torch.float64) / updates) ** (power_exponent(width) + 1)
    expected = torch.einsum("t,tij->ij", edges.diff(), trajectory)  # the profile, integrated over each update
    assert_close(ema.model.weight, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"halflife_images": 0}, r"halflife_images=0"),
        ({"rampup": 0.0}, r"rampup=0"),
        ({"more_halflife_images": (5, 0)}, r"more_halflife_images=\(5, 0\)"),
        ({"more_halflife_images": (5, 5)}, r"more_halflife_images=\(5, 5\)"),
        ({"more_halflife_images": (500_000,)}, r"more_halflife_images=\(500000,\).*ema\.halflife_images=500000"),
        ({"power_widths": (0.05, 0.05)}, r"power_widths=\(0\.05, 0\.05\)"),
        ({"power_widths": (0.0005,)}, r"power_widths=\(0\.0005,\).*0\.001 to 0\.288"),
        ({"power_widths": (0.3,)}, r"power_widths=\(0\.3,\)"),
        ({"power_widths": (float("nan"),)}, r"power_widths=\(nan,\)"),
        ({"snapshot_every_images": 0}, r"snapshot_every_images=0"),
    ],
)
def test_averages_out_of_range_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        EmaConfig(**fields)
