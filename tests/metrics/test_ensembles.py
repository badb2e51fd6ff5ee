"""Scores of ensembles against closed forms, definitions and calibrated Gaussian ensembles."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from metrics import crps, ensemble_rmse, rank_histogram, spread_skill
from metrics.ensembles import check_members

DEVIATIONS = torch.tensor([8.0, 600.0, 5e-4], dtype=torch.float64).view(3, 1, 1)
MEANS = torch.tensor([280.0, 1e5, 1e-3], dtype=torch.float64).view(3, 1, 1)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ensemble(m: int, spread: float = 1.0, n: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Members and truth that share their means, with deviation `spread` and 1; three channels of different units."""
    g = random(seed)
    shared, truth = (torch.randn(n, 3, 24, 40, generator=g, dtype=torch.float64) for _ in range(2))
    members = spread * torch.randn(m, n, 3, 24, 40, generator=g, dtype=torch.float64)
    return (MEANS + DEVIATIONS * (shared + each) for each in (members, truth))  # type: ignore[return-value]


@pytest.mark.parametrize("m", [2, 3, 8])
def test_the_score_is_its_definition(m: int) -> None:
    members, truth = ensemble(m, n=2)
    pairs = (members[:, None] - members[None]).abs().sum(dim=(0, 1)) / (2 * m * (m - 1))
    assert_close(crps(members, truth), ((members - truth).abs().mean(dim=0) - pairs).mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("m", [2, 5, 16])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_score_of_gaussian_members_is_the_closed_form_whatever_their_number(m: int, spread: float) -> None:
    """E|X - y| of a Gaussian difference is its deviation times sqrt(2 / pi); so is that of two members."""
    members, truth = ensemble(m, spread)
    expected = math.sqrt(2 / math.pi) * (math.sqrt(1 + spread**2) - spread / math.sqrt(2)) * DEVIATIONS.flatten()
    assert_close(crps(members, truth), expected, rtol=0.03, atol=0)


def test_the_score_of_one_truth_is_that_of_the_gaussian_distribution() -> None:
    """Gneiting et al. 2005, eq. 5."""
    x = torch.randn(200_000, 1, 1, 1, 1, generator=random(), dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    for y in (0.0, 0.7, -2.5):
        z = torch.tensor(y, dtype=torch.float64)
        expected = z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - 1 / math.sqrt(math.pi)
        assert_close(crps(x, z.view(1, 1, 1, 1)), expected.view(1), rtol=0, atol=0.01)


def test_a_single_member_has_the_mean_absolute_error() -> None:
    members, truth = ensemble(1)
    assert_close(crps(members, truth), (members[0] - truth).abs().mean(dim=(0, 2, 3)))


def test_the_error_is_that_of_the_mean() -> None:
    members, truth = ensemble(4)
    assert_close(ensemble_rmse(members, truth), (members.mean(dim=0) - truth).square().mean(dim=(0, 2, 3)).sqrt())
    assert_close(ensemble_rmse(members, truth), math.sqrt(1 + 1 / 4) * DEVIATIONS.flatten(), rtol=0.02, atol=0)


@pytest.mark.parametrize("m", [2, 5, 16])
def test_calibrated_members_have_ratio_one_and_a_flat_histogram(m: int) -> None:
    members, truth = ensemble(m)
    assert_close(spread_skill(members, truth), torch.ones(3, dtype=torch.float64), rtol=0, atol=0.02)
    ranks, count = rank_histogram(members, truth, random()), truth[:, 0].numel()
    share = 1 / (m + 1)
    error = 4 * math.sqrt(share * (1 - share) / count)
    assert_close(ranks, torch.full((3, m + 1), share, dtype=torch.float64), rtol=0, atol=error)


def test_too_similar_members_have_a_lower_ratio_and_higher_ends() -> None:
    members, truth = ensemble(9, spread=0.5)
    expected = 0.5 * math.sqrt(10 / 9) / math.sqrt(1 + 0.25 / 9)
    assert_close(spread_skill(members, truth), torch.full((3,), expected, dtype=torch.float64), rtol=0.02, atol=0)
    ranks = rank_histogram(members, truth, random())
    assert (ranks[:, [0, -1]] > 0.2).all()
    assert (ranks[:, 4] < 0.1).all()


def test_a_value_that_equals_members_has_each_rank_between_them_equally_often() -> None:
    truth = torch.zeros(1, 1, 100, 100)
    members = torch.tensor([-1.0, 0.0, 0.0, 1.0]).view(4, 1, 1, 1, 1).expand(4, 1, 1, 100, 100)
    ranks = rank_histogram(members, truth, random())
    assert_close(ranks, torch.tensor([[0, 1 / 3, 1 / 3, 1 / 3, 0]], dtype=torch.float64), rtol=0, atol=0.02)
    assert_close(ranks, rank_histogram(members, truth, random()), rtol=0, atol=0)


def test_missing_values_are_left_out() -> None:
    members, truth = ensemble(5)
    missing = truth.clone()
    missing[:, :, :, 25:] = torch.nan
    members[:, :, :, :, 25:] = torch.nan  # values there are not compared
    kept = members[..., :25], truth[..., :25]
    for score in (crps, spread_skill, ensemble_rmse):
        assert_close(score(members, missing), score(*kept))
    assert_close(rank_histogram(members, missing, random()), rank_histogram(*kept, random()))


@pytest.mark.parametrize(
    ("members", "truth", "match"),
    [
        (torch.zeros(3, 2, 1, 4, 4), torch.zeros(2, 1, 4, 5), r"\(2, 1, 4, 4\).*\(2, 1, 4, 5\)"),
        (torch.zeros(0, 2, 1, 4, 4), torch.zeros(2, 1, 4, 4), r"members=0"),
        (torch.full((3, 2, 1, 4, 4), torch.inf), torch.zeros(2, 1, 4, 4), r"96 values.*not finite"),
        (torch.zeros(3, 1, 2, 4, 4), torch.tensor([0, torch.nan]).view(1, 2, 1, 1).expand(1, 2, 4, 4), r"\[1\]"),
    ],
)
def test_members_that_cannot_be_compared_are_refused(members: Tensor, truth: Tensor, match: str) -> None:
    for score in (check_members, crps, spread_skill, ensemble_rmse, lambda x, y: rank_histogram(x, y, random())):
        with pytest.raises(
            ValueError, match="members=0 have no spread" if score is spread_skill and not len(members) else match
        ):
            score(members, truth)


def test_a_single_member_has_no_spread() -> None:
    with pytest.raises(ValueError, match="members=1"):
        spread_skill(*ensemble(1))
