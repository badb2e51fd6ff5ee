"""Scores of ensembles, in which several members forecast the same field: one number per channel, in its units.

`members` has the members first, then the fields, as `truth` has them. Values of `truth` that are NaN are missing and
are left out, whatever the members have there. Everything is computed in float64.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor


def crps(members: Float[Tensor, "m _ _ _ _"], truth: Float[Tensor, "n c h w"]) -> Float[Tensor, "c"]:
    """Continuous ranked probability score E|X - y| - E|X - X'| / 2 (Gneiting & Raftery 2007, eq. 21), the mean over all
    values, in the units of the channel; 0 is perfect.

    The second mean is taken over pairs of different members, so that the expectation does not depend on their number
    (the fair score of Ferro 2014; it can be below 0 for a few values). A single member has the mean absolute error.
    Raises ValueError for members of another shape, or not finite, and for a channel that is missing everywhere.
    """
    return torch.stack([_crps(x, y) for x, y in _known(members, truth)])


def spread_skill(members: Float[Tensor, "m _ _ _ _"], truth: Float[Tensor, "n c h w"]) -> Float[Tensor, "c"]:
    """Spread of the members, the root of their mean variance, divided by the error of their mean (`ensemble_rmse`).

    Multiplied by sqrt((m + 1) / m), so that it is 1 for members of the same distribution as the truth, however many
    (Fortin et al. 2014); below 1 the members are too alike. Raises ValueError as `crps` does, and for fewer than two
    members.
    """
    if (m := len(members)) < 2:
        raise ValueError(f"members={m} have no spread; give at least 2")
    variance = torch.stack([x.var(dim=0).mean() for x, _ in _known(members, truth)])
    return (variance * (m + 1) / m).sqrt() / ensemble_rmse(members, truth)


def ensemble_rmse(members: Float[Tensor, "m _ _ _ _"], truth: Float[Tensor, "n c h w"]) -> Float[Tensor, "c"]:
    """Root of the mean squared error of the mean of the members, in the units of the channel.

    Raises ValueError as `crps` does.
    """
    return torch.stack([(x.mean(dim=0) - y).square().mean().sqrt() for x, y in _known(members, truth)])


def rank_histogram(
    members: Float[Tensor, "m _ _ _ _"], truth: Float[Tensor, "n c h w"], generator: torch.Generator
) -> Float[Tensor, "c ranks"]:
    """Share of the values that lie above so many members, from none to all m of them (Hamill 2001).

    It is flat, 1 / (m + 1), for members of the same distribution as the truth. Higher ends mean that the members are
    too alike, a slope that they are biased. A value that equals members has one of the ranks between them, drawn with
    `generator`, which is on the CPU. Raises ValueError as `crps` does.
    """
    ranks = [_ranks(x, y, generator).bincount(minlength=len(members) + 1) for x, y in _known(members, truth)]
    return torch.stack([counts.double() / counts.sum() for counts in ranks])


def check_members(members: Float[Tensor, "m _ _ _ _"], truth: Float[Tensor, "n c h w"]) -> None:
    """Raises ValueError for members that cannot be compared with `truth`."""
    if not len(members):
        raise ValueError("members=0 have no score; give at least 1")
    if members.shape[1:] != truth.shape:
        raise ValueError(f"members have the shape {tuple(members.shape[1:])}, but the truth {tuple(truth.shape)}")
    known = ~truth.isnan()
    if missing := [c for c, any_known in enumerate(known.any(dim=3).any(dim=2).any(dim=0).tolist()) if not any_known]:
        raise ValueError(f"channels {missing} of the truth are missing everywhere (NaN); leave them out")
    if bad := int((~members.isfinite() & known).sum()):
        raise ValueError(f"{bad} values of the members are not finite where the truth is known; draw them again")


def _known(members: Tensor, truth: Tensor) -> Iterator[tuple[Float[Tensor, "m k"], Float[Tensor, "k"]]]:
    """The known values of each channel, and those of the members in the same places."""
    check_members(members, truth)
    for c, known in enumerate((~truth.isnan()).unbind(dim=1)):
        yield members[:, :, c][:, known].double(), truth[:, c][known].double()


def _crps(members: Float[Tensor, "m k"], truth: Float[Tensor, "k"]) -> Float[Tensor, ""]:
    error = (members - truth).abs().mean()
    if (m := len(members)) == 1:
        return error
    # The sum of |x_i - x_j| over all pairs of sorted members counts the k-th one 2 k - m + 1 times.
    weights = 2 * torch.arange(m, device=members.device, dtype=members.dtype) - m + 1
    return error - (weights @ members.sort(dim=0).values).mean() / (m * (m - 1))


def _ranks(members: Float[Tensor, "m k"], truth: Float[Tensor, "k"], generator: torch.Generator) -> Tensor:
    below, equal = (members < truth).sum(dim=0), (members == truth).sum(dim=0)
    share = torch.rand(len(truth), generator=generator, dtype=torch.float64).to(truth.device)
    return below + (share * (equal + 1)).long()
