import math

import pytest
import torch
from torch.testing import assert_close

from diffusion import (
    PRECONDITIONINGS,
    NetDenoiser,
    Preconditioned,
    Schedule,
    SigmaDenoiser,
    edm,
    iddpm,
    ve,
    vp,
)
from diffusion.precondition import iddpm_levels, vp_sigma, vp_time
from tests.golden.fill import golden_input
from tests.golden.networks import GOLDEN, PRECONDITIONED, check_output, label, network

SIGMA = torch.tensor([0.002, 0.35, 1.0, 4.2, 80.0])


def images(n: int = len(SIGMA)) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, 4, 2, generator=g) * 2 - 1, torch.randn(n, 3, 4, 2, generator=g)


def coefficients(by, sigma=SIGMA) -> list[list[float]]:
    return [c(sigma).tolist() for c in (by.c_skip, by.c_out, by.c_in, by.c_noise)]


def vp_timestep(s: float) -> float:
    return 999 * (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + s * s)) - 0.1) / 19.9


@pytest.mark.parametrize(
    ("by", "row"),
    [
        (vp(), lambda s: (1, -s, 1 / math.sqrt(s * s + 1), vp_timestep(s))),
        (ve(), lambda s: (1, s, 1, math.log(0.5 * s))),
        (
            edm(),
            lambda s: (
                0.25 / (s * s + 0.25),
                0.5 * s / math.sqrt(s * s + 0.25),
                1 / math.sqrt(s * s + 0.25),
                math.log(s) / 4,
            ),
        ),
    ],
    ids=["vp", "ve", "edm"],
)
def test_coefficients_are_those_of_table_1(by, row) -> None:
    expected = [row(s) for s in SIGMA.double().tolist()]
    for got, want in zip(coefficients(by), zip(*expected, strict=True), strict=True):
        assert got == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.1])
def test_edm_has_unit_variance_at_both_ends_of_the_network(sigma_data: float) -> None:
    c_skip, c_out, c_in, _ = (torch.tensor(c, dtype=torch.float64) for c in coefficients(edm(sigma_data)))
    sigma, one = SIGMA.double(), torch.ones(len(SIGMA), dtype=torch.float64)
    assert_close(c_in**2 * (sigma**2 + sigma_data**2), one, rtol=1e-6, atol=0)
    # The answer that gives x0 is ((1 - c_skip) x0 - c_skip sigma noise) / c_out.
    variance = ((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2) / c_out**2
    assert_close(variance, one, rtol=1e-3, atol=0)  # 1 - c_skip cancels in float32 at the lowest level


def test_edm_input_has_unit_variance() -> None:
    g = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(5, 3, 64, 64, generator=g) + SIGMA[:, None, None, None] * torch.randn(
        5, 3, 64, 64, generator=g
    )
    seen = []
    Preconditioned(lambda x, t, label: seen.append(x) or x, edm())(x, SIGMA)
    assert seen[0].flatten(1).std(dim=1).tolist() == pytest.approx([1] * 5, abs=0.03)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_without_noise_the_guess_is_the_image(name: str) -> None:
    x0, _ = images()
    denoise = Preconditioned(lambda x, t, label: x.sin() + 1, PRECONDITIONINGS[name]())
    assert isinstance(denoise, SigmaDenoiser)
    assert_close(denoise(x0, torch.full((5,), 1e-7)), x0, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "sign"), [("vp", 1), ("iddpm", 1), ("ve", -1)])
def test_the_right_noise_gives_the_clean_image(name: str, sign: int) -> None:
    x0, noise = images()
    denoise = Preconditioned(lambda x, t, label: sign * noise, PRECONDITIONINGS[name]())
    assert_close(denoise(x0 + SIGMA[:, None, None, None] * noise, SIGMA), x0, rtol=0, atol=3e-5)


def test_the_right_edm_answer_gives_the_clean_image() -> None:
    (x0, noise), by = images(), edm()
    c_skip, c_out = (c(SIGMA)[:, None, None, None] for c in (by.c_skip, by.c_out))
    x = x0 + SIGMA[:, None, None, None] * noise
    answer = (x0 - c_skip * x) / c_out
    assert_close(Preconditioned(lambda x, t, label: answer, by)(x, SIGMA), x0, rtol=0, atol=3e-5)


def test_variance_preserving_time_and_level_are_inverse() -> None:
    t = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 1.0])
    assert_close(vp_time(vp_sigma(t)), t, rtol=1e-5, atol=0)
    assert_close(vp_sigma(vp_time(SIGMA)), SIGMA, rtol=1e-5, atol=0)
    by = vp()
    assert (by.sigma_min, by.sigma_max) == pytest.approx((0.0010005, 152.17), rel=1e-4)
    assert by.c_noise(torch.tensor([by.sigma_max])).item() == pytest.approx(999, rel=1e-6)


