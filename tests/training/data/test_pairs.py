"""Pairs of a target and a condition: from two folders, two columns, two arrays of a file, or channels of one array."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from training.data import DataConfig, Images, open_images, open_validation
from training.data.decode import enlarge
from training.data.sources.source import find_source
from training.data.validate import validate

COUNT = 5


def field(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Targets (2, 6, 8) and conditions (1, 3, 4) of the same names."""
    for i in range(COUNT):
        for name, array in (("fine", field(i, 2, 6, 8)), ("coarse", field(i + COUNT, 1, 3, 4))):
            (tmp_path / name).mkdir(exist_ok=True)
            np.save(tmp_path / name / f"{i}.npy", array)
    return tmp_path


@pytest.fixture
def pictures(tmp_path: Path, save, pixels) -> Path:
    """Targets in classes, and conditions of the same size and names, as another kind of file."""
    for i in range(COUNT):
        name = f"{'cat' if i % 2 else 'dog'}/{i}"
        save(tmp_path / "photos" / f"{name}.png", pixels(i, 6, 8, 3))
        save(tmp_path / "sketches" / f"{name}.bmp", pixels(i + COUNT, 6, 8))
    return tmp_path


def whole(images: Images) -> np.ndarray:
    return images.read(np.arange(len(images)))


