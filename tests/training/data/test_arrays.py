"""Folders of .npy arrays."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.data import BatchReader, PixelFormat, open_images
from training.data.images import Images
from training.data.sources.arrays import in_range


def write(folder: Path, *arrays: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        np.save(folder / f"{i}.npy", array)


def drawn(count: int, *shape: int, low: float = -2, high: float = 6) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.uniform(low, high, shape).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_is_kept(channels: int, config, tmp_path: Path) -> None:
    arrays = drawn(3, channels, 4, 6)
    write(tmp_path / "set", *arrays)
    images = open_images(config(source=tmp_path / "set", range=(-2, 6)))
    assert images.shape == (channels, 4, 6)
    assert images.pixel_format == PixelFormat(dtype="float32", low=-2, high=6, file="npy")
    np.testing.assert_array_equal(images.read(np.arange(3)), np.stack(arrays))
    assert str(images) == f"3 {channels}-channel float32 arrays of 4 x 6 px (height x width), no labels"


@pytest.mark.parametrize(
    ("dtype", "span", "values", "unit"),
    [
        ("uint8", None, [0, 51, 255], [-1, -0.6, 1]),
        ("uint16", None, [0, 13107, 65535], [-1, -0.6, 1]),
        ("uint16", (0, 4095), [0, 819, 4095], [-1, -0.6, 1]),
        ("int16", (-1000, 1000), [-1000, -600, 1000], [-1, -0.6, 1]),
        ("float16", (-1, 3), [-1, 0, 3], [-1, -0.5, 1]),
        ("float64", (0, 1), [0, 0.25, 1], [-1, -0.5, 1]),
        (">i4", (0, 100), [0, 50, 100], [-1, 0, 1]),
    ],
)
def test_the_range_becomes_minus_one_to_one(dtype, span, values, unit, config, tmp_path: Path) -> None:
    write(tmp_path / "set", np.array([values], dtype))  # (h, w): one channel
    images = open_images(config(source=tmp_path / "set", range=span))
    image, label, *_ = BatchReader(images, seed=0, batch=1).get(0)
    assert label is None
    seen = images.pixel_format.to_unit(image)
    torch.testing.assert_close(seen, torch.tensor([[[unit]]], dtype=torch.float32), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        images.pixel_format.from_unit(seen), np.array([[[values]]], images.pixel_format.dtype)
    )


def test_arrays_in_fortran_order_class_folders_and_splits(config, tmp_path: Path) -> None:
    arrays = drawn(4, 2, 3, 5)
    write(tmp_path / "set" / "train" / "a", np.asfortranarray(arrays[0]), arrays[1])
    write(tmp_path / "set" / "train" / "b", arrays[2])
    write(tmp_path / "set" / "test" / "a", arrays[3])
    images = open_images(config(source=tmp_path / "set", range=(-2, 6)))
    np.testing.assert_array_equal(images.read(np.arange(3)), np.stack(arrays[:3]))
    assert images.classes == ("a", "b")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1]
    test = open_images(config(source=tmp_path / "set", split="test", range=(-2, 6)))
    np.testing.assert_array_equal(test.read(np.arange(1))[0], arrays[3])


BAD: dict[str, tuple[Any, str]] = {
    "value": (np.array([[[0, 7.5]]], np.float32), "1 of 2 values are outside data.range -2 to 6, such as 7.5"),
    "nan": (np.array([[[0, np.nan]]], np.float32), "1 of 2 values are outside data.range -2 to 6, such as nan"),
    "inf": (np.array([[[0, -np.inf]]], np.float32), "1 of 2 values are outside data.range -2 to 6, such as -inf"),
    "shape": (np.zeros((1, 2, 2), np.float32), "shape (1, 2, 2), but 0.npy has (1, 1, 2)"),
    "dtype": (np.zeros((1, 1, 2), np.float64), "dtype float64, but 0.npy has float32"),
    "axes": (np.zeros((1, 1, 1, 2), np.float32), "shape (1, 1, 1, 2) is neither (channels, height, width) nor"),
    "empty": (np.zeros((0, 1, 2), np.float32), "shape (0, 1, 2) has no values"),
    "complex": (np.zeros((1, 1, 2), np.complex64), "dtype complex64 is not one of uint8, uint16, int8, "),
    "objects": (np.array([[{}]]), "dtype object is not one of uint8, "),
}


@pytest.mark.parametrize("name", BAD)
def test_an_array_unlike_the_others_is_unreadable_for_a_reason(name: str, config, tmp_path: Path) -> None:
    array, reason = BAD[name]
    good = drawn(1, 1, 1, 2)[0]
    write(tmp_path / "set", good, array)
    images = open_images(config(source=tmp_path / "set", range=(-2, 6)))
    np.testing.assert_array_equal(images.read(np.array([0]))[0], good)
    assert images.bad[0].startswith(f"1.npy: {reason}")


class Planted:
    def __reduce__(self):
        return open, (Planted.target, "w")


def test_no_pickle_is_opened(config, tmp_path: Path) -> None:
    good = drawn(1, 1, 1, 2)[0]
    write(tmp_path / "set", good, np.array([[Planted()]], object))
    (tmp_path / "set" / "2.npy").write_bytes(pickle.dumps(Planted()))
    np.savez(tmp_path / "zip.npz", good)
    (tmp_path / "zip.npz").rename(tmp_path / "set" / "3.npy")
    whole = (tmp_path / "set" / "0.npy").read_bytes()
    (tmp_path / "set" / "4.npy").write_bytes(whole[:-1])
    (tmp_path / "set" / "5.npy").touch()
    images = open_images(config(source=tmp_path / "set", range=(-2, 6)))
    assert len(images) == 1
    assert [text.partition(":")[0] for text in images.bad] == [f"{i}.npy" for i in range(1, 6)]
    assert not Planted.target.exists()


@pytest.fixture(autouse=True)
def _target(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Planted, "target", tmp_path / "planted", raising=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"range": None}, r"data\.range .*0\.npy.* float32"),
        ({"channels": 3}, r"data\.channels is 3 .*0\.npy has 2"),
        ({"size": 4}, r"data\.size is \(4, 4\) .*0\.npy has 4 x 6 "),
        ({"bits": 16}, r"data\.bits is 16 "),
        ({"image_column": "x"}, r"data\.image_column is 'x'"),
    ],
)
def test_fields_that_contradict_the_arrays_are_errors(fields: dict, message: str, config, tmp_path: Path) -> None:
    write(tmp_path / "set", *drawn(2, 2, 4, 6))
    with pytest.raises(ValueError, match=message):
        open_images(config(source=tmp_path / "set", **({"range": (-2, 6)} | fields)))
    assert open_images(config(source=tmp_path / "set", range=(-2, 6), size=(4, 6), channels=2)).shape == (2, 4, 6)


def test_the_first_readable_array_defines_the_set(config, tmp_path: Path) -> None:
    write(tmp_path / "set", np.zeros(3), *drawn(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"data\.source '.*set'.* 1 .*0\.npy: shape \(3,\)"):
        open_images(config(source=tmp_path / "set", range=(-2, 6), max_bad=0))
    assert len(open_images(config(source=tmp_path / "set", range=(-2, 6)))) == 2


def test_another_range_has_another_cache_and_fingerprint(config, tmp_path: Path) -> None:
    write(tmp_path / "set", *drawn(2, 1, 2, 2))
    one, two = (open_images(config(source=tmp_path / "set", range=span)) for span in ((-2, 6), (-4, 8)))
    np.testing.assert_array_equal(one.read(np.arange(2)), two.read(np.arange(2)))
    assert one.fingerprint != two.fingerprint


def test_a_range_is_rounded_to_the_dtype_of_the_values() -> None:
    """0.1 as float32 is a little more than 0.1."""
    assert in_range(np.array([0.1, -0.1], np.float32), -0.1, 0.1).all()
    assert not in_range(np.array([0.10001], np.float32), -0.1, 0.1).any()
    assert in_range(np.array([65504, -65504, np.inf, np.nan], np.float16), -1e6, 1e6).tolist() == [1, 1, 0, 0]
    assert in_range(np.array([0, 1, 2], np.uint8), 0.5, 1.5).tolist() == [False, True, False]


def test_pictures_and_arrays_do_not_mix(config, pixels, save, tmp_path: Path) -> None:
    write(tmp_path / "set", *drawn(1, 1, 2, 2))
    save(tmp_path / "set" / "a.png", pixels(0, 2, 2))
    with pytest.raises(ValueError, match=r"data\.source '.*set'.*a\.png.*0\.npy"):
        open_images(config(source=tmp_path / "set"))


@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_refuse_a_range_and_other_channels(bits, config, pixels, save, tmp_path: Path) -> None:
    save(tmp_path / "set" / "a.png", pixels(0, 2, 2))
    folder: dict[str, Any] = {"source": tmp_path / "set", "bits": bits}
    for source in (folder, {"bits": bits}):
        with pytest.raises(ValueError, match=r"data\.range is \(0, 1\)"):
            open_images(config(**source, range=(0, 1)))
        with pytest.raises(ValueError, match=r"data\.channels 4 "):
            open_images(config(**source, channels=4))


def test_16_bit_pictures_from_file_to_network(config, save, tmp_path: Path) -> None:
    levels = np.array([[0, 13107, 65535]], np.uint16)
    save(tmp_path / "set" / "a.png", levels)
    images: Images = open_images(config(source=tmp_path / "set", bits=16))
    assert str(images) == "1 16-bit grey image of 1 x 3 px (height x width), no labels"
    image, *_ = BatchReader(images, seed=0, batch=1).get(0)
    assert image.dtype == torch.uint16
    seen = images.pixel_format.to_unit(image)
    torch.testing.assert_close(seen, torch.tensor([[[[-1, -0.6, 1]]]]), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(images.pixel_format.from_unit(seen)[0, 0], levels)