def test_variance_preserving_is_the_linear_schedule_in_continuous_time() -> None:
    alpha, sigma = Schedule(name="linear").at(torch.tensor([99, 499, 998]))
    assert_close((sigma / alpha).ravel(), vp_sigma(torch.tensor([0.1, 0.5, 0.999])), rtol=0.04, atol=0)


def test_iddpm_levels_follow_their_recursion() -> None:
    u = iddpm_levels(timesteps=50).double()

    def alpha2(j: int) -> float:
        return math.sin(math.pi / 2 * j / (50 * 1.008)) ** 2

    level, expected = 0.0, []
    for j in range(50, 0, -1):
        level = math.sqrt((level**2 + 1) / max(alpha2(j - 1) / alpha2(j), 0.001) - 1)
        expected.append(level)
    assert u.flip(0).tolist() == pytest.approx(expected, rel=1e-6)


def test_iddpm_is_the_cosine_schedule() -> None:
    t, schedule = torch.tensor([3, 250, 500, 750, 999]), Schedule(name="cosine")
    alpha, sigma = schedule.at(t)
    by = iddpm()
    ratio = (sigma / alpha).ravel()
    assert_close(by.round_sigma(ratio), ratio, rtol=5e-4, atol=0)  # the schedule's betas are float32
    assert by.c_noise(ratio).tolist() == t.tolist()
    assert (by.sigma_min, by.sigma_max) == pytest.approx((iddpm_levels()[-1].item(), iddpm_levels()[0].item()))

    def net(x, t, label):
        return (x * 3).sin() + t[:, None, None, None] / 1000

    x0, noise = images()
    x = x0 + (sigma / alpha) * noise
    with_timesteps = NetDenoiser(net, schedule)(alpha * x, t)
    assert_close(Preconditioned(net, by)(x, ratio), with_timesteps, rtol=2e-4, atol=2e-4)


def test_levels_are_rounded_to_the_nearest_that_the_network_knows() -> None:
    u, by = iddpm_levels(), iddpm()
    assert torch.equal(by.round_sigma(u), u)
    assert by.c_noise(u).tolist() == list(range(999, -1, -1))
    between = u[:-1].lerp(u[1:], 0.4)
    assert torch.equal(by.round_sigma(between), u[:-1])
    assert by.c_noise(torch.tensor([0.0, 1e9])).tolist() == [0, 999]
    for name in ("edm", "ve", "vp"):
        assert torch.equal(PRECONDITIONINGS[name]().round_sigma(SIGMA), SIGMA)


def test_limits() -> None:
    assert (edm().sigma_min, edm().sigma_max) == (0, math.inf)
    assert (ve().sigma_min, ve().sigma_max) == (0.02, 100)
    with pytest.raises(ValueError, match="sigma_data=0 should be the standard deviation"):
        edm(0)


def test_everything_but_the_network_is_float32() -> None:
    x0, _ = images()
    seen = []

    def net(x, t, label):
        seen.append((x.dtype, t.dtype))
        return x.bfloat16()

    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert Preconditioned(net, edm())(x0.to(dtype), SIGMA.to(dtype)).dtype == dtype
    assert set(seen) == {(torch.float32, torch.float32)}


def test_labels_reach_the_network_and_variances_are_left_out() -> None:
    x0, _ = images()
    label = torch.tensor([3, 1, 4, 1, 5])

    def net(x, t, label):
        return torch.cat([x * label[:, None, None, None], x + 9], dim=1)

    got = Preconditioned(net, ve())(x0, SIGMA, label)
    assert_close(got, x0 + (SIGMA * label)[:, None, None, None] * x0)


def test_one_image_does_not_see_another() -> None:
    x0, _ = images()
    for make in PRECONDITIONINGS.values():
        denoise = Preconditioned(lambda x, t, label: x + t[:, None, None, None], make())
        assert_close(denoise(x0, SIGMA)[2:3], denoise(x0[2:3], SIGMA[2:3]), rtol=0, atol=0)


@pytest.mark.parametrize("row", PRECONDITIONED)
def test_the_published_networks(row: str) -> None:
    """The recorded outputs of EDM's and EDM2's own wrappers, around our networks with the same weights."""
    given, net = GOLDEN[row]["inputs"], network(row)
    x, sigma = golden_input(tuple(GOLDEN[row]["output_shape"]), "x"), torch.tensor(given["sigma"])
    with torch.no_grad():
        check_output(row, Preconditioned(net, edm())(x, sigma, label(row)))
        with pytest.raises(AssertionError):
            check_output(row, Preconditioned(net, edm(0.5001))(x, sigma, label(row)))
