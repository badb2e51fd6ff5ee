"""The numbers and the picture of an ensemble: what each holds, in which units, and what a single member lacks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from metrics import crps, ensemble_rmse, power_spectrum, rank_histogram, spectrum_error, spread_skill
from tasks.ensemble_scores import score_ensemble


def ensemble(m: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    units = torch.tensor([8.0, 600.0]).view(2, 1, 1)
    members, truth = (units * torch.randn(count, 4, 2, 6, 10, generator=g) for count in (m, 1))
    return members, truth[0]


def test_figures_are_those_of_metrics_per_channel_and_free_of_units_over_all() -> None:
    members, truth = ensemble()
    found, deviation = (
        score_ensemble(members, truth, (False, True), seed=5).figures,
        truth.std(dim=(0, 2, 3), correction=0),
    )
    spectra = (power_spectrum(x, (False, True)) for x in (members.flatten(0, 1), truth))
    expected = {
        "crps": crps(members, truth),
        "rmse": ensemble_rmse(members, truth),
        "spread_skill": spread_skill(members, truth),
        "spectrum_error": spectrum_error(*spectra),
    }
    for name, values in expected.items():
        assert_close([found[f"{name}_{c}"] for c in range(2)], values.tolist())
    assert found["crps"] == pytest.approx(float((expected["crps"] / deviation).mean()), rel=1e-5)
    assert found["rmse"] == pytest.approx(float((expected["rmse"] / deviation).mean()), rel=1e-5)
    assert found["spread_skill"] == pytest.approx(float(expected["spread_skill"].mean()))
    assert found["spectrum_error"] == float(expected["spectrum_error"].max())
    scaled = torch.tensor([1e-3, 1e5]).view(2, 1, 1)
    other = score_ensemble(members * scaled, truth * scaled, (False, True)).figures
    assert_close([other[name] for name in expected], [found[name] for name in expected], rtol=1e-5, atol=0)


def test_borders_and_seed_have_an_effect() -> None:
    members, truth = ensemble()
    errors = {borders: score_ensemble(members, truth, borders).figures["spectrum_error"] for borders in BORDERS}
    assert len(set(errors.values())) == len(BORDERS)
    equal = torch.zeros_like(members), torch.arange(truth.numel()).view(truth.shape) % 2.0
    for seed in (0, 1):
        expected = rank_histogram(*equal, torch.Generator().manual_seed(seed))
        ranks = score_ensemble(*equal, seed=seed).ranks
        assert ranks is not None
        assert_close(ranks, expected)


BORDERS = [(False, False), (False, True), (True, True)]


def test_a_single_member_has_no_spread(tmp_path: Path) -> None:
    members, truth = ensemble(1)
    scores = score_ensemble(members, truth)
    assert set(scores.figures) == {
        f"{name}{c}" for name in ("crps", "rmse", "spectrum_error") for c in ("", "_0", "_1")
    }
    scores.draw(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").is_file()


def test_fields_with_missing_values_have_no_spectrum(tmp_path: Path) -> None:
    members, truth = ensemble()
    truth[0, 1, 2, 3] = torch.nan
    scores = score_ensemble(members, truth)
    assert scores.truth_spectrum is not None
    assert_close(scores.truth_spectrum, power_spectrum(truth[1:], (False, False)))
    assert scores.figures["crps_1"] == pytest.approx(crps(members, truth)[1].item())
    truth[:, 0, 0, 0] = torch.nan
    scores = score_ensemble(members, truth)
    assert "spectrum_error" not in scores.figures
    assert np.isfinite(list(scores.figures.values())).all()
    scores.draw(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").is_file()


@pytest.mark.parametrize("channels", [1, 2, 12])
def test_the_picture_has_four_panels(channels: int, tmp_path: Path) -> None:
    members, truth = (x[..., :1, :, :].expand(*x.shape[:-3], channels, 6, 10) for x in ensemble())
    picture = tmp_path / "new folder" / "scores.png"
    score_ensemble(members, truth).draw(picture)
    with Image.open(picture) as image:
        assert image.size == (840, 640)


def test_a_constant_channel_is_refused() -> None:
    members, truth = ensemble()
    truth[:, 1] = 3
    with pytest.raises(ValueError, match=r"channels \[1\].*constant"):
        score_ensemble(members, truth)
