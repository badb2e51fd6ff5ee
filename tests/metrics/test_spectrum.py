"""Radial power spectra: Parseval's theorem, plane waves, and white noise."""

import math

import pytest
import torch
from torch.testing import assert_close

from metrics import power_spectrum, spectrum_error

BORDERS = [(True, True), (False, True), (True, False), (False, False)]


def fields(n: int = 3, c: int = 2, h: int = 24, w: int = 40) -> torch.Tensor:
    return 1e3 + torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("periodic", BORDERS)
@pytest.mark.parametrize("size", [(24, 40), (15, 8), (9, 9), (1, 7)])
def test_the_sum_is_the_variance(size: tuple[int, int], periodic: tuple[bool, bool]) -> None:
    x = fields(h=size[0], w=size[1])
    assert_close(power_spectrum(x, periodic).sum(dim=1), x.var(dim=(2, 3), correction=0).mean(dim=0))


@pytest.mark.parametrize(
    ("cycles", "periodic", "number"),
    [
        ((5, 0), (True, True), 5),
        ((0, 5), (True, True), 3),  # 5 cycles in 40 px are 3 in 24 px
        ((3, 5), (True, True), 4),  # sqrt(3² + 3²) = 4.24
        ((2.5, 0), (False, True), 3),
        ((2, 5), (False, False), 4),  # sqrt(2² + 3²) = 3.6
        ((11, 15), (True, True), 12),  # sqrt(11² + 9²) = 14.2, with all that are shorter than 2 px
    ],
)
def test_a_plane_wave_has_its_wave_number(
    cycles: tuple[float, float], periodic: tuple[bool, bool], number: int
) -> None:
    """Cosines of the middles of the pixels, which a mirror at the border continues."""
    y, x = (
        math.tau * k * (torch.arange(n, dtype=torch.float64) + 0.5) / n for k, n in zip(cycles, (24, 40), strict=True)
    )
    wave = 7.0 * y.cos()[:, None] * x.cos()
    spectrum = power_spectrum(wave[None, None], periodic)
    expected = torch.zeros_like(spectrum)
    expected[0, number] = wave.square().mean()
    assert_close(spectrum, expected)


def test_the_spectrum_is_the_mean_over_fields_of_each_channel() -> None:
    x = fields()
    x[:, 1] *= 10
    each = torch.stack([power_spectrum(field[None]) for field in x])
    assert_close(power_spectrum(x), each.mean(dim=0))
    assert_close(power_spectrum(x)[1:], power_spectrum(x[:, 1:]))


def test_white_noise_has_power_by_the_number_of_waves() -> None:
    x = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    k = torch.fft.fftfreq(16, 1 / 16)
    waves = (torch.hypot(k[:, None], k) + 0.5).long().clamp(max=8).flatten().bincount()
    waves[0] = 0  # the mean
    assert_close(power_spectrum(x)[0, 1:], waves[1:].double() / 256, rtol=0.1, atol=0)


def test_only_the_mirror_image_hides_the_jump_between_two_ends() -> None:
    slope = torch.linspace(0, 1, 32, dtype=torch.float64)[:, None].expand(1, 1, 32, 32)
    ends, mirrored = power_spectrum(slope), power_spectrum(slope, (False, True))
    assert mirrored[0, 8:].sum() < 0.01 * ends[0, 8:].sum()


def test_the_error_is_the_largest_relative_deviation_where_there_is_power() -> None:
    reference = torch.tensor([[0.0, 2.0, 1.0], [0.0, 4.0, 0.0]])
    found = torch.tensor([[0.0, 2.2, 0.7], [1e-30, 4.0, 0.0]])
    assert_close(spectrum_error(found, reference), torch.tensor([0.3, 0.0]))


def test_fields_that_are_not_finite_are_refused() -> None:
    x = fields()
    x[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 3 fields"):
        power_spectrum(x)
