"""Tables that take far more memory than their files, and those with many rows: read in bounded memory and time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, Value

from tests import forks
from training.data import DataConfig, open_images
from training.data.sources import table_files
from training.data.sources.table_files import dictionary_bytes, open_table, stated_bytes

MIB = 1 << 20
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

CHILD = """
import json, resource, sys, threading, time
from pathlib import Path
import datasets, numpy as np, pyarrow.parquet, torch
from training.data import DataConfig, open_images
import training.data.decode
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20
before, most, start = resident(), 0, time.monotonic()
def watch():
    global most
    while True:
        most = max(most, resident())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
fields, message = json.loads(sys.argv[1]), ""
try:
    images = open_images(DataConfig(**{k: Path(v) if k == "cache" else v for k, v in fields.items()}))
    out = np.empty((4, *images.shape), np.uint8)
    images.take(np.arange(4), 0, out)
except ValueError as error:
    message = str(error)
print(json.dumps([message, max(most, resident()) - before, time.monotonic() - start]))
"""
SLOW = pytest.mark.slow


def measure(**fields) -> tuple[str, float, float]:
    """Opens images in another process and takes four of them. Returns the error, MiB of memory, and seconds."""
    done = forks.run(CHILD, json.dumps(fields))
    assert done.returncode == 0, done.stderr[-2000:]
    message, memory, seconds = json.loads(done.stdout.splitlines()[-1])
    return message, memory, seconds


STREAMED = {"stream": True, "size": 4, "channels": 1}


def fields(file: Path, stream: bool) -> dict:
    return {"source": str(file), **(STREAMED if stream else {"cache": str(file.parent / "cache")})}


def repeated(value: pa.Array, count: int) -> pa.DictionaryArray:
    """One value many times. A file without the schema of Arrow holds it as other arrays that repeat."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), value)


def write(file: Path, images: Any, dictionary: bool = True, store_schema: bool = True, **columns) -> Path:
    pq.write_table(
        pa.table({"image": images, **columns}),
        file,
        compression="zstd",
        use_dictionary=dictionary,
        store_schema=store_schema,
        write_statistics=False,  # which would take seconds
        dictionary_pagesize_limit=1 << 30,
    )
    return file


@pytest.mark.parametrize(
    ("kind", "stream"),
    [
        (PICTURE, False),
        *(pytest.param(*row, marks=SLOW) for row in ((pa.binary(), False), (pa.large_binary(), True), (PICTURE, True))),
    ],
    ids=["picture", "bytes", "large streamed", "picture streamed"],
)
def test_a_small_file_that_expands_to_gigabytes(kind: pa.DataType, stream: bool, tmp_path: Path) -> None:
    """One cell of 50 MiB for all rows: the file states 50 MiB."""
    if pa.types.is_struct(kind):
        columns = [repeated(pa.array([value]), 40) for value in (bytes(50 * MIB), "x")]
        array = pa.StructArray.from_arrays(columns, ["bytes", "path"])
        file = write(tmp_path / "t.parquet", array, store_schema=False)
    else:
        file = write(tmp_path / "t.parquet", pa.concat_arrays([pa.array([bytes(50 * MIB)], kind)] * 40))
    assert file.stat().st_size < 20_000
    message, memory, seconds = measure(**fields(file, stream))
    assert "row group 0 of" in message if stream else "row 0" in message
    assert memory < 2_000  # the limit of a row group, one batch, and copies of a cell
    assert seconds < 60


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=SLOW)])
def test_a_column_that_states_gigabytes_is_not_read(stream: bool, tmp_path: Path) -> None:
    column = pa.chunked_array([pa.array([bytes(64 * MIB)])] * 20)
    file = write(tmp_path / "t.parquet", column, dictionary=False)
    message, memory, _ = measure(**fields(file, stream))
    assert "t.parquet: row group 0 of column 'image'" in message
    assert "1.34 GB" in message
    assert memory < 200


