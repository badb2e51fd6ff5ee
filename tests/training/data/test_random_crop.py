"""Random crops: their area and aspect ratio, and that they follow from seed and position alone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures.decode import decode, random_box
from pictures.preprocessing import Preprocessing
from training.data import DataConfig, open_images, open_validation
from training.data.order import image_random


def test_boxes_have_the_specified_area_and_aspect_ratio() -> None:
    random = np.random.default_rng(0)
    boxes = np.array([random_box(400, 300, random) for _ in range(5000)])
    left, upper, right, lower = boxes.T
    width, height = right - left, lower - upper
    assert left.min() == upper.min() == 0
    assert (right.max(), lower.max()) == (400, 300)
    area, aspect = width * height / (400 * 300), width / height
    assert 0.079 < area.min() < 0.085
    assert 0.95 < area.max() <= 1
    assert 0.745 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.34
    assert abs(np.log(aspect[area < 0.5]).mean()) < 0.01, "wide as often as tall"
    assert abs(area[area < 0.5].mean() - 0.29) < 0.01, "uniform in area, but for the largest, which may not fit"


@pytest.mark.parametrize(("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))])
def test_an_image_too_narrow_for_any_crop_gets_a_center_crop(size, box) -> None:
    assert random_box(*size, image_random(0, 0)) == box


def test_random_numbers_follow_from_seed_and_position() -> None:
    assert image_random(1, 2).random() == image_random(1, 2).random()
    assert len({image_random(seed, position).random() for seed in range(3) for position in range(3)}) == 9


def test_a_random_crop_is_its_box_resized(pixels) -> None:
    array = pixels(0, 40, 60, 3)
    config = DataConfig(size=16, crop="random", stream=True)
    box = random_box(60, 40, image_random(5, 6))
    expected = Image.fromarray(array).resize((16, 16), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(
        decode(array, config.preprocessing, image_random(5, 6)), np.asarray(expected).transpose(2, 0, 1)
    )
    centre = decode(array, DataConfig(size=16).preprocessing)
    np.testing.assert_array_equal(decode(array, config.preprocessing), centre)


def test_center_share_keeps_the_middle(pixels) -> None:
    """Published evaluations resize the short side to 256 and crop 224 in the center: the middle 7/8, resized to 224."""
    array = pixels(0, 64, 96, 3)
    found = decode(array, DataConfig(size=28, center_share=0.875).preprocessing)
    expected = Image.fromarray(array).resize((28, 28), Image.Resampling.BICUBIC, box=(20, 4, 76, 60))
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))
    same_size = decode(array, DataConfig(size=(64, 96), center_share=0.5).preprocessing)
    assert not np.array_equal(same_size, array.transpose(2, 0, 1))


@pytest.fixture
def folder(tmp_path: Path, save, pixels) -> Path:
    for i in range(24):
        part = "train" if i < 16 else "val"
        save(tmp_path / "pets" / part / ("cat" if i % 2 else "dog") / f"{i}.png", pixels(i, 20 + i, 30))
    return tmp_path / "pets"


@pytest.fixture
def streamed(folder: Path) -> Callable[..., DataConfig]:
    return lambda **fields: DataConfig(
        **{"source": str(folder), "size": 8, "channels": 1, "stream": True, "crop": "random"} | fields
    )


def take(config: DataConfig, positions: range, seed: int = 3) -> np.ndarray:
    images = open_images(config)
    out = np.empty((len(positions), *images.shape), np.uint8)
    images.take(np.array(positions), seed, out)
    return out


@pytest.mark.parametrize("crop", ["random", "cut"])
def test_a_crop_is_the_same_in_every_batch_and_different_in_every_epoch(streamed, crop: str) -> None:
    streamed = partial(streamed, crop=crop)
    whole = take(streamed(), range(32))
    np.testing.assert_array_equal(np.concatenate([take(streamed(), range(5)), take(streamed(), range(5, 32))]), whole)
    assert not np.array_equal(take(streamed(), range(32), seed=4), whole)
    centre = take(streamed(crop="center"), range(32))
    assert len({image.tobytes() for image in centre}) == 16
    assert len({image.tobytes() for image in whole}) == 32


def test_validation_images_get_center_crops(streamed, folder: Path) -> None:
    images = open_validation(streamed(validation="val", center_share=0.75))
    assert images is not None
    out = np.empty((8, 1, 8, 8), np.uint8)
    images.read(np.arange(8), out)
    plain = DataConfig(size=8, center_share=0.75)
    files = sorted((folder / "val").rglob("*.png"), key=lambda path: path.as_posix())
    np.testing.assert_array_equal(out, [decode(file, plain.preprocessing) for file in files])


@pytest.mark.parametrize("crop", ["random", "cut"])
def test_validation_images_are_taken_without_random_crops(streamed, folder: Path, crop: str) -> None:
    images = open_validation(streamed(validation="val", crop=crop))
    assert images is not None
    out = np.empty((8, 1, 8, 8), np.uint8)
    images.take(np.arange(8), 3, out)
    how = Preprocessing(size=(8, 8), channels=1, crop="center" if crop == "random" else crop)
    centred = {decode(file, how).tobytes() for file in (folder / "val").rglob("*.png")}
    assert {image.tobytes() for image in out} == centred


def test_random_crops_of_arrays_are_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"data\.crop is 'random'"):
        open_images(DataConfig(source=str(tmp_path), stream=True, crop="random"))


def test_cut_takes_a_part_without_scaling(pixels) -> None:
    image = pixels(0, 9, 12, 3)
    cut = Preprocessing(size=(4, 6), crop="cut")
    np.testing.assert_array_equal(decode(image, cut), image[2:6, 3:9].transpose(2, 0, 1))
    corners = {decode(image, cut, image_random(0, place))[:, 0, 0].tobytes() for place in range(400)}
    assert corners == {image[row, column].tobytes() for row in range(6) for column in range(7)}
    with pytest.raises(ValueError, match=r"5 x 9 px.*6 x 4 px"):
        decode(pixels(0, 9, 5, 3), cut)
