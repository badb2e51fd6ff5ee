"""benchmarks/posterior.py, with small fields: exact members reach the figures of the exact law."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from benchmarks import posterior
from benchmarks.gaussian_fields import GaussianFields
from diffusion import EDM
from pictures.units import Units
from pipelines.diffusion import DiffusionModel
from unet import UNet, UNetConfig

SMALL = GaussianFields(size=(4, 6), means=(0.0,) * 5, deviations=(1.0,) * 5)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "LAW", SMALL)


def test_members_of_the_exact_denoiser_have_the_figures_of_the_law() -> None:
    truth, observed = posterior.observe(0.25, 0.1, count=4, seed=0)
    assert_close(observed.isfinite().double().mean(), torch.tensor(0.25).double(), rtol=0, atol=0.1)
    members = posterior.exact_prior().members(observed, 0.1, 64, steps=32, iterations=15)
    mean, deviation = posterior.exact_posterior(observed, 0.1)
    found = dict(
        zip(posterior.COLUMNS[1:], posterior.compare(members, truth, mean, deviation).mean(dim=1), strict=True)
    )
    assert_close(found["error"], found["error, exact members"], rtol=0.1, atol=0)
    assert_close(found["distance of means"], torch.tensor(1.0).double(), rtol=0, atol=0.2)
    assert_close(found["deviation / exact"], torch.tensor(1.0).double(), rtol=0, atol=0.05)


def test_the_units_of_a_run_are_those_of_the_fields(tmp_path: Path) -> None:
    config = UNetConfig(
        size=(4, 6), base_channels=8, channel_multipliers=(1, 2), in_channels=5, out_channels=5, groups=4
    )
    units = Units(mean=posterior.MEANS, std=tuple(2 * std for std in posterior.DEVIATIONS), transform=("none",) * 5)
    DiffusionModel(UNet(config), EDM(), pixel_format=units).save(tmp_path / "own")
    prior = posterior.trained_prior(tmp_path / "own")
    assert_close(prior.shift, torch.zeros(5, 1, 1).double())
    assert_close(prior.scale, torch.full((5, 1, 1), 0.5).double())
    DiffusionModel(UNet(config), EDM()).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"uint8 from 0 to 255.*mean_std"):
        posterior.trained_prior(tmp_path / "other")


def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        posterior.main(["--members", "1"])
    assert end.value.code == 2
    assert "--members=1 " in capsys.readouterr().err
