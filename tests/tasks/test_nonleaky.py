import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tasks.nonleaky import SYM6, Change, _doubled, _halved, non_leaky
from training.random import GlobalRandom


def random(batch: int, part: slice = slice(None), update: int = 0) -> GlobalRandom:
    return GlobalRandom(0, update, "augment", batch, part, "cpu")


def change(batch: int = 1, **numbers: float) -> Change:
    """The same change for each image; what is not given is zero."""
    return Change(**{f.name: torch.full((batch,), float(numbers.get(f.name, 0))) for f in fields(Change)})


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ramp(h: int, w: int, right: float, up: float) -> Tensor:
    """An image that grows evenly in one direction, zero in the middle."""
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    return (right * x - up * y)[None, None]


def inside(image: Tensor, margin: int = 8) -> Tensor:
    return image[..., margin:-margin, margin:-margin]


def test_flips_are_exact() -> None:
    image = noise(2, 3, 7, 6)
    for x in (0, 1):
        for y in (0, 1):
            flipped = change(2, x_flip=x, y_flip=y)
            expected = image.flip([axis for axis, on in ((3, x), (2, y)) if on])
            assert torch.equal(flipped(image), expected)
            assert flipped.label().tolist() == [[x, y, 0, 0, 0, 0, 0, 0, 0]] * 2


def test_what_is_left_as_it_is_is_exact_beside_what_moves() -> None:
    image = noise(3, 1, 8, 8)
    angle = torch.tensor([0.0, 1.0, 0.0])
    turned = Change(**{**{f.name: torch.zeros(3) for f in fields(Change)}, "angle": angle})
    result = turned(image)
    assert torch.equal(result[::2], image[::2])
    assert not torch.equal(result[1], image[1])
    assert turned.label()[::2].abs().max() == 0
    assert torch.equal(change(3, axis=2)(image), image)


@pytest.mark.parametrize(("h", "w"), [(32, 24), (19, 32)])
@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-4, 5)])
def test_moves_by_whole_pixels_are_exact_inside(h: int, w: int, right: int, down: int) -> None:
    image = noise(1, 3, h, w)
    moved = change(right=8 * right / w, down=8 * down / h)(image)
    expected = image.roll((down, right), dims=(2, 3))
    assert_close(inside(moved), inside(expected), rtol=0, atol=2e-5)


def test_what_comes_in_from_outside_is_a_reflection() -> None:
    image = ramp(16, 16, 1, 0)
    moved = change(right=2)(image)  # by 4 pixels
    assert moved[0, 0, 8, :5].tolist() == pytest.approx([-3.5, -4.5, -5.5, -6.5, -7.5], abs=0.5)
    assert moved[0, 0, 8, 8:].tolist() == pytest.approx([-3.5 + k for k in range(8)], abs=0.2)


@pytest.mark.parametrize(("quarters", "sine"), [(1, 1), (-1, -1)])
def test_positive_angles_turn_counter_clockwise(quarters: int, sine: float) -> None:
    image = ramp(32, 32, 1, 0.5).div(8).sin()
    turned = change(angle=quarters * math.pi / 2)
    assert_close(inside(turned(image)), inside(image.rot90(quarters, (2, 3))), rtol=0, atol=0.02)
    assert turned.label()[0].tolist() == pytest.approx([0, 0, 0, -1, sine, 0, 0, 0, 0], abs=1e-6)


def test_turning_keeps_the_detail_that_bilinear_resampling_loses() -> None:
    """Three turns of 30 degrees against one of 90, for noise with the amplitudes of photographs, 1 / frequency."""
    f = torch.fft.fftfreq(64)
    radius = (f[:, None].square() + f.square()).sqrt().clamp(min=1 / 64)
    image = torch.fft.ifft2(torch.fft.fft2(noise(4, 3, 64, 64)) / radius).real
    image = image / image.std()
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    grid = F.affine_grid(torch.tensor([[c, -s, 0], [s, c, 0]]).expand(4, 2, 3), [4, 3, 64, 64], align_corners=False)
    ours, bilinear = image, image
    for _ in range(3):
        ours = change(4, angle=math.pi / 6)(ours)
        bilinear = F.grid_sample(bilinear, grid, padding_mode="reflection", align_corners=False)
    errors = [inside(x - image.rot90(1, (2, 3)), 20).square().mean().sqrt().item() for x in (ours, bilinear)]
    assert errors[0] < 0.75 * errors[1]


def test_enlarging_flattens_a_ramp() -> None:
    for scale in (-1.5, 2.0):
        result = change(scale=scale)(ramp(32, 24, 1, 1))
        assert_close(inside(result), inside(ramp(32, 24, 1, 1)) / 2 ** (0.2 * scale), rtol=0, atol=0.08)
    assert change(scale=2).label()[0].tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("axis", [0.0, 0.6, -2.0])
