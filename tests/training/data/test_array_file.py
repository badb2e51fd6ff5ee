"""Files with the arrays of many images, the order of axes, and damaged or hostile arrays."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from training.data import DataConfig, open_images
from training.data.sources.arrays import MAX_VALUES, map_array
from training.data.sources.source import find_source
from training.data.validate import validate


def images_of(count: int = 6, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def test_one_large_npy_with_channels_first_last_or_none(config, tmp_path: Path) -> None:
    file = tmp_path / "set.npy"
    for shape, axes in (((3, 8, 8), None), ((3, 8, 8), "chw"), ((8, 6, 3), "hwc"), ((8, 6), None)):
        array = images_of(1500, *shape)
        np.save(file, array)
        images = open_images(config(source=file, axes=axes))
        expected = array.transpose(0, 3, 1, 2) if axes == "hwc" else array.reshape(1500, -1, *shape[-2:])
        np.testing.assert_array_equal(images.read(np.arange(1500)), expected)
        assert (images.classes, images.bad) == (None, ())
        streamed = open_images(DataConfig(source=str(file), axes=axes, stream=True))
        assert streamed.shape == images.shape
        out = np.empty((4, *images.shape), np.uint8)
        streamed.take(np.array([3, 1499, 7, 1001]), 0, out)
    np.save(file, np.asfortranarray(array))
    np.testing.assert_array_equal(open_images(config(source=file)).read(np.arange(1500))[:, 0], array)


def test_one_array_per_file_with_channels_last(config, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    arrays = images_of(3, 8, 6, 4)
    for i, array in enumerate(arrays):
        np.save(tmp_path / "set" / f"{i}.npy", array)
    with pytest.raises(ValueError, match=r"0\.npy: shape \(8, 6, 4\).*data\.axes.*hwc"):
        open_images(config(source=tmp_path / "set"))
    images = open_images(config(source=tmp_path / "set", axes="hwc"))
    np.testing.assert_array_equal(images.read(np.arange(3)), arrays.transpose(0, 3, 1, 2))
    assert open_images(config(source=tmp_path / "set", axes="chw")).shape == (8, 6, 4)
    validate(DataConfig(source=str(tmp_path / "set"), axes="hwc"))


@pytest.mark.parametrize(
    "shape",
    [
        *[(64, 64, 3), (64, 64, 4), (64, 64, 1), (48, 64, 3), (64, 48, 3), (64, 64, 13), (48, 64, 13), (28, 28, 2)],
        *[(8, 8, 16), (512, 512, 5), (5, 4, 3), (512, 8, 6)],
    ],
)
def test_a_shape_that_may_have_its_channels_last_is_not_guessed(shape, config, tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", np.zeros((2, *shape), np.uint8))
    with pytest.raises(ValueError, match=r"data\.axes to chw or hwc"):
        open_images(config(source=tmp_path / "set.npy"))


@pytest.mark.parametrize(
    "shape",
    [(3, 64, 64), (1, 64, 48), (4, 32, 32), (13, 64, 64), (512, 8, 8), (3, 48, 64), (2, 3, 5), (1, 1, 2), (3, 3, 5)],
)
def test_a_shape_with_channels_first_is_taken(shape, config, tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", np.zeros((2, *shape), np.uint8))
    assert open_images(config(source=tmp_path / "set.npy")).shape == shape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((64, 64, 3), r"\(64, 64, 3\) is rather one image"),
        ((512, 512, 1), r"\(512, 512, 1\) is rather one image"),
        ((64, 64), r"\(64, 64\) is neither"),
        ((5,), r"\(5,\) is neither"),
        ((), r"\(\) is neither"),
        ((2, 2, 3, 4, 5), r"\(2, 2, 3, 4, 5\) is neither"),
        ((0, 3, 4, 4), r"\(0, 3, 4, 4\) has no values"),
        ((3, 0, 4, 4), r"\(3, 0, 4, 4\) has no values"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_another_number_of_axes_is_an_error(shape, message: str, suffix, config, tmp_path: Path) -> None:
    file = tmp_path / f"set{suffix}"
    np.save(file, np.zeros(shape, np.uint8)) if suffix == ".npy" else np.savez(file, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=message if suffix == ".npy" else rf"{message}|data\.image_column.*arr_0"):
        open_images(config(source=file))


def test_npz_with_images_alone_or_with_labels(config, tmp_path: Path) -> None:
    array, file = images_of(6, 1, 8, 8), tmp_path / "set.npz"
    for save in (np.savez, np.savez_compressed):
        save(file, array)
        np.testing.assert_array_equal(open_images(config(source=file)).read(np.arange(6)), array)
    labels = np.array([0, 1, 2, 2, 1, 0])
    for given, classes in (
        (labels, ("0", "1", "2")),
        (labels[:, None].astype(np.uint8), ("0", "1", "2")),
        (np.array(list("abccba")), ("a", "b", "c")),
        (np.array(list("abccba"), "S1"), ("a", "b", "c")),
    ):
        np.savez(file, array, given)
        images = open_images(config(source=file))
        assert images.labels is not None
        assert (images.classes, images.labels.tolist()) == (classes, labels.tolist())
        assert open_images(config(source=file, labels=False)).classes is None


def test_arrays_of_an_npz_are_named_and_can_be_chosen(config, tmp_path: Path) -> None:
    """As in the mnist.npz of Keras."""
    train, test, file = images_of(6, 8, 8), images_of(4, 8, 8), tmp_path / "mnist.npz"
    np.savez(file, x_train=train, y_train=np.arange(6), x_test=test, y_test=np.arange(4))
    with pytest.raises(
        ValueError, match=r"data\.image_column.*x_train \(6, 8, 8\), y_train \(6,\), x_test \(4, 8, 8\)"
    ):
        open_images(config(source=file))
    with pytest.raises(ValueError, match=r"data\.image_column 'x_tran'.*x_train"):
        open_images(config(source=file, image_column="x_tran"))
    images = open_images(config(source=file, image_column="x_test"))
    np.testing.assert_array_equal(images.read(np.arange(4))[:, 0], test)
    assert images.classes == ("0", "1", "2", "3")
    assert len(open_images(config(source=file, image_column="x_train", label_column="y_train"))) == 6
    for wrong, message in (("y_test", r"y_test .*\(4,\).*6 images"), ("x_train", r"x_train .*\(6, 8, 8\).*6 images")):
        with pytest.raises(ValueError, match=message):
            open_images(config(source=file, image_column="x_train", label_column=wrong))
    with pytest.raises(ValueError, match=r"data\.split 'test'"):
        open_images(config(source=file, split="test"))
    np.savez(file, train)
    with pytest.raises(ValueError, match=r"data\.label_column.*arr_0"):
        open_images(config(source=file, labels=True))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([True, False]), r"\(2,\) and bool"),
        (np.array(["a", None], object), r"\(2,\) and object"),
        (np.array([0.0, 1.0]), r"\(2,\) and float64"),
        (np.eye(2), r"\(2, 2\) and float64"),
        (np.array([b"a", b"\xff"]), r"UTF-8"),
    ],
)
def test_an_array_that_holds_no_labels_is_named(labels, message: str, config, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=images_of(2, 8, 8), y=labels)
    with pytest.raises(ValueError, match=rf"a\.npz: label array y .*{message}"):
        open_images(config(source=tmp_path / "a.npz", label_column="y"))


def header(shape: str, dtype: str = "|u1", order: str = "False", version: bytes = b"\1\0") -> bytes:
    text = f"{{'descr': {dtype if dtype[0] == '[' else repr(dtype)}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\1\0" else 4, "little") + text.encode()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "absurd": (header("(1000000, 1000000, 1000000)"), r"1,000,000,000,000,000,000 bytes, but there are 0"),
    "overflow": (header("(4294967296, 4294967296, 4294967296)"), r"bytes, but there are 0"),
    "negative": (header("(-3, -4, 1)") + bytes(12), r"\(-3, -4, 1\) has no values"),
    "huge integer": (header(f"(1, 1, {'9' * 400})"), r"bytes, but there are 0"),
    "objects": (header("(1, 2, 2)", "|O") + pickle.dumps(1), r"dtype object"),
    "structured": (header("(1, 2, 2)", "[('a', '|u1'), ('b', '<f4')]") + bytes(20), r"dtype \[\('a'"),
    "complex": (header("(1, 2, 2)", "<c8") + bytes(32), r"dtype complex64"),
    "date": (header("(1, 2, 2)", "<M8[s]") + bytes(32), r"dtype datetime64"),
    "text": (header("(1, 2, 2)", "<U4") + bytes(64), r"dtype <U4"),
    "bool": (header("(1, 2, 2)", "|b1") + bytes(4), r"dtype bool"),
    "uint64": (header("(1, 2, 2)", "<u8") + bytes(32), r"dtype uint64"),
    "long double": (header("(1, 2, 2)", "<f16") + bytes(64), r"dtype (float128|longdouble)|descr"),
    "void": (header("(1, 2, 2)", "|V4") + bytes(16), r"dtype \|V4"),
    "shape is text": (header("'abc'"), r"shape is not valid"),
    "code": (header("(__import__('os').system('true'),)"), r"malformed|parse|valid"),
    "deep": (header("(" * 3000 + ")" * 3000), r"header|Header|parse|nested"),
    "no header": (b"\x93NUMPY\1\0", r"EOF"),
    "cut header": (header("(1, 2, 2)")[:30], r"EOF"),
    "long header": (b"\x93NUMPY\2\0\xff\xff\xff\xff{", r"EOF"),
    "version 3": (header("(1, 2, 2)", version=b"\3\0") + bytes(4), r"version \(3, 0\)"),
    "version 9": (header("(1, 2, 2)", version=b"\x09\0") + bytes(4), r"version \(9, 0\)"),
    "not an array": (b"<html>", r"magic"),
    "pickle": (pickle.dumps(np.zeros((1, 2, 2), np.uint8)), r"magic"),
    "empty": (b"", r"magic|EOF"),
    "short": (header("(1, 4, 4)") + bytes(15), r"16 bytes, but there are 15"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_array_is_an_error_in_one_line(name: str, config, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        open_images(config(source=tmp_path / "set"))
    assert len(str(error.value)) < 1500
    (tmp_path / "set.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.npy: "):
        open_images(config(source=tmp_path / "set.npy"))
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(ValueError, match=r"set\.npz: "):
        open_images(config(source=tmp_path / "set.npz", image_column="a"))


def test_a_sparse_file_is_mapped_and_not_read(config, tmp_path: Path) -> None:
    """10 GB on a disk that holds nothing of them; one image is read at a time."""
    file = tmp_path / "set.npy"
    with open(file, "wb") as sparse:
        sparse.write(header("(10000, 1, 1000, 1000)"))
        sparse.truncate(sparse.tell() + 10**10)
    assert map_array(file).nbytes == 10**10
    images = open_images(DataConfig(source=str(file), stream=True))
    assert (len(images), images.shape) == (10000, (1, 1000, 1000))
    (tmp_path / "set").mkdir()
    with open(tmp_path / "set" / "a.npy", "wb") as sparse:
        sparse.write(header("(1, 100000, 100000)"))
        sparse.truncate(sparse.tell() + 10**10)
    with pytest.raises(ValueError, match=rf"a\.npy: shape \(1, 100000, 100000\).*{MAX_VALUES:,}"):
        open_images(config(source=tmp_path / "set"))


def bomb(size: int) -> bytes:
    """An .npz of a few kB whose array has `size` zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(header(f"({size // 10**6}, 1000, 1000)"))
        for _ in range(size // 10**6):
            member.write(bytes(10**6))
    return file.getvalue()


def test_an_npz_that_unpacks_to_more_than_half_of_the_memory_is_an_error(config, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "set.npz").write_bytes(bomb(10**7))
    assert len(open_images(config(source=tmp_path / "set.npz"))) == 10
    monkeypatch.setattr("training.data.sources.array_file.total_bytes", lambda device: 15 * 10**6)
    with pytest.raises(ValueError, match=r"set\.npz: array a has 10.*half of the memory.*\.npy"):
        find_source(config(source=tmp_path / "set.npz")).open()


def damaged(change: str) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images_of(6, 8, 8))
    data = bytearray(file.getvalue())
    if change == "truncated":
        return bytes(data[: len(data) // 2])
    if change == "flipped":
        data[len(data) // 2] ^= 0xFF
    if change == "encrypted":
        data[6] |= 1
        data[data.rfind(b"PK\1\2") + 8] |= 1
    if change == "unknown method":
        data[8] = 99
        data[data.rfind(b"PK\1\2") + 10] = 99
    return b"no archive" if change == "text" else bytes(data)


@pytest.mark.parametrize("change", ["truncated", "flipped", "encrypted", "unknown method", "text"])
def test_a_damaged_npz_is_an_error_in_one_line(change: str, config, tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(damaged(change))
    with pytest.raises(ValueError, match=r"set\.npz: not a readable \.npz file"):
        open_images(config(source=tmp_path / "set.npz"))


def test_other_members_of_an_npz_are_an_error(config, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match=r"set\.npz: "):
        open_images(config(source=tmp_path / "set.npz"))
    with zipfile.ZipFile(tmp_path / "set.npz", "w"):
        pass
    with pytest.raises(ValueError, match=r"data\.image_column"):
        open_images(config(source=tmp_path / "set.npz"))


def test_floats_have_a_range_and_bad_values_a_place(config, tmp_path: Path) -> None:
    array = np.zeros((4, 2, 8, 8), ">f4")
    array[2, 1, 3, 5] = np.nan
    np.save(tmp_path / "set.npy", array)
    with pytest.raises(ValueError, match=r"data\.range is missing.*float32"):
        open_images(config(source=tmp_path / "set.npy"))
    images = open_images(config(source=tmp_path / "set.npy", range=(-1, 1)))
    assert images.bad == ("image 2: 1 of 128 values are outside data.range -1 to 1, such as nan at (1, 3, 5)",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_column": "y"}, r"data\.label_column is 'y'"),
        ({"label_file": Path("x")}, r"data\.label_file is 'x'"),
        ({"bits": 16}, r"data\.bits is 16"),
        ({"size": 9}, r"data\.size is \(9, 9\).*8 x 8"),
        ({"channels": 3}, r"data\.channels is 3.*has 1"),
        ({"allow_outside": True}, r"data\.allow_outside is True"),
        ({"split": "val"}, r"data\.split 'val'"),
    ],
)
def test_settings_without_an_effect_are_errors(fields: dict, message: str, config, tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", images_of(3, 8, 8))
    with pytest.raises(ValueError, match=message):
        open_images(config(source=tmp_path / "set.npy", **fields))


def test_axes_have_no_effect_on_pictures(config, pixels, save, tmp_path: Path) -> None:
    save(tmp_path / "set" / "a.png", pixels(0, 4, 4))
    with pytest.raises(ValueError, match=r"data\.axes is 'hwc'"):
        open_images(config(source=tmp_path / "set", axes="hwc"))


def test_zlib_of_a_member_is_damaged(config, tmp_path: Path) -> None:
    """The name stands in the message, not a traceback."""
    file = io.BytesIO()
    np.savez_compressed(file, images_of(600, 8, 8))
    data = bytearray(file.getvalue())
    data[200:260] = zlib.compress(b"x" * 80)[:8] * 7 + bytes(4)
    (tmp_path / "set.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.npz: not a readable"):
        open_images(config(source=tmp_path / "set.npz"))
