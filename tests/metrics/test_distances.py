"""Metrics of features against numpy and scipy in float64, and against closed forms."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from metrics import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    memorised,
    precision_recall,
)


def features(count: int, width: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """Correlated features."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return shift + scale * torch.randn(count, width, generator=g) @ mix


PAIRS = [
    (features(300, 8, 0), features(200, 8, 1)),
    (features(300, 8, 0), features(250, 8, 1, shift=0.5)),
    (features(90, 8, 0), features(300, 8, 1, scale=2.0)),
]


@pytest.mark.parametrize(("real", "drawn"), PAIRS)
def test_the_frechet_distance_is_that_of_scipy(real: torch.Tensor, drawn: torch.Tensor) -> None:
    a, b = real.double().numpy(), drawn.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    assert frechet_distance(real, drawn) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert frechet_distance(drawn, real) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_frechet_distance_of_a_set_from_itself_and_from_its_shift() -> None:
    x = features(500, 6, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 2) == pytest.approx(6 * 2**2, rel=1e-5)


@pytest.mark.parametrize(("real", "drawn"), PAIRS)
def test_the_kernel_distance_of_whole_sets_is_that_of_numpy(real: torch.Tensor, drawn: torch.Tensor) -> None:
    size = min(len(real), len(drawn))
    real, drawn = real[:size], drawn[:size]
    a, b = real.double().numpy(), drawn.double().numpy()

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    others = ~np.eye(size, dtype=bool)
    expected = kernel(a, a)[others].mean() + kernel(b, b)[others].mean() - 2 * kernel(a, b).mean()
    mean, std = kernel_distance(real, drawn)  # every subset is the whole set
    assert mean == pytest.approx(expected, rel=1e-9)
    assert std == 0


def test_the_kernel_distance_of_whole_sets_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def distance(x: torch.Tensor, y: torch.Tensor, *_: object) -> torch.Tensor:
        calls.append(len(x))
        return torch.zeros(())

    monkeypatch.setattr("torchmetrics.image.kid.poly_mmd", distance)
    kernel_distance(features(30, 4, 0), features(30, 4, 1))
    assert calls == [30]
    kernel_distance(features(30, 4, 0), features(31, 4, 1))
    assert calls[1:] == 100 * [30]


def test_the_kernel_distance_draws_subsets_by_its_seed_and_leaves_no_trace() -> None:
    real, drawn = features(300, 8, 0), features(1500, 8, 1)
    before = torch.get_rng_state()
    first, again, other = (kernel_distance(real, drawn, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first != other
    assert first[1] > 0


def test_the_inception_score_is_its_definition() -> None:
    assert inception_score(torch.eye(10).repeat(50, 1)) == pytest.approx((10, 0), abs=1.0)
    assert inception_score(torch.full((100, 4), 0.25)) == pytest.approx((1, 0), abs=1e-6)
    p = torch.rand(10, 5, generator=torch.Generator().manual_seed(0)).double() + 0.1
    p = p / p.sum(dim=1, keepdim=True)
    whole = p.repeat_interleave(200, dim=0)
    expected = (p * (p / p.mean(0)).log()).sum(1).mean().exp()
    assert inception_score(whole)[0] == pytest.approx(expected.item(), rel=0.01)


@pytest.mark.parametrize(("real", "drawn"), PAIRS)
def test_neighbours_are_those_of_all_pairs(real: torch.Tensor, drawn: torch.Tensor) -> None:
    a, b = real.double().numpy(), drawn.double().numpy()

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))

    def radius(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(x, x), axis=1)[:, k]

    expected = (
        (distances(b, a) <= radius(a, 3)).any(axis=1).mean(),
        (distances(a, b) <= radius(b, 3)).any(axis=1).mean(),
    )
    assert precision_recall(real, drawn) == pytest.approx(expected)
    inside = distances(b, a) <= radius(a, 5)
    assert density_coverage(real, drawn) == pytest.approx((inside.sum(axis=1).mean() / 5, inside.any(axis=0).mean()))


def test_equal_distributions_have_density_and_coverage_one() -> None:
    density, coverage = density_coverage(features(2000, 4, 0), features(2000, 4, 1))
    assert density == pytest.approx(1, abs=0.06)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # Naeem et al. 2020, eq. 10
    assert precision_recall(features(500, 4, 0), features(500, 4, 1, shift=1e3)) == (0, 0)


def test_copies_of_training_images_are_memorised() -> None:
    training, held_out = features(400, 6, 0), features(300, 6, 1)
    assert memorised(training[:200] + 1e-4, training, held_out) > 0.8  # the larger set is reduced to 300
    assert memorised(features(500, 6, 2), training, held_out) == pytest.approx(0.5, abs=0.08)
    assert memorised(held_out, training, held_out) == 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: frechet_distance(x[:8], x), r"8 real images.*8 features.*9"),
        (lambda x: frechet_distance(x, x[:5]), r"5 drawn images.*9"),
        (lambda x: frechet_distance(x, x[:, :4]), r"'real': 8, 'drawn': 4"),
        (lambda x: kernel_distance(x[:1], x), r"real: 1 images"),
        (lambda x: kernel_distance(x, x.clone().fill_(torch.nan)), r"drawn.*20 of 20.*not finite"),
        (lambda x: precision_recall(x, x[:3], k=3), r"k=3.*1 to 2"),
        (lambda x: density_coverage(x, x, k=0), r"k=0"),
        (lambda x: inception_score(x), r"probabilities"),
        (lambda x: inception_score(torch.full((5, 2), 0.5)), r"5 images"),
        (lambda x: memorised(x, x, x[:, :3]), r"'held_out': 3"),
    ],
)
def test_sets_that_no_metric_can_use_are_refused(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(features(20, 8, 0))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: frechet_distance(x, y),
        lambda x, y: kernel_distance(x, y),
        lambda x, y: inception_score(x.softmax(dim=1)),
    ],
)
def test_no_metric_gathers_from_other_processes(call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set is whole on a process, which may be the only one that computes."""
    alone = call(*PAIRS[0])
    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", lambda *args, **options: pytest.fail("gathered"))
    assert call(*PAIRS[0]) == alone


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = PAIRS[1]
    whole = torch.tensor([*precision_recall(real, drawn), *density_coverage(real, drawn)])
    monkeypatch.setattr("metrics.neighbours.ROWS", 7)
    assert_close(torch.tensor([*precision_recall(real, drawn), *density_coverage(real, drawn)]), whole)
