"""Averages of a run, chosen after it: those in its checkpoints, and any width reconstructed from its snapshots.

The reconstruction is that of Karras et al. 2024, “Analyzing and improving the training dynamics of diffusion models”,
section 3 and appendix C.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from residual.names import amount, shorten
from residual.weights.read import read_weights
from training import checkpoint
from training.ema import MAIN, MAX_WIDTH, MIN_WIDTH, average_name, power_exponent
from training.output_folder import model_home
from training.run_folder import RunFolder
from training.snapshots import list_snapshots
from training.yaml_file import read_settings

M = TypeVar("M")
MAX_ERROR = 0.05
"""relative error of a reconstruction that is still accepted"""
_CUTOFF = 1e-9
"""of singular values. A smaller one would give coefficients that multiply the rounding of float32"""


@dataclass(frozen=True)
class Profiles:
    """Power-function averages as functions of time: the weight, at `end`, of the weights at each time before.

    The profile of an exponent γ is `(γ + 1) τ^γ / end^(γ + 1)` for `0 < τ <= end`. Its integral is 1.
    """

    exponent: Float64[np.ndarray, "n"]
    end: Float64[np.ndarray, "n"]

    @classmethod
    def of(cls, widths: Iterable[float], ends: Iterable[float]) -> "Profiles":
        """The profiles of widths (relative standard deviations) that end at these times, in any unit."""
        return cls(np.array([power_exponent(width) for width in widths]), np.array(list(ends), dtype=float))

    def inner(self, other: "Profiles") -> Float64[np.ndarray, "n m"]:
        """The integral over time of the product of each of these with each of the `other` profiles, in closed form."""
        (a, b), (s, t) = np.ix_(self.exponent, other.exponent), np.ix_(self.end, other.end)
        shorter, longer = np.minimum(s, t), np.maximum(s, t)
        powers = (shorter / s) ** a * (shorter / t) ** b
        return np.asarray((a + 1) * (b + 1) / (a + b + 1) * powers / longer)


def fit(known: Profiles, wanted: Profiles) -> tuple[Float64[np.ndarray, "n m"], Float64[np.ndarray, "m"]]:
    """The sums of `known` profiles that are nearest to each of the `wanted` ones: coefficients, and relative errors.

    Least squares over time. The coefficients of each sum to 1, so that weights that never changed are exact. The error
    is the norm of the difference, divided by the norm of the wanted profile.
    """
    norm, goal = (np.sqrt(np.diag(each.inner(each))) for each in (known, wanted))
    products = known.inner(known) / np.outer(norm, norm)
    aims = known.inner(wanted) / np.outer(norm, goal)
    ones = (norm.min() / norm)[:, None]  # the sum of the coefficients, scaled
    system = np.block([[products, ones], [ones.T, np.zeros((1, 1))]])
    found = np.linalg.lstsq(system, np.vstack([aims, norm.min() / goal]), rcond=_CUTOFF)[0][:-1]
    squares = 1 - 2 * (found * aims).sum(axis=0) + (found * (products @ found)).sum(axis=0)
    return found * goal / norm[:, None], np.sqrt(np.maximum(squares, 0))


@dataclass(frozen=True)
class Average:
    """An average of the weights of a run: a sum of files, each times its coefficient."""

    name: str
    """as in the option: 0.05, 50000"""
    about: str
    """what it is, in words"""
    images: int
    """images seen by its last weights"""
    parts: tuple[tuple[float, Path], ...]
    error: float = 0.0
    """relative error of the reconstruction"""

    def weights(self) -> dict[str, Tensor]:
        """Its tensors on the CPU, in float32. Integers are those of the last part.

        Raises ValueError if a file is missing or damaged, or if the files have other names or shapes.
        """
        total: dict[str, Tensor] = {}
        for factor, path in self.parts:
            state = read_weights(path)
            if total and {name: each.shape for name, each in state.items()} != {
                name: each.shape for name, each in total.items()
            }:
                raise ValueError(
                    f"{path} has other weights than {self.parts[0][1].name}, so it is of another run; remove it"
                )
            for name, value in state.items():
                if not value.is_floating_point():
                    total[name] = value
                elif name in total:
                    total[name] += factor * value.double()
                else:
                    total[name] = factor * value.double()
        return {name: value.float() if value.is_floating_point() else value for name, value in total.items()}


def load_average(load: Callable[..., M], run: str, average: Average | None) -> M:
    """The model that `load` opens, such as `load_model`, with the weights of another average of its run, or unchanged.

    The record that `load` returns has the field `images_seen`. Raises ValueError as `load` and `Average.weights` do.
    """
    if average is None:
        return load(run)
    model: Any = load(run, average.weights())
    return replace(model, images_seen=average.images)


class RunAverages:
    """The averages that a run folder has. Raises ValueError for a folder that is not that of a run."""

    def __init__(self, run: str) -> None:
        home = model_home(run)
        if home is None or not (home / "config.yaml").is_file():
            raise ValueError(f"ema needs a run folder of train.py, with its checkpoints and snapshots, but got {run!r}")
        self.folder = RunFolder(home)
        settings, _ = read_settings(self.folder.config, is_record=True)
        if (rank := settings.get("lora.rank")) is not None:
            raise ValueError(
                f"{home} trained LoRA (lora.rank={rank}), which has only the average of its model; leave ema out"
            )
        more = settings.get("ema.more_halflife_images")
        more = more if isinstance(more, list) else []  # a record that was edited by hand may hold anything
        self.main: Any = settings.get("ema.halflife_images")
        """the half-life of the main average, in images"""
        self.halflives = [each for each in (self.main, *more) if isinstance(each, int)]
        """of all averages that are in the checkpoints"""
        self.snapshots = list_snapshots(self.folder.snapshots)

    def choose(self, value: float) -> Average:
        """The average with a half-life of `value` images, or from the snapshots with the width `value`, below 1.

        Raises ValueError, with what the run has, if it has no such half-life, if the width is out of range, if there
        are no snapshots, and if the relative error of the reconstruction exceeds `MAX_ERROR`.
        """
        if not (0 < value < 1 or (value >= 1 and float(value).is_integer())):
            raise ValueError(f"ema={value:g} is neither a width below 1 nor a half-life in images; {self._listed()}")
        return self._reconstructed(value) if value < 1 else self._tracked(int(value))

    def _tracked(self, halflife: int) -> Average:
        if halflife not in self.halflives:
            raise ValueError(f"ema={halflife} is not a half-life in images that the run tracked; {self._listed()}")
        saved, damaged = checkpoint.newest(self.folder.checkpoints)
        if saved is None:
            raise ValueError(f"ema={halflife} needs a checkpoint, but {self.folder.checkpoints} has none; train first")
        for folder, problem in damaged.items():  # newer than the one that is intact
            raise ValueError(f"ema={halflife} needs {folder}, which is damaged: {problem}; restore it, or train on")
        name = MAIN if halflife == self.main else average_name(halflife)
        about = f"average with a half-life of {halflife:,} images"
        return Average(str(halflife), about, saved.images, ((1.0, saved.folder / f"{name}.safetensors"),))

    def _reconstructed(self, width: float) -> Average:
        if not self.snapshots or not MIN_WIDTH <= width <= MAX_WIDTH:
            raise ValueError(f"ema={width:g} is a width that the run cannot give; {self._listed()}")
        (coefficients,), (error,) = self._fit([width])
        if error > MAX_ERROR:
            raise ValueError(
                f"ema={width:g} would be reconstructed with a relative error of {error:.1%}, above {MAX_ERROR:.0%}; "
                f"{self._listed()}"
            )
        used = [
            (factor, snapshot.path)
            for factor, snapshot in zip(coefficients, self.snapshots, strict=True)
            if abs(factor) > _CUTOFF
        ]
        count = amount(len(used), "snapshot")
        about = f"average of width {width:g}, reconstructed from {count} with a relative error of {error:.2%}"
        return Average(f"{width:g}", about, self.snapshots[-1].images, tuple(used), error)

    def _fit(self, widths: Sequence[float]) -> tuple[list[list[float]], list[float]]:
        """For each width at the time of the last snapshot: a coefficient for each snapshot, and the relative error."""
        last = self.snapshots[-1].images
        known = Profiles.of((each.width for each in self.snapshots), (each.images / last for each in self.snapshots))
        coefficients, errors = fit(known, Profiles.of(widths, [1.0] * len(widths)))
        return coefficients.T.tolist(), errors.tolist()

    def _listed(self) -> str:
        """What the run has, for a message."""
        halflives = shorten(list(map(str, self.halflives))) or "none"
        widths = "none, because it has no snapshots (ema.power_widths)"
        if self.snapshots:
            tried = sorted(
                {*np.geomspace(MIN_WIDTH, MAX_WIDTH, 200).tolist(), *(each.width for each in self.snapshots)}
            )
            possible = [width for width, error in zip(tried, self._fit(tried)[1], strict=True) if error <= MAX_ERROR]
            widths = f"{possible[0]:.2g} to {possible[-1]:.2g}"
        return f"{self.folder.path} has half-lives: {halflives}; widths: {widths}"