def test_stretching_flattens_along_the_axis_and_steepens_across(axis: float) -> None:
    c, s = math.cos(axis), math.sin(axis)
    stretched = change(stretch=1.5, axis=axis)
    along, across = ramp(32, 32, c, s), ramp(32, 32, -s, c)
    assert_close(inside(stretched(along)), inside(along) / 2**0.3, rtol=0, atol=0.08)
    assert_close(inside(stretched(across)), inside(across) * 2**0.3, rtol=0, atol=0.08)
    assert stretched.label()[0].tolist() == pytest.approx([0, 0, 0, 0, 0, 1.5 * c, 1.5 * s, 0, 0], abs=1e-6)


def test_images_are_turned_before_they_are_moved_and_flipped_before_all() -> None:
    image = ramp(32, 32, 1, 0)
    result = change(x_flip=1, angle=math.pi / 2, right=1, down=2)(image)
    assert_close(
        inside(result, 11), inside(ramp(32, 32, 0, -1), 11) - 8, rtol=0, atol=0.15
    )  # a right angle shows the filter's delay


def test_a_constant_image_stays_constant() -> None:
    image = torch.full((5, 2, 16, 12), 0.7)
    result, _ = non_leaky(image, random(5), probability=1)
    assert_close(result, image, rtol=0, atol=1e-5)


def test_filter_is_the_orthogonal_one_with_six_vanishing_moments() -> None:
    taps = torch.tensor(SYM6, dtype=torch.float64)
    assert taps.sum().item() == pytest.approx(math.sqrt(2), abs=1e-12)
    shifts = [(taps[2 * k :] * taps[: 12 - 2 * k]).sum().item() for k in range(6)]
    assert shifts == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-11)
    k = torch.arange(12, dtype=torch.float64)
    moments = [((-1) ** k * k**power * taps).sum().item() for power in range(7)]
    assert moments[:6] == pytest.approx([0] * 6, abs=1e-8)
    assert abs(moments[6]) > 1


def test_halving_undoes_doubling_to_the_last_digits() -> None:
    row = noise(2, 26).double()  # 20 pixels and 3 on either side
    back = _halved(_doubled(row))  # 2 pixels on either side of the 20 do not see all of their half pixels
    assert_close(back, row[:, 5:-5], rtol=0, atol=1e-11)


def test_labels_stand_in_the_published_order() -> None:
    everything = change(x_flip=1, y_flip=1, scale=2, angle=0.3, axis=0.4, stretch=5, right=6, down=7)
    turned, stretched = [math.cos(0.3) - 1, math.sin(0.3)], [5 * math.cos(0.4), 5 * math.sin(0.4)]
    assert everything.label()[0].tolist() == pytest.approx([1, 1, 2, *turned, *stretched, 6, 7], rel=1e-6)


def test_each_change_has_its_probability_and_spread() -> None:
    image = torch.zeros(20_000, 1, 4, 4)
    _, label = non_leaky(image, random(20_000), probability=0.12)
    made = label.ne(0).double().mean(dim=0)
    assert made.tolist() == pytest.approx([0.5, 0.06, *[0.12] * 7], abs=0.015)
    assert torch.equal(label[:, 7] != 0, label[:, 8] != 0)
    _, label = non_leaky(image, random(20_000), probability=1)
    assert label.mean(dim=0).tolist() == pytest.approx([0.5, 0.5, 0, -1, 0, 0, 0, 0, 0], abs=0.03)
    half = math.sqrt(0.5)
    assert label[:, 2:].std(dim=0).tolist() == pytest.approx([1, half, half, half, half, 1, 1], abs=0.03)
    assert torch.corrcoef(label.T).sub(torch.eye(9)).abs().max() < 0.04


def test_with_no_probability_images_are_mirrored_at_most() -> None:
    image = noise(16, 3, 8, 8)
    result, label = non_leaky(image, random(16), probability=0)
    mirrored = label[:, 0] == 1
    assert 0 < mirrored.sum() < 16
    assert torch.equal(result[mirrored], image[mirrored].flip(3))
    assert torch.equal(result[~mirrored], image[~mirrored])
    assert label[:, 1:].abs().max() == 0


def test_parts_of_a_batch_are_changed_as_the_whole() -> None:
    image = noise(9, 3, 8, 12)
    whole, label = non_leaky(image, random(9), probability=0.5)
    parts = [slice(0, 2), slice(2, 9)]
    pieces = [non_leaky(image[part], random(9, part), probability=0.5) for part in parts]
    assert_close(torch.cat([piece for piece, _ in pieces]), whole, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat([piece for _, piece in pieces]), label)
    assert not torch.equal(non_leaky(image, random(9, update=1), probability=0.5)[1], label)
    assert (whole.dtype, label.dtype, label.shape) == (torch.float32, torch.float32, (9, 9))


def test_tiny_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3×8 pixels"):
        non_leaky(noise(1, 1, 3, 8), random(1), probability=0.1)