@pytest.mark.parametrize(
    ("kind", "stream"),
    [(PICTURE, True), *(pytest.param(*row, marks=SLOW) for row in ((PICTURE, False), (pa.string(), True)))],
    ids=["streamed", "cached", "streamed paths"],
)
def test_thirty_million_rows_without_an_image(stream: bool, kind: pa.DataType, tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", pa.nulls(30_000_000, kind))
    message, memory, seconds = measure(**fields(file, stream))
    assert "data.max_bad 10" in message
    assert memory < 2_000
    assert seconds < 120


def test_the_labels_of_many_rows_take_little_memory(tmp_path: Path) -> None:
    names = pa.array([f"a long name of a class, number {i % 10}" for i in range(1_000_000)])
    file = write(tmp_path / "t.parquet", pa.nulls(1_000_000, PICTURE), label=names)
    message, memory, _ = measure(**fields(file, False))
    assert "data.max_bad 10" in message
    assert memory < 400


@pytest.mark.parametrize("length", [1001, 50 * MIB])
def test_a_huge_label_is_an_error(length: int, config, tmp_path: Path, png, pixels) -> None:
    labels = pa.array(["a", "b" * length, "c"])
    file = write(tmp_path / "t.parquet", pa.array([png(pixels(i, 4, 4)) for i in range(3)]), label=labels)
    with pytest.raises(ValueError, match=rf"t\.parquet.*'label'.*row 1 has {length:,} .*data\.label_column") as error:
        open_images(config(source=file))
    assert len(str(error.value)) < 600


def test_a_huge_path_counts_as_bad(config, tmp_path: Path, save, pixels) -> None:
    save(tmp_path / "a.png", pixels(0, 4, 4))
    images = open_images(config(source=write(tmp_path / "t.parquet", pa.array(["a.png", "b" * MIB]))))
    assert len(images) == len(images.bad) == 1


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.binary()),
        pa.list_(pa.list_(pa.uint8())),
        pa.list_(pa.struct([("bytes", pa.binary())])),
        pa.struct([("bytes", pa.list_(pa.uint8()))]),
        pa.struct([("bytes", pa.binary()), ("path", pa.int64())]),
        pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))]),
        pa.struct([("x", pa.binary())]),
        pa.float32(),
        pa.timestamp("s"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_nested_and_other_columns_are_an_error(kind: pa.DataType, stream: bool, tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", pa.nulls(3, kind))
    options = fields(file, stream) | {"image_column": "image"}
    options |= {} if stream else {"cache": tmp_path / "cache"}
    with pytest.raises(ValueError, match=r"image column 'image'.*data\.image_column"):
        open_images(DataConfig(**options))


@pytest.mark.parametrize("kind", [PICTURE, pa.binary(), pa.large_binary()], ids=["picture", "bytes", "large"])
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_small_batches_give_the_same_images(rows: int, kind, config, tmp_path: Path, png, pixels, monkeypatch) -> None:
    """Repeated images are stored once; row groups end within a batch."""
    data = [png(pixels(i % 5, 4, 4)) for i in range(23)]
    values = [{"bytes": each, "path": None} if pa.types.is_struct(kind) else each for each in data]
    table = pa.table({"image": pa.array(values, kind), "label": list(range(23))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10)
    monkeypatch.setattr(table_files, "BATCH_ROWS", rows)
    images = open_images(config(source=tmp_path / "t.parquet"))
    expected = np.stack([pixels(i % 5, 4, 4) for i in range(23)])
    np.testing.assert_array_equal(images.read(np.arange(23))[:, 0], expected)
    streamed = open_images(DataConfig(source=str(tmp_path / "t.parquet"), **STREAMED))
    out = np.empty((23, 1, 4, 4), np.uint8)
    labels = streamed.labels[streamed.take(np.arange(23), 0, out)]
    np.testing.assert_array_equal(out[:, 0], expected[labels])
    assert sorted(labels.tolist()) == list(range(23))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("size", [10, 1000, 200_000])
def test_the_size_of_a_dictionary_is_read(size: int, compression: str, tmp_path: Path) -> None:
    array = pa.array([b"x" * size, b"y" * size] * 5)
    pq.write_table(pa.table({"image": array}), tmp_path / "t.parquet", compression=compression)
    table = open_table(tmp_path / "t.parquet")
    part = table.metadata.row_group(0).column(0)
    assert 2 * size <= dictionary_bytes(tmp_path / "t.parquet", part) <= 2 * size + 100


def test_only_the_columns_in_use_are_read(config, tmp_path: Path, png, pixels) -> None:
    """Another column is damaged and states gigabytes."""
    file = tmp_path / "t.parquet"
    other = pa.array([bytes(range(256)) * 40] * 3)
    pq.write_table(pa.table({"image": [png(pixels(i, 4, 4)) for i in range(3)], "other": other}), file)
    data = file.read_bytes()
    assert data.count(bytes(range(256)) * 2) > 0 or b"other" in data
    start = pq.read_metadata(file).row_group(0).column(1).dictionary_page_offset
    file.write_bytes(data[:start] + bytes(64) + data[start + 64 :])
    assert len(open_images(config(source=file))) == 3


def test_an_arrow_file_that_expands_is_an_error(config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(table_files, "MAX_GROWTH", MIB)
    schema = Features({"image": Image(), "x": Value("int64")}).arrow_schema
    table = pa.table({"image": [{"bytes": bytes(MIB), "path": None}] * 4, "x": range(4)}).cast(schema)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pa.ipc.new_file(file, schema, options=options) as writer:
        writer.write_table(table, max_chunksize=1)
    assert (tmp_path / "t.arrow").stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"t\.arrow is compressed"):
        open_images(config(source=tmp_path / "t.arrow"))


@pytest.mark.parametrize("make", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_batch_is_not_read_before_its_size(make, compression, tmp_path: Path, monkeypatch) -> None:
    columns = {
        "image": pa.array([bytes(1000), None] * 50),
        "picture": pa.array([{"bytes": bytes(500), "path": "x"}] * 100),
        "name": pa.array(["a" * 300, "b"] * 50).dictionary_encode(),
        "nothing": pa.nulls(100),
    }
    table, file = pa.table(columns), tmp_path / "t.arrow"
    with make(str(file), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    assert len(open_table(file).sizes) == 1
    size = stated_bytes(pa.memory_map(str(file)))
    assert 0 <= size - table.nbytes <= 200
    monkeypatch.setattr(table_files, "MAX_GROWTH", size - 1)
    monkeypatch.setattr(pa.ipc, "open_stream", None)
    with pytest.raises(ValueError, match=r"t\.arrow is compressed"):
        open_table(file)


def test_a_path_that_is_no_utf_8_is_an_error(tmp_path: Path) -> None:
    names = pa.array([b"\xff\xfe"] * 2).view(pa.string())
    image = pa.StructArray.from_arrays([pa.nulls(2, pa.binary()), names], ["bytes", "path"])
    options = fields(write(tmp_path / "t.parquet", image), False) | {"cache": tmp_path / "cache"}
    with pytest.raises(ValueError, match=r"row \d of .*UTF-8"):
        open_images(DataConfig(**options)).take(np.arange(2), 0, np.empty((2, 1, 4, 4), np.uint8))
