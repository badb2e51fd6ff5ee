"""The synthetic fields against a dense computation, and exact members against the scores that they must reach."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor
from torch.testing import assert_close

from benchmarks.gaussian_fields import PERIODIC, GaussianFields, main, read_members
from metrics import crps, ensemble_rmse, power_spectrum, rank_histogram, spread_skill

SMALL = GaussianFields(
    (6, 8), means=(280.0, 1e-3), deviations=(8.0, 5e-4), lengths=(2.0, 1.0), correlation=0.7, blur=0.6, noise=0.3
)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def through_modes(x: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Fields whose modes are multiplied, by the transforms of scipy."""
    modes = scipy.fft.fft(scipy.fft.dct(x, axis=-2, norm="ortho"), axis=-1)
    return scipy.fft.idct(scipy.fft.ifft(factors * modes, axis=-1).real, axis=-2, norm="ortho")


def frequencies(law: GaussianFields) -> tuple[np.ndarray, np.ndarray]:
    h, w = law.size
    return np.arange(h)[:, None] / (2 * h), np.fft.fftfreq(w)


def dense(law: GaussianFields) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prior covariance of all pixels, the matrix of the observation, and the variances of its noise."""
    (h, w), c = law.size, len(law.means)
    ky, kx = frequencies(law)
    pixels = np.eye(h * w).reshape(-1, h, w)
    roots = []
    for deviation, length in zip(law.deviations, law.lengths, strict=True):
        power = (1 + (math.tau * length) ** 2 * (ky**2 + kx**2)) ** -1.5
        roots.append(deviation * through_modes(pixels, np.sqrt(power / power.mean())).reshape(h * w, h * w))
    prior = np.block([[law.correlation ** abs(i - j) * roots[i] @ roots[j] for j in range(c)] for i in range(c)])
    blurred = through_modes(pixels, np.exp(-2 * (math.pi * law.blur) ** 2 * (ky**2 + kx**2)))
    seen = blurred.reshape(-1, h // 2, 2, w // 2, 2).mean(axis=(2, 4)).reshape(h * w, -1).T
    noise = np.repeat((law.noise * np.array(law.deviations)) ** 2, h * w // 4)
    return prior, np.kron(np.eye(c), seen), noise


def test_the_law_given_an_input_is_that_of_dense_gaussian_conditioning() -> None:
    prior, seen, noise = dense(SMALL)
    inputs = SMALL.observe(SMALL.draw(3, random()), random(1))
    means = np.array(SMALL.means)[:, None, None]
    gain = prior @ seen.T @ np.linalg.inv(seen @ prior @ seen.T + np.diag(noise))
    expected = means + ((inputs.numpy() - means).reshape(3, -1) @ gain.T).reshape(3, 2, 6, 8)
    assert_close(SMALL.posterior_mean(inputs), torch.from_numpy(expected))
    variance = np.diag(prior - gain @ seen @ prior).reshape(2, 6, 8)
    assert_close(SMALL.posterior_deviation, torch.from_numpy(np.sqrt(variance)))


def test_covariance_and_denoised_fields_are_those_of_dense_algebra() -> None:
    prior = torch.from_numpy(dense(SMALL)[0])
    assert_close(SMALL.covariance(), prior)
    noisy, means = SMALL.draw(3, random()), torch.tensor(SMALL.means, dtype=torch.float64).view(-1, 1, 1)
    spread = (0.3 * torch.tensor(SMALL.deviations, dtype=torch.float64)).square().repeat_interleave(48).diag()
    expected = (noisy - means).flatten(1) @ torch.linalg.solve(prior + spread, prior)
    assert_close((SMALL.denoise(noisy, 0.3) - means).flatten(1), expected)


def test_fields_and_inputs_have_their_covariance() -> None:
    prior, seen, noise = dense(SMALL)
    fields = SMALL.draw(20_000, random())
    inputs = SMALL.observe(fields, random(1))
    both = torch.cat([fields.flatten(1), inputs.flatten(1)], dim=1)
    cross = prior @ seen.T
    expected = np.block([[prior, cross], [cross.T, seen @ cross + np.diag(noise)]])
    scale = np.sqrt(np.diag(expected))
    correlations = torch.from_numpy(expected / np.outer(scale, scale))
    means = torch.tensor(SMALL.means, dtype=torch.float64)
    deviations = (both - torch.cat([means.repeat_interleave(48), means.repeat_interleave(12)])) / scale
    assert_close(deviations.T.cov(), correlations, rtol=0, atol=0.04)
    assert_close(deviations.mean(dim=0), torch.zeros(120).double(), rtol=0, atol=0.04)


@pytest.fixture(scope="module")
def exact() -> tuple[GaussianFields, Tensor, Tensor]:
    """The default law, exact members and the truth."""
    law = GaussianFields()
    truth = law.draw(120, random())
    return law, law.posterior_samples(law.observe(truth, random(1)), 6, random(2)), truth


def test_exact_members_reach_the_optimal_scores(exact: tuple[GaussianFields, Tensor, Tensor]) -> None:
    law, members, truth = exact
    assert_close(crps(members, truth), law.optimal_crps, rtol=0.01, atol=0)
    assert_close(spread_skill(members, truth), torch.ones(5).double(), rtol=0.01, atol=0)
    assert_close(ensemble_rmse(members, truth), math.sqrt(7 / 6) * law.optimal_rmse, rtol=0.01, atol=0)
    flat = torch.full((5, 7), 1 / 7).double()
    assert_close(rank_histogram(members, truth, random()), flat, rtol=0.03, atol=0)


def test_the_mean_of_the_law_has_a_larger_score(exact: tuple[GaussianFields, Tensor, Tensor]) -> None:
    """The mean absolute error of a normal distribution is sqrt(2) times its CRPS."""
    law, _, truth = exact
    mean = law.posterior_mean(law.observe(truth, random(1)))
    assert_close(crps(mean[None], truth), math.sqrt(2) * law.optimal_crps, rtol=0.01, atol=0)
    assert (power_spectrum(mean, PERIODIC)[:, -5:] < 0.5 * law.spectrum[:, -5:]).all()


def test_fields_and_exact_members_have_the_spectrum(exact: tuple[GaussianFields, Tensor, Tensor]) -> None:
    law, members, _ = exact
    assert_close(power_spectrum(law.draw(300, random(3)), PERIODIC)[:, 1:], law.spectrum[:, 1:], rtol=0.1, atol=0)
    assert_close(power_spectrum(members.flatten(0, 1), PERIODIC)[:, 1:], law.spectrum[:, 1:], rtol=0.1, atol=0)


def test_the_spectrum_of_members_depends_on_the_inputs(exact: tuple[GaussianFields, Tensor, Tensor]) -> None:
    law, members, truth = exact
    inputs = law.observe(truth, random(1))
    expected = law.posterior_spectrum(inputs)
    assert_close(power_spectrum(members.flatten(0, 1), PERIODIC)[:, 1:], expected[:, 1:], rtol=0.03, atol=0)
    assert not torch.allclose(law.spectrum[:, 1], expected[:, 1], rtol=0.01, atol=0)


def test_drawn_ensembles_are_compared_with_the_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--train", "1", "--test", "60"])
    law, drawn = GaussianFields(), tmp_path / "drawn"
    inputs = torch.from_numpy(np.load(tmp_path / "test" / "input.npy")).double()
    members = law.posterior_samples(inputs[:50], 3, random(5))
    (drawn / "images").mkdir(parents=True)
    lines = ["file,condition,member"]
    for number in range(150):
        np.save(drawn / "images" / f"{number:06d}.npy", members[number % 3, number // 3].numpy())
        lines.append(f"{number:06d}.npy,{number // 3},{number % 3}")
    (drawn / "conditions.csv").write_text("\n".join(lines))
    assert_close(read_members(drawn), members)
    capsys.readouterr()
    main([str(tmp_path), "--drawn", str(drawn)])
    exact, ours = (re.findall(r"\d\.\d{3}", line) for line in capsys.readouterr().out.splitlines()[2:])
    for row in (exact, ours):
        assert len(row) == 8
        assert [float(value) for value in row] == pytest.approx([1] * 8, abs=0.05)
    (drawn / "conditions.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--drawn", str(drawn)])
    assert "149 images" in capsys.readouterr().err


def test_the_script_writes_pairs_and_the_optimum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--train", "3", "--test", "2"])
    shapes = {path.relative_to(tmp_path).as_posix(): np.load(path).shape for path in tmp_path.rglob("*.npy")}
    assert shapes == {
        "train/target.npy": (3, 5, 24, 40),
        "train/input.npy": (3, 5, 12, 20),
        "test/target.npy": (2, 5, 24, 40),
        "test/input.npy": (2, 5, 12, 20),
    }
    assert "| pressure (Pa) |" in capsys.readouterr().out
    assert np.load(tmp_path / "test/target.npy").dtype == np.float32


def test_a_set_without_pairs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), "--test", "0"])
    assert end.value.code == 2
    assert "--test=0" in capsys.readouterr().err
