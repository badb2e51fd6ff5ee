"""Posterior samples of Gaussian random fields against their exact law, for several numbers of observed values.

    python -m benchmarks.gaussian_fields FOLDER --train 8000
    python train.py --data.source FOLDER/train/target.npy --data.normalisation mean_std --run RUN ...
    python -m benchmarks.posterior [RUN]

Random values of fields are observed with white noise, and members are drawn given them: by the network of RUN, or else
by the exact denoiser of the fields. There is a row for each share of observed values. All is in standard deviations of
the channels: that of the exact posterior; the error of the mean of the members, and that of as many exact members; the
distance of that mean from the exact one, in its standard errors (1: exact); and the standard deviation of the members,
divided by the exact one. Mean and standard deviation over the fields.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.gaussian_fields import DEVIATIONS, MEANS, GaussianFields
from diffusion import EDM, Condition, Denoiser, Formulation, Observation, choose_sampler, generators, posterior, sample
from diffusion.noise import Images, Times
from diffusion.posterior import ITERATIONS
from pictures.units import Units
from pipelines.diffusion_folder import load_model
from training.script import ScriptParser, command

COLUMNS = ("observed", "exact deviation", "error", "error, exact members", "distance of means", "deviation / exact")
LAW = GaussianFields(means=(0.0,) * len(MEANS), deviations=(1.0,) * len(MEANS))
"""of the fields, standardised"""
Fields = Float[Tensor, "n c h w"]
PerChannel = Float[Tensor, "c 1 1"]


@dataclass(frozen=True)
class Prior:
    """A denoiser of fields whose values are `shift + scale x` for standardised fields x."""

    denoise: Denoiser
    formulation: Formulation
    shift: PerChannel
    scale: PerChannel

    def members(
        self, observed: Fields, noise: float, count: int, steps: int, iterations: int
    ) -> Float[Tensor, "m n c h w"]:
        """Standardised fields given each observation, by `steps` of dpmpp_2m."""
        values = (self.shift + self.scale * observed).float().repeat(count, 1, 1, 1)
        observation = Observation(values, (noise * self.scale).float())
        denoise = posterior(self.denoise, observation, self.formulation, iterations=iterations)
        sampler, sources = choose_sampler("dpmpp_2m", self.formulation, steps), generators(0, range(len(values)))
        shape = values.shape[1], values.shape[2], values.shape[3]
        *_, x = sample(denoise, self.formulation, sampler, sources, shape, steps=steps)
        return ((x.double() - self.shift) / self.scale).unflatten(0, (count, -1))


def exact_prior() -> Prior:
    """The exact denoiser."""
    formulation = EDM(sigma_data=1.0)

    def denoise(x: Images, time: Times, condition: Condition) -> Images:
        return LAW.denoise(x.double(), time[0].item()).to(x)

    one = _column((1.0,) * len(MEANS))
    return Prior(denoise, formulation, 0 * one, one)


def trained_prior(run: Path) -> Prior:
    """The network of a run on fields of `benchmarks.gaussian_fields`. Raises ValueError for another one."""
    model = load_model(run)
    units, wanted = model.pixel_format, (len(MEANS), *LAW.size)
    if model.shape != wanted or not isinstance(units, Units):
        raise ValueError(
            f"{run} draws images of shape {model.shape} with values {units.about}; give a run on fields of shape "
            f"{wanted} with data.normalisation mean_std"
        )
    mean, std = map(_column, (units.mean, units.std))
    return Prior(model.denoiser(), model.formulation, (_column(MEANS) - mean) / std, _column(DEVIATIONS) / std)


def _column(values: Sequence[float]) -> PerChannel:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def exact_posterior(observed: Fields, noise: float) -> tuple[Fields, Fields]:
    """Mean and standard deviation of all values of fields, given those that are not NaN."""
    covariance, means, deviations = LAW.covariance(), list[Tensor](), list[Tensor]()
    for values in observed.flatten(1):
        known = ~values.isnan()
        shared = covariance[known]
        root = torch.linalg.cholesky(shared[:, known] + noise**2 * torch.eye(len(shared)))
        half = torch.linalg.solve_triangular(root, torch.cat([shared, values[known, None]], dim=1), upper=False)
        means.append(half[:, -1] @ half[:, :-1])
        deviations.append((covariance.diagonal() - half[:, :-1].square().sum(dim=0)).sqrt())
    return torch.stack(means).view_as(observed), torch.stack(deviations).view_as(observed)


def observe(share: float, noise: float, count: int, seed: int) -> tuple[Fields, Fields]:
    """Fields, and a random share of their values with noise; the others are NaN."""
    generator = torch.Generator().manual_seed(seed)
    truth = LAW.draw(count, generator)
    known = torch.rand(truth.shape, generator=generator) < share
    seen = truth + noise * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    return truth, seen.where(known, math.nan)


def compare(
    members: Float[Tensor, "m n c h w"], truth: Fields, mean: Fields, deviation: Fields
) -> Float[Tensor, "figures n"]:
    """The figures of a row for each field."""
    found, exact, root = members.mean(dim=0), _size(deviation), math.sqrt(len(members))
    errors = _size(found - truth), math.sqrt(1 + 1 / len(members)) * exact
    return torch.stack([exact, *errors, root * _size(found - mean) / exact, _size(members.std(dim=0)) / exact])


def _size(values: Fields) -> Float[Tensor, "n"]:
    """Root mean square of each field."""
    return values.square().mean(dim=(1, 2, 3)).sqrt()


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, draws, prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run on such fields")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0], help="of observed values")
    parser.add_argument("--noise", type=float, default=0.1, help="of observations, in deviations of the channels")
    parser.add_argument("--fields", type=int, default=4, help="fields that are observed")
    parser.add_argument("--members", type=int, default=16, help="images for each observation")
    parser.add_argument("--steps", type=int, default=32, help="of the sampler, dpmpp_2m")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of the solver in each step")
    args = parser.parse_args(argv)
    for name in ("fields", "members"):
        if (count := getattr(args, name)) < 2:
            raise ValueError(f"--{name}={count} has no spread; give at least 2")
    prior = exact_prior() if args.run is None else trained_prior(args.run)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for share in args.shares:
        truth, observed = observe(share, args.noise, args.fields, seed=0)
        members = prior.members(observed, args.noise, args.members, args.steps, args.iterations)
        found = compare(members, truth, *exact_posterior(observed, args.noise))
        texts = (f"{row.mean():.3f} ± {row.std():.3f}" for row in found)
        print(f"| {share:.0%} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