def test_arrays_of_two_folders(arrays: Path, config) -> None:
    images = open_images(config(source=arrays / "fine", condition=str(arrays / "coarse"), range=(-1, 1)))
    assert (images.shape, images.conditions) == ((3, 6, 8), 1)
    for i, image in enumerate(whole(images)):
        np.testing.assert_array_equal(image[:2], field(i, 2, 6, 8))
        coarse = torch.from_numpy(field(i + COUNT, 1, 3, 4))
        expected = F.interpolate(coarse[None], (6, 8), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(torch.from_numpy(image[2:]), expected)


def test_a_linear_field_is_interpolated_exactly() -> None:
    """Between the centres of the outermost cells."""
    rows, columns = (np.arange(n, dtype=np.float32) + 0.5 for n in (4, 6))
    coarse = (2 * rows[:, None] - columns)[None]
    rows, columns = (np.arange(n, dtype=np.float32) / 3 + 1 / 6 for n in (12, 18))
    fine = enlarge(coarse, (12, 18))
    np.testing.assert_allclose(fine[0, 1:-1, 1:-1], (2 * rows[:, None] - columns)[1:-1, 1:-1], atol=1e-5)
    counts = enlarge(np.array([[[0, 255]]], np.uint8), (1, 4))
    assert counts.tolist() == [[[0, 64, 191, 255]]]


def test_pictures_of_two_folders_keep_labels_and_become_rgb(pictures: Path, config, pixels) -> None:
    options = {"source": pictures / "photos", "condition": str(pictures / "sketches")}
    images = open_images(config(**options))
    assert (images.shape, images.conditions, images.classes) == ((6, 6, 8), 3, ("cat", "dog"))
    order = [1, 3, 0, 2, 4]  # cats first
    for i, image in zip(order, whole(images), strict=True):
        np.testing.assert_array_equal(image[:3], pixels(i, 6, 8, 3).transpose(2, 0, 1))
        np.testing.assert_array_equal(image[3:], np.repeat(pixels(i + COUNT, 6, 8)[None], 3, axis=0))
    grey = open_images(config(**options, channels=1))
    assert (grey.shape, grey.conditions) == ((2, 6, 8), 1)


def test_grey_pairs_become_rgb_with_the_first_in_colour(tmp_path: Path, save, pixels, config) -> None:
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", pixels(i, 4, 4))
        save(tmp_path / "b" / f"{i}.png", pixels(i + 3, 4, 4, *([3] if i == 1 else [])))
    images = open_images(config(source=tmp_path / "a", condition=str(tmp_path / "b")))
    assert (images.shape, images.conditions) == ((6, 4, 4), 3)
    for i, image in enumerate(whole(images)):
        np.testing.assert_array_equal(image[:3], np.repeat(pixels(i, 4, 4)[None], 3, axis=0))
        condition = pixels(i + 3, 4, 4, *([3] if i == 1 else []))
        np.testing.assert_array_equal(image[3:], condition.transpose(2, 0, 1) if i == 1 else [condition] * 3)


@pytest.mark.parametrize("crop", ["center", "stretch", "cut"])
def test_a_smaller_picture_is_cropped_as_its_target(crop: str, tmp_path: Path, save, config) -> None:
    """A ramp at a quarter of the resolution is the ramp again; a bicubic filter keeps it inside."""
    rows, columns = np.mgrid[:32, :64] + 0.5
    save(tmp_path / "a" / "0.png", np.rint(2 * rows + columns).astype(np.uint8))
    rows, columns = 4 * (np.mgrid[:8, :16] + 0.5)
    save(tmp_path / "b" / "0.png", np.rint(2 * rows + columns).astype(np.uint8))
    images = open_images(config(source=tmp_path / "a", condition=str(tmp_path / "b"), size=16, crop=crop))
    target, condition = whole(images)[0].astype(float)
    assert images.shape == (2, 16, 16)
    np.testing.assert_allclose(target[2:-2, 2:-2], condition[2:-2, 2:-2], atol=2)


@pytest.mark.parametrize("crop", ["random", "cut"])
def test_a_random_crop_is_the_same_part_of_both(crop: str, tmp_path: Path, save, pixels) -> None:
    for name in ("a", "b"):
        for i in range(COUNT):
            save(tmp_path / name / f"{i}.png", pixels(i, 20, 24))
    fields = {"stream": True, "size": 8, "channels": 1, "crop": crop}
    images = open_images(DataConfig(source=str(tmp_path / "a"), condition=str(tmp_path / "b"), **fields))
    out = np.empty((2 * COUNT, 2, 8, 8), np.uint8)
    images.take(np.arange(2 * COUNT), 0, out)
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    assert len({image.tobytes() for image in out}) == 2 * COUNT


def test_streamed_pairs_equal_the_cache(arrays: Path, pictures: Path, config) -> None:
    arrays_of = {"source": str(arrays / "fine"), "condition": str(arrays / "coarse"), "range": (-1, 1)}
    pictures_of = {
        "source": str(pictures / "photos"),
        "condition": str(pictures / "sketches"),
        "channels": 3,
        "size": 4,
    }
    for options in (arrays_of, pictures_of):
        cached, streamed = open_images(config(**options)), open_images(DataConfig(**options, stream=True))
        assert (streamed.shape, streamed.conditions) == (cached.shape, cached.conditions)
        out = [np.empty((COUNT, *cached.shape), cached.pixel_format.stored) for _ in range(2)]
        for images, each in zip((cached, streamed), out, strict=True):
            images.take(np.arange(COUNT), 1, each)
        np.testing.assert_array_equal(*out)


def test_splits_of_both_folders(tmp_path: Path, save, pixels, config) -> None:
    for number, split in enumerate(("train", "test")):
        for name in ("a", "b"):
            save(tmp_path / name / split / "0.png", pixels(10 * number + (name == "b"), 4, 4))
    fields = config(source=tmp_path / "a", condition=str(tmp_path / "b"), validation="test")
    np.testing.assert_array_equal(whole(open_images(fields))[0], [pixels(0, 4, 4), pixels(1, 4, 4)])
    np.testing.assert_array_equal(whole(open_validation(fields))[0], [pixels(10, 4, 4), pixels(11, 4, 4)])


@pytest.mark.parametrize("stream", [False, True])
def test_columns_of_a_table(stream: bool, tmp_path: Path, png, pixels, config) -> None:
    file = tmp_path / "t.parquet"
    columns = {"image": [png(pixels(i, 4, 4)) for i in range(COUNT)]}
    columns |= {"blurred": [png(pixels(i + COUNT, 4, 4)) for i in range(COUNT)], "label": list(range(COUNT))}
    pq.write_table(pa.table(columns), file, row_group_size=2)
    options = {"source": str(file), "condition": "blurred", "size": 4, "channels": 1}
    images = open_images(DataConfig(**options, stream=True) if stream else config(**options))
    assert (images.shape, images.conditions) == ((2, 4, 4), 1)
    out = np.empty((COUNT, 2, 4, 4), np.uint8)
    labels = images.labels[images.take(np.arange(COUNT), 0, out)]
    for label, image in zip(labels, out, strict=True):
        np.testing.assert_array_equal(image, [pixels(label, 4, 4), pixels(label + COUNT, 4, 4)])
    with pytest.raises(ValueError, match=r"data\.condition 'blured'.*blurred"):
        open_images(config(**options | {"condition": "blured"}))


def test_columns_with_usual_names_of_labels(tmp_path: Path, png, pixels, config) -> None:
    file = tmp_path / "t.parquet"
    columns = {name: [png(pixels(i, 4, 4)) for i in range(2)] for name in ("target", "label")}
    pq.write_table(pa.table(columns), file)
    images = open_images(config(source=file, image_column="target", condition="label"))
    assert (images.shape, images.labels) == ((2, 4, 4), None)
    with pytest.raises(ValueError, match=r"data\.label_column.*lable"):
        open_images(config(source=file, image_column="target", condition="label", label_column="lable"))


def test_arrays_of_a_file_and_of_two_files(tmp_path: Path, config) -> None:
    fine, coarse = field(0, COUNT, 1, 4, 4), field(1, COUNT, 1, 2, 2)
    np.savez(tmp_path / "set.npz", fine=fine, coarse=coarse)
    np.save(tmp_path / "fine.npy", fine)
    np.save(tmp_path / "coarse.npy", coarse)
    options = {"range": (-1, 1)}
    one = open_images(config(source=tmp_path / "set.npz", condition="coarse", **options))
    two = open_images(config(source=tmp_path / "fine.npy", condition=str(tmp_path / "coarse.npy"), **options))
    assert (one.shape, one.conditions) == (two.shape, two.conditions) == ((2, 4, 4), 1)
    np.testing.assert_array_equal(whole(one), whole(two))
    np.testing.assert_array_equal(whole(one)[:, :1], fine)


@pytest.mark.parametrize("name", ["set.npy", "set.npz", "folder"])
def test_channels_of_one_array(name: str, tmp_path: Path, config) -> None:
    array = field(0, COUNT, 4, 3, 3)
    np.save(tmp_path / "set.npy", array)
    np.savez(tmp_path / "set.npz", array)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(array):
        np.save(tmp_path / "folder" / f"{i}.npy", image)
    images = open_images(config(source=tmp_path / name, condition=(2, 0), range=(-1, 1), channels=4))
    assert images.conditions == 2
    np.testing.assert_array_equal(whole(images), array[:, [1, 3, 2, 0]])
    plain = open_images(config(source=tmp_path / name, range=(-1, 1)))
    np.testing.assert_array_equal(whole(plain), array)


def test_a_condition_of_another_kind_is_named(tmp_path: Path, config) -> None:
    np.savez(tmp_path / "set.npz", image=np.zeros((4, 1, 2, 2), np.uint8), number=np.arange(4, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"data\.condition 'number'.*\(4,\)"):
        open_images(config(source=tmp_path / "set.npz", image_column="image", condition="number"))


def test_a_bad_one_of_the_two_makes_the_pair_bad(pictures: Path, config, capsys) -> None:
    (pictures / "sketches" / "dog" / "2.bmp").write_bytes(b"no picture")
    images = open_images(config(source=pictures / "photos", condition=str(pictures / "sketches")))
    assert len(images) == COUNT - 1
    assert images.bad == ("dog/2.png: its condition: not an image",)
    assert images.labels.tolist() == [0, 0, 1, 1]


def test_another_condition_has_another_cache(arrays: Path, config) -> None:
    options = {"source": arrays / "fine", "range": (-1, 1)}
    alone = open_images(config(**options))
    assert (alone.shape, alone.conditions) == ((2, 6, 8), 0)
    pair = open_images(config(**options, condition=str(arrays / "coarse")))
    np.save(arrays / "coarse" / "0.npy", field(99, 1, 3, 4))
    changed = open_images(config(**options, condition=str(arrays / "coarse")))
    channel = open_images(config(**options, condition=(1,)))
    assert len({images.fingerprint for images in (alone, pair, changed, channel)}) == 4


def renamed(arrays: Path) -> None:
    for i in range(3):
        (arrays / "coarse" / f"{i}.npy").rename(arrays / "coarse" / f"other{i}.npy")


def doubled(arrays: Path) -> None:
    (arrays / "fine" / "0.x.npy").write_bytes((arrays / "fine" / "0.npy").read_bytes())
    (arrays / "fine" / "0.x.NPY").write_bytes((arrays / "fine" / "0.npy").read_bytes())


def larger(arrays: Path) -> None:
    for i in range(COUNT):
        np.save(arrays / "coarse" / f"{i}.npy", field(i, 1, 7, 4))


def other_dtype(arrays: Path) -> None:
    for i in range(COUNT):
        np.save(arrays / "coarse" / f"{i}.npy", field(i, 1, 3, 4).astype(np.float64))


def as_pictures(arrays: Path) -> None:
    for i in range(COUNT):
        (arrays / "coarse" / f"{i}.npy").unlink()
        Image.new("L", (4, 4)).save(arrays / "coarse" / f"{i}.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"data\.condition lacks 0, 1, 2; data\.source lacks other0, other1, other2"),
        (doubled, r"data\.source .*two files 0\.x: 0\.x\.NPY and 0\.x\.npy"),
        (larger, r"data\.condition .*7 x 4 .*6 x 8"),
        (other_dtype, r"data\.condition .*float64.*data\.source .*float32"),
        (as_pictures, r"data\.condition .*images.*data\.source .*arrays"),
    ],
)
def test_pairs_that_do_not_match_are_errors(change: Callable, message: str, arrays: Path, config) -> None:
    change(arrays)
    with pytest.raises(ValueError, match=message) as error:
        find_source(config(source=arrays / "fine", condition=str(arrays / "coarse"), range=(-1, 1))).open()
    assert "\n" not in str(error.value)


def test_many_missing_names_are_shortened(tmp_path: Path, save, pixels, config) -> None:
    for i in range(30):
        save(tmp_path / "a" / f"{i:02}.png", pixels(i, 2, 2))
    save(tmp_path / "b" / "00.png", pixels(0, 2, 2))
    with pytest.raises(ValueError, match=r"lacks 01, .*12, … \(29 in all\)"):
        open_images(config(source=tmp_path / "a", condition=str(tmp_path / "b")))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ((0, 2), r"\[0, 2\].*0 to 1"),
        ((1, 1), r"\[1, 1\].*0 to 1"),
        ((0, 1), r"\[0, 1\].*leave one as a target"),
        ((-1,), r"\[-1\].*0 to 1"),
        ("no/such", r"data\.condition 'no/such'"),
        ((), "data.condition is empty"),
        ("", "data.condition is empty"),
    ],
)
def test_conditions_that_do_not_exist_are_errors(condition, message: str, arrays: Path, config) -> None:
    with pytest.raises(ValueError, match=message):
        find_source(config(source=arrays / "fine", condition=condition, range=(-1, 1))).open()


