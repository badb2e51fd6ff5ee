"""Gaussian random fields seen through blur, down-sampling and noise: pairs whose conditional law is known.

python -m benchmarks.gaussian_fields FOLDER --train 4000 --test 500

writes FOLDER/train and FOLDER/test, each with target.npy (images, 5, 24, 40) and input.npy (images, 5, 12, 20), and
prints the scores that the exact conditional law reaches.

python sample.py RUN --condition FOLDER/test/input.npy --members 8 --num 800 --out DRAWN
python -m benchmarks.gaussian_fields FOLDER --drawn DRAWN [DRAWN ...]

compares drawn ensembles with that law: a row for each, below that of exact members of equal number. The lowest and the
highest value of all channels are shown, and those of all wave numbers of the spectrum.

A field is a sum of modes: cosines in height (DCT-II), which a mirror at the edges continues, and waves around the
width, which is periodic. Each mode has an independent normal amplitude, correlated between the channels. So the law is
stationary in width, and the variance is larger near the upper and the lower edge. The input is the field after a
Gaussian blur, the mean of 2x2 pixels, and white noise. Blur keeps the modes apart, and down-sampling adds up four of
them. So the field given the input is Gaussian, and couples groups of four modes of all channels: small linear systems.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from metrics import crps, ensemble_rmse, power_spectrum, spread_skill
from metrics.spectrum import by_wave_number
from storage.read import is_regular
from storage.write import replace_file
from training.script import ScriptParser, command

CHANNELS = {
    "temperature (K)": (280.0, 8.0, 6.0),
    "pressure (Pa)": (1e5, 600.0, 8.0),
    "humidity (kg/kg)": (5e-3, 1e-3, 4.0),
    "eastward wind (m/s)": (3.0, 5.0, 3.0),
    "northward wind (m/s)": (0.0, 4.0, 3.0),
}
"""mean, standard deviation, and correlation length in pixels"""
MEANS, DEVIATIONS, LENGTHS = zip(*CHANNELS.values(), strict=True)
COLUMNS = ("CRPS / optimum", "RMSE / optimum", "spread / error", "spectrum / exact")
PERIODIC = (False, True)
"""height and width; see `metrics.power_spectrum`"""
Axis = tuple[Complex[Tensor, "side side"], Float[Tensor, "side"]]
"""the unitary matrix from pixels to modes, and the cycles per pixel of each mode"""


@dataclass(frozen=True)
class GaussianFields:
    """The joint law of fields and inputs, in float64 and in units of the channels."""

    size: tuple[int, int] = (24, 40)
    """height and width in pixels, both even"""
    means: tuple[float, ...] = MEANS
    deviations: tuple[float, ...] = DEVIATIONS
    """standard deviation of each channel, over fields and pixels"""
    lengths: tuple[float, ...] = LENGTHS
    """correlation length of each channel in pixels: far from the edges, the covariance is exp(-distance / length)"""
    correlation: float = 0.6
    """of the amplitudes of neighbouring channels; of others a power of it"""
    blur: float = 1.0
    """standard deviation of the blur in pixels"""
    noise: float = 0.1
    """standard deviation of the noise of an input, in deviations of its channel"""

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Fields, without regard to any input."""
        white = torch.randn(n, len(self.means), *self.size, generator=generator, dtype=torch.float64)
        mixed = torch.einsum("cd,ndyx->ncyx", torch.linalg.cholesky(self._mixing), white)
        return self._mean + _from_modes(self._amplitudes * _to_modes(mixed, self._axes), self._axes)

    def observe(self, fields: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h2 w2"]:
        """The inputs of these fields."""
        height, width = self._seen
        seen = height @ fields @ width.mT
        return seen + self._noise * torch.randn(seen.shape, generator=generator, dtype=torch.float64)

    def posterior_mean(self, inputs: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n c h w"]:
        """The mean of all fields with these inputs: what a perfect regression predicts."""
        modes = torch.zeros(*inputs.shape[:2], *self.size, dtype=torch.complex128)
        seen = _to_modes(inputs - self._mean, self._seen_axes)
        modes[..., *self._groups] = torch.einsum("abcjd,ndab->ncabj", self._gain, seen)
        return self._mean + _from_modes(modes, self._axes)

    def posterior_samples(
        self, inputs: Float[Tensor, "n c h2 w2"], m: int, generator: torch.Generator
    ) -> Float[Tensor, "m n c h w"]:
        """Independent members of the law of the fields with these inputs.

        A field drawn without regard to the inputs is moved by the difference of the two posterior means (Matheron's
        rule; Journel & Huijbregts 1978).
        """
        fields = self.draw(m * len(inputs), generator)
        other = self.posterior_mean(self.observe(fields, generator))
        return (fields - other).unflatten(0, (m, len(inputs))) + self.posterior_mean(inputs)

    def denoise(self, noisy: Float[Tensor, "n c h w"], noise: float) -> Float[Tensor, "n c h w"]:
        """The mean of all fields that white noise makes `noisy`. `noise` is its deviation in those of the channels."""
        clean = self._mixing * (self._amplitudes[:, None] * self._amplitudes).movedim((0, 1), (2, 3))
        scale = self._column(self.deviations)
        spread = torch.diag((noise * scale).flatten().square())
        gain = torch.linalg.solve(clean + spread, clean).to(torch.complex128)
        modes = torch.einsum("yxdc,ndyx->ncyx", gain, _to_modes(noisy - self._mean, self._axes))
        return self._mean + _from_modes(modes, self._axes)

    def covariance(self) -> Float[Tensor, "p p"]:
        """Of all values of a field, in the order of `flatten`."""
        (height, _), (width, _) = self._axes
        modes = torch.kron(height, width)
        amplitudes = self._amplitudes.flatten(1)
        rows = [[((modes.mH * (mine * its)) @ modes).real for its in amplitudes] for mine in amplitudes]
        blocks = torch.stack([torch.stack(row) for row in rows]) * self._mixing[:, :, None, None]
        return blocks.movedim(2, 1).flatten(2).flatten(0, 1)

    @cached_property
    def posterior_deviation(self) -> Float[Tensor, "c h w"]:
        """Standard deviation of each pixel, which is the same for all inputs."""
        rows, columns = self._groups
        (height, _), (width, _) = self._axes
        basis = (height[rows][..., :, None] * width[columns][..., None, :]).conj()
        half = torch.einsum("abcjk,abkyx->abcjyx", self._covariance, basis.conj())
        return torch.einsum("abjyx,abcjyx->cyx", basis, half).real.sqrt()

    @cached_property
    def optimal_crps(self) -> Float[Tensor, "c"]:
        """CRPS of the exact law: that of a normal distribution with deviation s is s / sqrt(pi)."""
        return self.posterior_deviation.mean(dim=(1, 2)) / math.sqrt(math.pi)

    @cached_property
    def optimal_rmse(self) -> Float[Tensor, "c"]:
        """Error of the posterior mean; that of the mean of m exact members is sqrt((m + 1) / m) times as large."""
        return self.posterior_deviation.square().mean(dim=(1, 2)).sqrt()

    @cached_property
    def spectrum(self) -> Float[Tensor, "c waves"]:
        """The expected `power_spectrum` of fields, with axes as in `PERIODIC`."""
        return self._by_wave_number(self._amplitudes.square())

    def posterior_spectrum(self, inputs: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "c waves"]:
        """The expected `power_spectrum` of fields with these inputs: that of their mean, and that of their spread."""
        spread = torch.zeros_like(self._amplitudes)
        spread[:, *self._groups] = self._covariance.diagonal(dim1=3, dim2=4).real.movedim(2, 0)
        return power_spectrum(self.posterior_mean(inputs), PERIODIC) + self._by_wave_number(spread)

    def _by_wave_number(self, variance: Float[Tensor, "c h w"]) -> Float[Tensor, "c waves"]:
        power, shorter = variance / math.prod(self.size), min(self.size)
        power[:, 0, 0] = 0
        return by_wave_number(power, shorter * self._frequency, shorter // 2)

    @cached_property
    def _axes(self) -> tuple[Axis, Axis]:
        return _cosines(self.size[0]), _waves(self.size[1])

    @cached_property
    def _seen_axes(self) -> tuple[Axis, Axis]:
        return _cosines(self.size[0] // 2), _waves(self.size[1] // 2)

    @cached_property
    def _frequency(self) -> Float[Tensor, "h w"]:
        """Cycles per pixel of each mode."""
        (_, height), (_, width) = self._axes
        return torch.hypot(height[:, None], width)

    @cached_property
    def _amplitudes(self) -> Float[Tensor, "c h w"]:
        """Standard deviation of each mode. The exponent is that of the exponential covariance in the plane."""
        power = (1 + (math.tau * self._column(self.lengths) * self._frequency).square()) ** -1.5
        return self._column(self.deviations) * (power / power.mean(dim=(1, 2), keepdim=True)).sqrt()

    @cached_property
    def _mixing(self) -> Float[Tensor, "c c"]:
        """Correlation of the same mode of two channels."""
        number = torch.arange(len(self.means))
        return self.correlation ** (number[:, None] - number).abs().double()

    @cached_property
    def _mean(self) -> Float[Tensor, "c 1 1"]:
        return self._column(self.means)

    @cached_property
    def _noise(self) -> Float[Tensor, "c 1 1"]:
        return self.noise * self._column(self.deviations)

    def _column(self, values: Sequence[float]) -> Float[Tensor, "c 1 1"]:
        return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)

    @cached_property
    def _seen(self) -> tuple[Float[Tensor, "h2 h"], Float[Tensor, "w2 w"]]:
        """Blur and down-sampling of the height and of the width."""
        height, width = (_halved(_blurred(axis, self.blur)) for axis in self._axes)
        return height, width

    @cached_property
    def _groups(self) -> tuple[Int[Tensor, "a b 4"], Int[Tensor, "a b 4"]]:
        """Numbers in height and in width of the four modes that mode a, b of the input adds up."""
        h, w = self.size
        a, b = torch.arange(h // 2), torch.arange(w // 2)
        rows = torch.stack([a, torch.where(a == 0, h // 2, h - a)], dim=1)  # h / 2 is never seen
        columns = torch.stack([b, b + w // 2], dim=1)
        shape = (h // 2, w // 2, 2, 2)
        return (
            rows[:, None, :, None].expand(shape).flatten(start_dim=2),
            columns[None, :, None, :].expand(shape).flatten(start_dim=2),
        )

    @cached_property
    def _response(self) -> Complex[Tensor, "a b 4"]:
        """How strongly the mode of the input has each mode of its group."""
        height, width = (
            small @ seen.to(small) @ modes.mH
            for (small, _), seen, (modes, _) in zip(self._seen_axes, self._seen, self._axes, strict=True)
        )
        rows, columns = self._groups
        return (
            height[torch.arange(len(height))[:, None, None], rows] * width[torch.arange(len(width))[:, None], columns]
        )

    @cached_property
    def _shared(self) -> Complex[Tensor, "a b c 4 c"]:
        """Covariance of the modes of each channel with the mode of the input in each channel."""
        amplitudes = self._amplitudes[:, *self._groups]
        return torch.einsum("abj,cd,cabj,dabj->abcjd", self._response.conj(), self._mixing, amplitudes, amplitudes)

    @cached_property
    def _gain(self) -> Complex[Tensor, "a b c 4 c"]:
        """The matrix by which the mode of the input moves the mean of the modes."""
        seen = torch.einsum("abj,abcjd->abcd", self._response, self._shared)
        seen = seen + torch.diag(self._noise.flatten().square())
        return self._shared @ torch.linalg.inv(seen)[:, :, None]

    @cached_property
    def _covariance(self) -> Complex[Tensor, "a b c 4 4"]:
        """Covariance of the modes of a group in each channel, of fields with the same input."""
        own = torch.diag_embed(self._amplitudes[:, *self._groups].square()).movedim(0, 2)
        return own - torch.einsum("abcjd,abckd->abcjk", self._gain, self._shared.conj())


def _cosines(side: int) -> Axis:
    """Modes of an axis that a mirror continues at both ends: the orthonormal DCT-II."""
    number, place = (torch.arange(side, dtype=torch.float64) for _ in range(2))
    modes = (2 / side) ** 0.5 * (math.pi / side * number[:, None] * (place + 0.5)).cos()
    modes[0] /= 2**0.5
    return modes.to(torch.complex128), number / (2 * side)


def _waves(side: int) -> Axis:
    """Modes of a periodic axis: the unitary Fourier transform."""
    return torch.fft.fft(torch.eye(side, dtype=torch.complex128), norm="ortho"), torch.fft.fftfreq(side).double().abs()


def _blurred(axis: Axis, deviation: float) -> Float[Tensor, "side side"]:
    """The matrix of a Gaussian blur, whose deviation is in pixels."""
    modes, frequency = axis
    response = (-2 * (math.pi * deviation * frequency).square()).exp()
    return ((modes.mH * response) @ modes).real


def _halved(pixels: Float[Tensor, "side n"]) -> Float[Tensor, "half n"]:
    """The means of two rows each."""
    return pixels.unflatten(0, (-1, 2)).mean(dim=1)


def _to_modes(fields: Float[Tensor, "n c h w"], axes: tuple[Axis, Axis]) -> Complex[Tensor, "n c h w"]:
    (height, _), (width, _) = axes
    return height @ fields.to(height) @ width.mT


def _from_modes(modes: Complex[Tensor, "n c h w"], axes: tuple[Axis, Axis]) -> Float[Tensor, "n c h w"]:
    (height, _), (width, _) = axes
    return (height.mH @ modes @ width.conj()).real


def read_members(folder: Path) -> Float[Tensor, "m n c h w"]:
    """The images that sample.py drew for conditions, by their member and condition.

    Raises ValueError for a folder that has no complete ensembles.
    """
    if not is_regular(table := folder / "conditions.csv"):
        raise ValueError(f"{table} is missing; give a folder of sample.py --condition --members")
    with table.open(encoding="utf-8", newline="") as file:
        rows = {(int(row["member"]), int(row["condition"])): row["file"] for row in csv.DictReader(file)}
    members, conditions = (1 + max(key[place] for key in rows) for place in (0, 1))
    if len(rows) != members * conditions:
        raise ValueError(
            f"{table} has {len(rows)} images, which are no {members} members of {conditions} conditions; give a --num "
            "that --members divides"
        )
    images = [[np.load(folder / "images" / rows[m, n]) for n in range(conditions)] for m in range(members)]
    return torch.from_numpy(np.array(images)).double()


def compare(
    law: GaussianFields,
    inputs: Float[Tensor, "n c h2 w2"],
    truth: Float[Tensor, "n c h w"],
    members: Float[Tensor, "m _ _ _ _"],
) -> dict[str, Float[Tensor, "..."]]:
    """Scores of members for these inputs in units of those of as many exact members.

    The RMSE of the exact mean, such as that of a perfect regression, is therefore sqrt(m / (m + 1)). Raises ValueError
    as `metrics.crps` does.
    """
    m = len(members)
    found = {"CRPS / optimum": crps(members, truth) / law.optimal_crps}
    found["RMSE / optimum"] = ensemble_rmse(members, truth) / (math.sqrt((m + 1) / m) * law.optimal_rmse)
    if m > 1:
        found["spread / error"] = spread_skill(members, truth)
    exact = law.posterior_spectrum(inputs)
    return found | {"spectrum / exact": (power_spectrum(members.flatten(0, 1), PERIODIC) / exact)[:, 1:]}


def print_comparison(law: GaussianFields, folder: Path, drawn: Sequence[Path], generator: torch.Generator) -> None:
    """A table of the ensembles in folders of sample.py, for the first pairs of `folder`."""
    inputs, truth = (torch.from_numpy(np.load(folder / f"{name}.npy")).double() for name in ("input", "target"))
    print(f"| members | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}")
    for path in drawn:
        members = read_members(path)
        m, n = members.shape[:2]
        exact = law.posterior_samples(inputs[:n], m, generator)
        for name, each in ((f"exact, {m} x {n}", exact), (f"{path.name}, {m} x {n}", members)):
            found = compare(law, inputs[:n], truth[:n], each)
            texts = (f"{found[x].min():.3f} to {found[x].max():.3f}" if x in found else "" for x in COLUMNS)
            print(f"| {name} | {' | '.join(texts)} |", flush=True)


def write_pairs(law: GaussianFields, folder: Path, count: int, generator: torch.Generator) -> None:
    """Writes target.npy and input.npy."""
    fields = law.draw(count, generator)
    folder.mkdir(parents=True, exist_ok=True)
    write_array(folder / "target.npy", fields)
    write_array(folder / "input.npy", law.observe(fields, generator))


def write_array(path: Path, values: Float[Tensor, "n c h w"]) -> None:
    """Replaces a .npy file by these values in float32."""

    def write(new: Path) -> None:
        with new.open("wb") as file:
            np.save(file, values.float().numpy())

    replace_file(path, write, flush=False)


@command
def main(argv: Sequence[str]) -> None:
    """Writes both sets and prints what the exact law reaches, or compares ensembles."""
    p = ScriptParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="folder of the pairs")
    p.add_argument("--train", type=int, default=4000, help="pairs for training")
    p.add_argument("--test", type=int, default=500, help="pairs for the scores")
    p.add_argument("--seed", type=int, default=0, help="seed of the fields and of the noise")
    p.add_argument("--drawn", type=Path, nargs="+", help="compare folders of sample.py instead of writing pairs")
    args = p.parse_args(argv)
    law, generator = GaussianFields(), torch.Generator().manual_seed(args.seed)
    if args.drawn is not None:
        print_comparison(law, args.folder / "test", args.drawn, generator)
        return
    for name in ("train", "test"):
        if (count := getattr(args, name)) < 1:
            raise ValueError(f"--{name}={count} is too small; give at least 1 pair")
    for name in ("train", "test"):
        write_pairs(law, args.folder / name, getattr(args, name), generator)
    print("| channel | CRPS | RMSE of the mean | deviation |\n|---|---|---|---|")
    for row in zip(CHANNELS, law.optimal_crps.tolist(), law.optimal_rmse.tolist(), law.deviations, strict=True):
        print("| {} | {:.4g} | {:.4g} | {:.4g} |".format(*row))


if __name__ == "__main__":
    main()
