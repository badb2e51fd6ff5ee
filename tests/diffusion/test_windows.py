"""Fields in windows: the same field where windows do not matter, no seams where they do."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from benchmarks.windows import seams
from diffusion import EDM, Condition, choose_sampler, generators, sample
from diffusion.windows import AT_A_TIME, cover, windowed
from tests.diffusion.closed_form import ideal

TIME = torch.tensor([1.0, 0.3])


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("side", "window", "overlap"), [(16, 16, 8), (20, 8, 3), (9, 8, 7), (64, 16, 0), (7, 3, 1)])
def test_windows_cover_each_pixel_with_weights_that_sum_to_one(side, window, overlap, periodic) -> None:
    pixels, weights = cover(side, window, overlap, periodic)
    total = torch.zeros(side).index_add(0, pixels.flatten(), weights.flatten())
    assert_close(total, torch.ones(side))
    assert bool((weights > 0).all())
    steps = (pixels[1:, 0] - pixels[:-1, 0]).tolist()
    assert max([*steps, 0]) <= window - overlap
    assert max([*steps, 0]) - min([*steps, window]) <= 1
    if periodic:
        assert side - pixels[-1, 0] <= window - overlap
    else:
        assert [pixels[0, 0].item(), pixels[-1, -1].item()] == [0, side - 1]
        assert bool((pixels.diff(dim=1) == 1).all())


def test_weights_are_small_where_another_window_goes_on() -> None:
    _, weights = cover(24, 16, 8)
    assert weights[0, -1] < 0.01
    assert_close(weights[0, :8], torch.ones(8))
    assert_close(weights[0, 8:] + weights[1, :8], torch.ones(8))


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("fields", [1, 2, AT_A_TIME + 1])
def test_pixels_on_their_own_are_denoised_as_without_windows(fields, periodic) -> None:
    x, time = torch.randn(fields, 2, 12, 20), torch.rand(fields) + 0.1
    found = windowed(ideal(EDM()), (8, 8), (3, 5), periodic)(x, time, Condition())
    assert_close(found, ideal(EDM())(x, time, Condition()))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_whole_chains_are_those_without_windows(sampler) -> None:
    def drawn(denoise):
        chosen = choose_sampler(sampler, EDM(), 4)
        *_, x = sample(denoise, EDM(), chosen, generators(0, [0, 1]), (1, 12, 20), steps=4)
        return x

    assert_close(drawn(windowed(ideal(EDM()), (8, 8), (4, 4))), drawn(ideal(EDM())))


def test_conditions_are_cut_and_repeated_with_the_fields() -> None:
    def denoise(x, time, condition):
        assert x.shape[1:] == (1, 8, 8)
        assert len(x) == len(time) == len(condition.label) == len(condition.emb) <= AT_A_TIME
        given = condition.image.sum(dim=1, keepdim=True) + condition.label.view(-1, 1, 1, 1) + time.view(-1, 1, 1, 1)
        return torch.cat([x + given, condition.emb[:, :1, None, None].expand_as(x)], dim=1)

    x, image, emb = torch.randn(2, 1, 12, 20), torch.randn(2, 3, 12, 20), torch.randn(2, 4)
    condition = Condition(label=torch.tensor([3, 5]), image=image, emb=emb)
    found = windowed(denoise, (8, 8), (2, 2), periodic_width=True)(x, TIME, condition)
    expected = x + image.sum(dim=1, keepdim=True) + condition.label.view(-1, 1, 1, 1) + TIME.view(-1, 1, 1, 1)
    assert_close(found, torch.cat([expected, emb[:, :1, None, None].expand_as(x)], dim=1))


def test_windows_across_the_border_move_with_the_field() -> None:
    def local(x, time, condition):
        return F.avg_pool2d(x, 3, stride=1, padding=1)

    x = torch.randn(1, 1, 8, 24)
    closed, cut = (windowed(local, (8, 8), (4, 4), periodic)(x, TIME[:1], Condition()) for periodic in (True, False))
    moved = windowed(local, (8, 8), (4, 4), True)(x.roll(4, 3), TIME[:1], Condition()).roll(-4, 3)
    assert_close(moved, closed)
    assert not torch.allclose(cut[..., 0], closed[..., 0])


def test_overlapping_windows_have_no_seams() -> None:
    """Fields of 4 x 4 windows, whose denoiser sees nothing beyond its window: jumps as without windows."""

    def local(x, time, condition):
        level = EDM().level(time)
        blurred = F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)
        return level.alpha / (level.alpha.square() + level.sigma.square()) * blurred

    def ratio(shared, denoise):
        chosen, places = choose_sampler("heun", EDM(), 6), cover(64, 16, shared)[0]
        *_, x = sample(denoise, EDM(), chosen, generators(0, range(24)), (1, 64, 64), steps=6)
        return seams(x, places, places)

    found, alone = (ratio(shared, windowed(local, (16, 16), (shared, shared))) for shared in (8, 0))
    assert found == pytest.approx(1, abs=0.05)
    assert found == pytest.approx(ratio(8, local), abs=0.02)
    assert alone > 2


@pytest.mark.parametrize(
    ("window", "overlap", "named"),
    [((8, 8), (8, 0), "overlap=8x0"), ((8, 8), (0, -1), "overlap=0x-1"), ((8, 16), (0, 0), "size=12x12.*8x16")],
)
def test_windows_that_leave_gaps_or_are_too_large_are_refused(window, overlap, named) -> None:
    with pytest.raises(ValueError, match=named):
        windowed(ideal(EDM()), window, overlap)(torch.zeros(1, 1, 12, 12), TIME[:1], Condition())