def test_conditions_of_sources_without_them_are_errors(pictures: Path, tmp_path: Path, png, pixels, config) -> None:
    with pytest.raises(ValueError, match=r"data\.condition.*named source"):
        find_source(config(source="digits", condition="x"))
    with pytest.raises(ValueError, match=r"data\.condition \[0\].*for arrays"):
        find_source(config(source=pictures / "photos", condition=(0,)))
    pq.write_table(pa.table({"image": [png(pixels(0, 4, 4))]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"data\.condition is 'image', as data\.image_column"):
        find_source(config(source=tmp_path / "t.parquet", image_column="image", condition="image"))
    np.savez(tmp_path / "set.npz", fine=field(0, 4, 2, 2), coarse=field(0, 3, 2, 2))
    with pytest.raises(ValueError, match=r"data\.condition 'coarse' has 3 images.*4"):
        find_source(config(source=tmp_path / "set.npz", image_column="fine", condition="coarse", range=(-1, 1))).open()


def test_pictures_of_another_aspect_ratio_are_bad(tmp_path: Path, save, pixels, config, capsys) -> None:
    for name, shape in (("a", (32, 64)), ("b", (9, 16))):
        save(tmp_path / name / "0.png", pixels(0, *shape))
    with pytest.raises(ValueError, match=r"its condition: 16 x 9 px .*64 x 32"):
        open_images(config(source=tmp_path / "a", condition=str(tmp_path / "b")))


def test_validating_pairs(pictures: Path, config, capsys) -> None:
    options = config(source=pictures / "photos", condition=str(pictures / "sketches"))
    validate(options)
    assert "5 RGB images of 6 x 8 px (height x width), with a condition of 3 channels" in capsys.readouterr().out
    (pictures / "sketches" / "dog" / "2.bmp").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 of 5 images"):
        validate(options)
    assert "dog/2.png: its condition: not an image" in capsys.readouterr().out
