"""Validation images: another split of the source, or a share of the training images."""

from pathlib import Path

import numpy as np
import pytest

from training.data import Images, open_images, open_validation
from training.data.open import divided


def test_share_and_rest_are_all_images(config) -> None:
    whole, rest = open_images(config(source="digits")), open_images(config(source="digits", validation=0.2))
    part = open_validation(config(source="digits", validation=0.2))
    assert (len(whole), len(rest), len(part)) == (1797, 1438, 359)
    numbers = divided(1797, 0.2)
    assert sorted(np.concatenate(numbers)) == list(range(1797))
    for images, chosen in zip((rest, part), numbers, strict=True):
        assert images.labels.tolist() == whole.labels[chosen].tolist()
        assert images.classes == whole.classes
        np.testing.assert_array_equal(images.read(np.arange(len(images))), whole.read(chosen))
    assert len({images.fingerprint for images in (whole, rest, part)}) == 3
    assert rest.fingerprint == open_images(config(source="digits", validation=0.2)).fingerprint
    assert str(part).startswith("359 grey images of 8 x 8 px")


def test_a_part_of_a_part(config) -> None:
    images = Images(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10))
    part = images.part(np.array([1, 4, 9])).part(np.array([2, 0]))
    assert part.read(np.array([0, 1, 1])).ravel().tolist() == [9, 1, 1]
    out = np.empty((4, 1, 1, 1), np.uint8)
    assert part.labels[part.take(np.arange(4), 0, out)].tolist() == out.ravel().tolist()
    with pytest.raises(IndexError, match=r"2\.\.2"):
        part.read(np.array([2]))


def test_another_split(config, save, pixels, tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "pets" / ("train" if i < 4 else "test") / "cat" / f"{i}.png", pixels(i, 8, 8))
    given = config(source=tmp_path / "pets", validation="test")
    assert len(open_images(given)) == 4
    part = open_validation(given)
    np.testing.assert_array_equal(part.read(np.arange(2))[:, 0], [pixels(i, 8, 8) for i in (4, 5)])
    with pytest.raises(ValueError, match=r"data\.split 'dev'"):
        open_validation(config(source=tmp_path / "pets", validation="dev"))


def test_no_validation_images(config) -> None:
    assert open_validation(config(source="digits")) is None


def test_an_empty_share_is_an_error(config) -> None:
    with pytest.raises(ValueError, match=r"1,797 images.*data\.validation"):
        open_validation(config(source="digits", validation=1e-5))
