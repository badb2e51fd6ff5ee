"""Static fields of a set, and vectors of its images: from tables, label files, metadata and .npz files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data import DataConfig, open_images, open_validation
from training.data.sources.static_fields import read_static
from training.data.validate import validate

COUNT = 4
COLUMNS = ("strain", "porosity")
VALUES = np.random.default_rng(0).normal(size=(COUNT, 2)).astype(np.float32)
ROWS = [{"file_name": f"{i}.png", "strain": float(VALUES[i, 0]), "porosity": float(VALUES[i, 1])} for i in range(COUNT)]
STATIC = np.random.default_rng(1).normal(size=(2, 4, 6)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, save, pixels) -> Path:
    for i in range(COUNT):
        save(tmp_path / "set" / f"{i}.png", pixels(i, 4, 6))
    return tmp_path / "set"


def lines(rows: list[dict]) -> str:
    return "\n".join(map(json.dumps, rows))


def comma_separated(rows: list[dict]) -> str:
    return "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])


@pytest.mark.parametrize(("name", "text"), [("metadata.jsonl", lines), ("metadata.csv", comma_separated)])
def test_columns_of_metadata_beside_a_folder(name: str, text, folder: Path, config) -> None:
    (folder / name).write_text(text(ROWS))
    images = open_images(config(source=folder, vector_columns=COLUMNS))
    assert images.labels is None
    assert images.notes == ()
    np.testing.assert_array_equal(images.vectors, VALUES)
    swapped = open_images(config(source=folder, vector_columns=COLUMNS[::-1]))
    np.testing.assert_array_equal(swapped.vectors, VALUES[:, ::-1])


def test_columns_of_a_label_file_with_and_without_labels(folder: Path, tmp_path: Path, config) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS[::-1]), tmp_path / "rows.parquet")
    options = {"source": folder, "vector_columns": COLUMNS, "label_file": tmp_path / "rows.parquet"}
    images = open_images(config(**options))
    assert images.labels is None
    np.testing.assert_array_equal(images.vectors, VALUES)
    pq.write_table(pa.Table.from_pylist([row | {"label": i % 2} for i, row in enumerate(ROWS)]), options["label_file"])
    labelled = open_images(config(**options))
    assert labelled.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(labelled.vectors, VALUES)
    ignored = open_images(config(**options, labels=False))
    assert ignored.labels is None
    np.testing.assert_array_equal(ignored.vectors, VALUES)


def test_metadata_of_splits(tmp_path: Path, save, pixels, config) -> None:
    for split, values in (("train", VALUES), ("test", VALUES[:1])):
        for i in range(len(values)):
            save(tmp_path / "set" / split / f"{i}.png", pixels(i, 2, 2))
        rows = [{"file_name": f"{i}.png", "strain": float(value)} for i, (value, _) in enumerate(values)]
        (tmp_path / "set" / split / "metadata.jsonl").write_text(lines(rows))
    fields = config(source=tmp_path / "set", vector_columns=("strain",), validation="test")
    np.testing.assert_array_equal(open_images(fields).vectors, VALUES[:, :1])
    np.testing.assert_array_equal(open_validation(fields).vectors, VALUES[:1, :1])  # may be constant


@pytest.mark.parametrize("stream", [False, True])
def test_columns_of_tables(stream: bool, tmp_path: Path, png, pixels, config) -> None:
    for part in range(2):
        rows = [row | {"image": png(pixels(i, 4, 6))} for i, row in enumerate(ROWS)][2 * part : 2 * part + 2]
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / f"{part}.parquet")
    options = {"source": str(tmp_path / "set"), "vector_columns": COLUMNS, "size": (4, 6), "channels": 1}
    images = open_images(DataConfig(**options, stream=True) if stream else config(**options))
    out = np.empty((COUNT, 1, 4, 6), np.uint8)
    for number, image in zip(images.take(np.arange(COUNT), 0, out), out, strict=True):
        np.testing.assert_array_equal(image[0], pixels(number, 4, 6))
    np.testing.assert_array_equal(images.vectors, VALUES)


def test_arrays_of_an_npz_file(tmp_path: Path, config, pixels) -> None:
    columns = {"strain": VALUES[:, 0].astype(np.float64), "porosity": VALUES[:, 1:]}
    np.savez(tmp_path / "set.npz", images=pixels(0, COUNT, 4, 6), kind=np.array([0, 1, 1, 0]), **columns)
    images = open_images(config(source=tmp_path / "set.npz", vector_columns=COLUMNS))
    np.testing.assert_array_equal(images.vectors, VALUES)
    assert images.labels.tolist() == [0, 1, 1, 0]  # the only array that is left


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (ROWS, ("strian",), r"data\.vector_columns.*strian.*strain"),
        (
            [row | {"strain": 1} for row in ROWS],
            ("strain",),
            r"data\.vector_columns.*strain.* is 1 for all of 4 images",
        ),
        ([row | {"strain": float("nan")} for row in ROWS], ("strain",), r"strain.*nan in row 0"),
        ([row | {"strain": 1e300 * i} for i, row in enumerate(ROWS)], ("strain",), r"strain.*1e\+300 in row 1"),
        ([row | {"strain": "much"} for row in ROWS], ("strain",), r"'much' is not a number"),
        ([row | {"strain": None} for row in ROWS], ("strain",), r"None is not a number"),
        (ROWS[1:], ("strain",), r"data\.vector_columns: 1 image.*0\.png.*'strain'"),
        (ROWS, ("strain", "strain"), r"data\.vector_columns .*twice"),
    ],
)
def test_columns_that_are_no_numbers_are_errors(rows: list, columns: tuple, message: str, folder: Path, config) -> None:
    (folder / "metadata.jsonl").write_text(lines(rows))
    with pytest.raises(ValueError, match=message) as error:
        open_images(config(source=folder, vector_columns=columns))
    assert "\n" not in str(error.value)


def test_missing_columns_of_other_sources_are_errors(folder: Path, tmp_path: Path, png, pixels, config) -> None:
    with pytest.raises(ValueError, match=r"data\.vector_columns.*data\.label_file.*metadata"):
        open_images(config(source=folder, vector_columns=COLUMNS))
    pq.write_table(pa.Table.from_pylist([{"image": png(pixels(0, 2, 2)), "strain": None}]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"data\.vector_columns.*strian.*strain"):
        open_images(config(source=tmp_path / "t.parquet", vector_columns=("strian",)))
    with pytest.raises(ValueError, match=r"data\.vector_columns.*strain.*None.*row 0"):
        open_images(config(source=tmp_path / "t.parquet", vector_columns=("strain",)))
    np.savez(tmp_path / "set.npz", images=pixels(0, COUNT, 4, 6), strain=VALUES[:3, 0])
    with pytest.raises(ValueError, match=r"data\.vector_columns.*'strain'"):
        open_images(config(source=tmp_path / "set.npz", vector_columns=("strain",)))
    with pytest.raises(ValueError, match=r"data\.vector_columns.*no columns"):
        open_images(config(source="digits", vector_columns=("strain",)))


def test_static_fields_come_with_the_images(folder: Path, tmp_path: Path, config) -> None:
    np.save(tmp_path / "static.npy", STATIC)
    plain, images = (
        open_images(config(source=folder)),
        open_images(config(source=folder, static=tmp_path / "static.npy")),
    )
    np.testing.assert_array_equal(images.static, STATIC)
    assert plain.static is None
    streamed = DataConfig(source=str(folder), static=tmp_path / "static.npy", stream=True, size=(4, 6), channels=1)
    np.testing.assert_array_equal(open_images(streamed).static, STATIC)
    np.save(tmp_path / "static.npy", STATIC[0].astype(np.float64))
    one = open_images(config(source=folder, static=tmp_path / "static.npy"))
    np.testing.assert_array_equal(one.static, STATIC[:1])
    assert len({each.fingerprint for each in (plain, images, one)}) == 3


def changed(where: tuple, value: float) -> np.ndarray:
    array = STATIC.copy()
    array[where] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (changed((1, 2, 3), np.nan), r"field 1 is nan at \(2, 3\)"),
        (changed((0, 0, 0), np.inf), r"field 0 is inf at \(0, 0\)"),
        (changed((1,), 7.0), "field 1 is 7 everywhere"),
        (STATIC[None], r"\(1, 2, 4, 6\)"),
        (STATIC.astype(complex), "complex128"),
    ],
)
def test_invalid_static_fields_are_errors(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "static.npy", array)
    with pytest.raises(ValueError, match=rf"data\.static .*{message}"):
        read_static(tmp_path / "static.npy")


def test_static_fields_of_another_size_are_an_error_before_decoding(
    folder: Path, tmp_path: Path, config, monkeypatch
) -> None:
    np.save(tmp_path / "static.npy", STATIC[:, :3])
    message = r"data\.static has 3 x 6 .*4 x 6"
    options = {"source": folder, "static": tmp_path / "static.npy"}
    with pytest.raises(ValueError, match=message):
        validate(config(**options))
    with pytest.raises(ValueError, match=message):
        open_images(config(**options))
    monkeypatch.setattr("training.data.decode.attempt", None)
    with pytest.raises(ValueError, match=message):
        open_images(config(**options, size=(4, 6)))
    with pytest.raises(ValueError, match=r"data\.static .*No such file"):
        open_images(config(source=folder, static=tmp_path / "none.npy"))
