"""Changes of batches, against what they do to one image after the other."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tasks.augment import cutout, mixed, padded_crop, random_flip
from training.random import GlobalRandom

COUNT = 64


def random(batch: int = COUNT, part: slice = slice(None), update: int = 0) -> GlobalRandom:
    return GlobalRandom(0, update, "task", batch, part, "cpu")


def pictures(count: int = COUNT, height: int = 6, width: int = 9) -> torch.Tensor:
    return torch.rand(count, 2, height, width, generator=torch.Generator().manual_seed(0)) + 1


LABEL = torch.arange(COUNT)


def test_a_flip_mirrors_left_to_right() -> None:
    image, mirrored = pictures(), random().uniform() < 0.5
    assert 10 < mirrored.sum() < 54
    expected = torch.where(mirrored[:, None, None, None], image.flip(3), image)
    assert_close(random_flip(image, random()), expected, rtol=0, atol=0)


def test_parts_of_a_batch_are_flipped_as_the_whole() -> None:
    image, parts = pictures(), [slice(0, 24), slice(24, COUNT)]
    pieces = [random_flip(image[part], random(part=part)) for part in parts]
    assert_close(torch.cat(pieces), random_flip(image, random()), rtol=0, atol=0)


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_an_image_is_padded_and_cut(padding: str, mode: str) -> None:
    image, numbers = pictures(), random()
    down, right = numbers.integers(5), numbers.integers(5)
    found = padded_crop(image, random(), 2, padding)
    for i, (y, x) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):
        expected = F.pad(image[i : i + 1], [2] * 4, mode=mode)[0, :, y : y + 6, x : x + 9]
        assert_close(found[i], expected, rtol=0, atol=0)
    assert {*down.tolist()} == {*right.tolist()} == set(range(5)), "every place occurs"


@pytest.mark.parametrize("side", [1, 3, 4, 100])
def test_a_square_is_cut_out(side: int) -> None:
    image, numbers = pictures(), random()
    rows, columns = numbers.integers(6).tolist(), numbers.integers(9).tolist()
    found = cutout(image, random(), side)
    for i, (y, x) in enumerate(zip(rows, columns, strict=True)):
        expected = image[i].clone()
        top, left = y - side // 2, x - side // 2
        expected[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert_close(found[i], expected, rtol=0, atol=0)
    assert {*rows} == set(range(6))
    assert {*columns} == set(range(9))


def test_mixup_blends_neighbours() -> None:
    image = pictures()
    found, other, share = mixed(image, LABEL, random(), mixup=0.4, cutmix=0.0)
    assert other.tolist() == [i ^ 1 for i in range(COUNT)]
    assert_close(share, random().beta(0.4), rtol=0, atol=0)
    for i in range(COUNT):
        assert_close(found[i], share[i] * image[i] + (1 - share[i]) * image[i ^ 1])


def test_cutmix_lays_a_box_of_the_neighbour_on_the_image() -> None:
    image = pictures(height=32, width=48)
    found, other, share = mixed(image, LABEL, random(), mixup=0.0, cutmix=1.0)
    assert other.tolist() == [i ^ 1 for i in range(COUNT)]
    for i in range(COUNT):
        pasted = (found[i] == image[i ^ 1]).all(dim=0)
        assert torch.equal(torch.where(pasted, image[i ^ 1], image[i]), found[i])
        assert_close(share[i], 1 - pasted.float().mean())
        rows, columns = pasted.any(dim=1), pasted.any(dim=0)
        assert pasted.sum() == rows.sum() * columns.sum(), "a box"
    wanted = random().beta(1.0)
    assert (share >= wanted - 0.04).all(), (
        "but for rounding to pixels, what reaches over the border is all that is lost"
    )
    assert ((share - wanted).abs() < 0.04).sum() > 5, "some lie inside"


def test_with_both_each_image_takes_one_of_them() -> None:
    image = pictures()
    found, _, share = mixed(image, LABEL, random(), mixup=0.4, cutmix=1.0)
    own = (found == image) | (found == image.unflatten(0, (-1, 2)).flip(1).flatten(0, 1))
    pasted = own.all(dim=(1, 2, 3))
    assert 20 < pasted.sum() < 44
    for i in torch.nonzero(~pasted).ravel().tolist():
        assert_close(found[i], share[i] * image[i] + (1 - share[i]) * image[i ^ 1])


CHANGES = {
    "padded_crop": lambda image, label, random: padded_crop(image, random, 2),
    "cutout": lambda image, label, random: cutout(image, random, 3),
    "mixup": lambda image, label, random: mixed(image, label, random, 0.4, 0.0),
    "cutmix": lambda image, label, random: mixed(image, label, random, 0.0, 1.0),
    "both": lambda image, label, random: mixed(image, label, random, 0.4, 1.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_even_parts_of_a_batch_are_changed_as_the_whole(name: str) -> None:
    change, image = CHANGES[name], pictures()
    parts = [slice(0, 2), slice(2, 40), slice(40, COUNT)]
    whole = change(image, LABEL, random())
    pieces = [change(image[part], LABEL[part], random(part=part)) for part in parts]
    if isinstance(whole, torch.Tensor):
        assert_close(torch.cat(pieces), whole, rtol=0, atol=0)
    else:
        assert_close(tuple(map(torch.cat, zip(*pieces, strict=True))), whole, rtol=0, atol=0)
    assert not torch.equal(change(image, LABEL, random(update=1))[0], whole[0]), "every update draws anew"


def test_an_odd_part_cannot_be_mixed() -> None:
    text = "3 images cannot be mixed in pairs; give train.micro_batch an even number"
    with pytest.raises(ValueError, match=re.escape(text)):
        mixed(pictures(3), LABEL[:3], random(3), 0.4, 0.0)
