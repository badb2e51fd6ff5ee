"""Streamed images equal cached ones, in an order that follows from the seed alone."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from tests.training import toy
from training.data import BatchReader, DataConfig, StreamedImages, image_index, open_images, stream
from training.data.order import ShardOrder
from training.data.sources.source import find_source

COUNT = 24
ANIMALS = ClassLabel(names=["cat", "dog", "eel"])


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def streamed(tmp_path: Path) -> Callable[..., StreamedImages]:
    def make(source: Path | str, **fields) -> StreamedImages:
        given = {"size": 8, "channels": 1, "stream": True, "stream_shards": 2} | fields
        images = open_images(DataConfig(source=str(source), **given))
        assert isinstance(images, StreamedImages)
        return images

    return make


@pytest.fixture
def table(pixels, png) -> Dataset:
    """24 grey images of 8 x 8 px, image i drawn from seed i, with labels."""
    pictures = [{"bytes": png(pixels(i, 8, 8)), "path": f"{i}.png"} for i in range(COUNT)]
    features = Features({"image": Image(), "label": ANIMALS})
    return Dataset.from_dict({"image": pictures, "label": [i * 7 % 3 for i in range(COUNT)]}, features=features)


@pytest.fixture
def parquet(table: Dataset, tmp_path: Path) -> Path:
    """The table in two files with row groups of 5, 5, 4 and 5, 5 images."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    for number, rows in enumerate((range(14), range(14, 24))):
        part = table.select(rows)
        pq.write_table(part.with_format("arrow")[:], folder / f"{number}.parquet", row_group_size=5)
    return folder


@pytest.fixture
def pets(pixels, save, tmp_path: Path) -> Path:
    for i in range(COUNT):
        save(tmp_path / "pets" / ("cat" if i < 9 else "dog") / f"{i:02}.png", pixels(i, 8, 8))
    return tmp_path / "pets"


def taken(images: StreamedImages, start: int, stop: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray | None]:
    out = np.empty((stop - start, *images.shape), images.pixel_format.stored)
    numbers = images.take(np.arange(start, stop), seed, out)
    return out, None if images.labels is None else images.labels[numbers]


def check(images: StreamedImages, sizes: list[int], pixels, label: Callable[[int], int]) -> None:
    """Three epochs in pieces of 7, against the order of these shards."""
    order = ShardOrder(sizes, 2)
    assert len(images) == COUNT
    for start in range(0, 3 * COUNT, 7):
        out, labels = taken(images, start, start + 7)
        index = order.index(np.arange(start, start + 7), 3)
        np.testing.assert_array_equal(out[:, 0], [pixels(i, 8, 8) for i in index])
        assert labels is not None
        assert labels.tolist() == [label(i) for i in index]


def test_a_streamed_folder_equals_the_cache(pets: Path, streamed, config) -> None:
    images, cached = streamed(pets), open_images(config(source=pets))
    assert images.classes == cached.classes == ("cat", "dog")
    for start in range(0, 3 * COUNT, 7):
        out, other = taken(images, start, start + 7), np.empty((7, 1, 8, 8), np.uint8)
        labels = cached.labels[cached.take(np.arange(start, start + 7), 3, other)]
        np.testing.assert_array_equal(out[0], other)
        np.testing.assert_array_equal(out[1], labels)


def test_row_groups_of_parquet_files(parquet: Path, streamed, pixels) -> None:
    images = streamed(parquet)
    check(images, [5, 5, 4, 5, 5], pixels, lambda i: i * 7 % 3)
    assert images.classes == ("cat", "dog", "eel")
    assert str(images) == (
        "24 grey images of 8 x 8 px (height x width), 3 classes: cat (8), dog (8), eel (8); streamed in 5 shards, 2"
        " shuffled together"
    )


def test_record_batches_of_arrow_files_of_both_kinds(table: Dataset, streamed, pixels, tmp_path: Path) -> None:
    plain = table.with_format("arrow")[:].combine_chunks()
    for kind, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / f"{kind}.arrow"), "wb") as file, new(file, plain.schema) as writer:
            writer.write_table(plain, max_chunksize=7)
        check(streamed(tmp_path / f"{kind}.arrow"), [7, 7, 7, 3], pixels, lambda i: i * 7 % 3)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "string", "large_string"])
def test_columns_of_bytes_and_of_paths(kind: str, pets: Path, streamed, pixels, tmp_path: Path) -> None:
    """As other programs than `datasets` write them; labels are names."""
    files = sorted(pets.rglob("*.png"), key=lambda file: file.name)
    values = [file.read_bytes() if "binary" in kind else str(file) for file in files]
    columns = {"img": pa.array(values, getattr(pa, kind)()), "label": pa.array([file.parent.name for file in files])}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=10)
    images = streamed(tmp_path / "t.parquet")
    check(images, [10, 10, 4], pixels, lambda i: int(i >= 9))
    assert images.classes == ("cat", "dog")


def test_arrays_define_their_shape(streamed, tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float16)
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
    images = streamed(tmp_path, size=None, channels=None, range=(-9, 9), axes="chw")
    assert images.shape == (5, 4, 3)
    assert images.pixel_format.dtype == "float16"
    np.testing.assert_array_equal(taken(images, 0, 6)[0], arrays[image_index(np.arange(6), 6, 3)].astype(np.float32))
    assert BatchReader(images, 3, 2).get(0)[0].shape == (2, 5, 4, 3)


def test_pictures_have_the_configured_size_channels_and_bits(parquet: Path, streamed, pixels) -> None:
    images = streamed(parquet, size=(4, 6), channels=3, bits=16, labels=False)
    out, labels = taken(images, 0, 5)
    assert (out.shape, out.dtype, labels, images.classes) == ((5, 3, 4, 6), np.uint16, None, None)
    plain = streamed(parquet, bits=16)
    index = ShardOrder([5, 5, 4, 5, 5], 2).index(np.arange(5), 3)
    np.testing.assert_array_equal(taken(plain, 0, 5)[0][:, 0], [257 * pixels(i, 8, 8).astype(int) for i in index])


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 2), (2, 3), (3, 1)])
def test_micro_batches_of_all_ranks_form_the_global_batch(
    parquet: Path, streamed, ranks: int, micro_batch: int
) -> None:
    readers = [BatchReader(streamed(parquet), 3, 6, rank, ranks, micro_batch) for rank in range(ranks)]
    for update in (0, 1, 2, 3, 4, 2, 40):
        parts = [reader.get(update, index) for reader in readers for index in range(reader.micro_batches)]
        image, label = taken(streamed(parquet), 6 * update, 6 * update + 6)
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), image)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), label)


def test_each_shard_is_loaded_once_per_epoch_and_few_are_held(parquet: Path) -> None:
    config = DataConfig(source=str(parquet), size=8, channels=1, stream=True, stream_shards=1)
    source = find_source(config)
    found = source.open()
    loads: list[int] = []
    counted_records = replace(found, load=lambda shard: (loads.append(shard), found.load(shard))[1])
    counted = replace(source, open=lambda: counted_records)
    images = StreamedImages(counted, config.preprocessing, config.stream_shards, config.max_bad)
    for start in range(0, 4 * COUNT, 3):
        taken(images, start, start + 3)
        assert len(images._held) <= 2
    images._loader.shutdown()
    assert 16 <= len(loads) <= 21  # the last shard of an epoch may be the first of the next, which is read ahead


def test_a_batch_may_exceed_the_held_shards(parquet: Path, streamed, pixels) -> None:
    out, _ = taken(streamed(parquet, stream_shards=1), 0, 3 * COUNT)
    index = ShardOrder([5, 5, 4, 5, 5], 1).index(np.arange(3 * COUNT), 3)
    np.testing.assert_array_equal(out[:, 0], [pixels(i, 8, 8) for i in index])


def test_the_next_image_of_its_shard_replaces_an_unreadable_one(pets: Path, streamed, pixels, capsys):
    """Images 8, a cat, and 9 are broken: 10, a dog, replaces both, with its label."""
    (pets / "cat" / "08.png").write_bytes(b"no image")
    (pets / "dog" / "09.png").write_bytes(b"")
    for _ in range(2):
        images = streamed(pets)
        out, labels = taken(images, 0, 2 * COUNT)
        index = image_index(np.arange(2 * COUNT), COUNT, 3)
        shown = [10 if i in (8, 9) else i for i in index]
        np.testing.assert_array_equal(out[:, 0], [pixels(i, 8, 8) for i in shown])
        assert labels is not None
        assert labels.tolist() == [int(i >= 9) for i in shown]
        assert len(images.bad) == 2
        printed = capsys.readouterr().err
        assert printed.count("replaced ") == 2
        assert "replaced cat/08.png: not an image" in printed
    with pytest.raises(ValueError, match=r"data\.max_bad 1 .*dog/09\.png: "):
        taken(streamed(pets, max_bad=1), 0, COUNT)


def test_the_first_image_of_a_shard_replaces_its_last(pets: Path, streamed, pixels) -> None:
    (pets / "dog" / "23.png").write_bytes(b"no image")
    out = np.empty((1, 1, 8, 8), np.uint8)
    assert streamed(pets).read(np.array([23]), out).tolist() == [0]
    np.testing.assert_array_equal(out[0, 0], pixels(0, 8, 8))


def test_a_shard_without_a_readable_image_is_an_error(tmp_path: Path, streamed) -> None:
    rows = {"image": [b"bad"] * 2}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="row 0 to row 1 "):
        taken(streamed(tmp_path / "t.parquet"), 0, 1)


def test_the_fingerprint_changes_with_files_labels_and_preprocessing(pets: Path, streamed, pixels, save) -> None:
    prints = [streamed(pets).fingerprint, streamed(pets, size=9).fingerprint, streamed(pets, labels=False).fingerprint]
    shutil.copytree(pets, pets.with_name("moved"))
    assert streamed(pets.with_name("moved")).fingerprint == prints[0]
    save(pets / "cat" / "00.png", pixels(0, 8, 7))
    prints.append(streamed(pets).fingerprint)
    (pets / "cat" / "00.png").rename(pets / "dog" / "00.png")
    prints.append(streamed(pets).fingerprint)
    assert len(set(prints)) == 5


def test_the_fingerprint_of_tables(parquet: Path, streamed, table: Dataset) -> None:
    whole = streamed(parquet)
    assert streamed(str(parquet / "*.parquet")).fingerprint == whole.fingerprint
    assert streamed(parquet / "0.parquet").fingerprint != whole.fingerprint
    pq.write_table(table.select(range(14)).with_format("arrow")[:], parquet / "0.parquet", row_group_size=7)
    assert streamed(parquet).fingerprint != whole.fingerprint


@pytest.mark.parametrize("pieces", [(3,), (2, 5), (1, 2, 6, 9)])
def test_a_resumed_run_is_the_same_bit_for_bit(pieces: tuple[int, ...], parquet: Path, streamed, tmp_path) -> None:
    """Ten updates of 8 images: epochs of 24 end within and between them."""
    toy.train(tmp_path / "straight", toy.ToyTask(dropout=0.3), streamed(parquet))
    for updates in (*pieces, 10):
        toy.train(tmp_path / "pieces", toy.ToyTask(dropout=0.3), streamed(parquet), images=updates * toy.BATCH)
    assert toy.hashes(tmp_path / "pieces") == toy.hashes(tmp_path / "straight")


def test_a_streamed_folder_trains_the_same_model_as_the_cache(pets: Path, streamed, config, tmp_path: Path) -> None:
    toy.train(tmp_path / "streamed", pictures=streamed(pets))
    toy.train(tmp_path / "cached", pictures=open_images(config(source=pets)))
    models = [
        hashlib.sha256((toy.newest(tmp_path / run) / "model.safetensors").read_bytes()).digest()
        for run in ("streamed", "cached")
    ]
    assert models[0] == models[1]


def test_another_set_is_refused(parquet: Path, streamed, tmp_path: Path) -> None:
    toy.train(tmp_path / "run", pictures=streamed(parquet), images=2 * toy.BATCH)
    with pytest.raises(ValueError, match=r"was trained on other images \(fingerprint"):
        toy.train(tmp_path / "run", pictures=streamed(parquet / "1.parquet"))


@pytest.mark.parametrize("fields", [{"size": None}, {"channels": None}])
def test_size_and_channels_are_required(fields: dict, pets: Path, parquet: Path, streamed) -> None:
    for source in (pets, parquet, "digits"):
        with pytest.raises(ValueError, match=r"data\.stream is true.*data\.size and data\.channels"):
            streamed(source, **fields)


def test_the_hub_cannot_be_streamed(streamed) -> None:
    with pytest.raises(ValueError, match=r"data\.source 'hub:o/n@v1'.*`hf download o/n --revision v1 "):
        streamed("hub:o/n@v1")
    with pytest.raises(ValueError, match=r"`hf download o/n --repo-type dataset --local-dir FOLDER`"):
        streamed("hub:o/n")


def test_labels_are_checked_before_training(table: Dataset, streamed, tmp_path: Path) -> None:
    for name, labels, message in (
        ("low", [0, -1], "label -1 of image 1 "),
        ("none", [0, None], "label None of image 1 "),
    ):
        rows = {"image": [b"x"] * 2, "label": pa.array(labels, pa.int64())}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=message):
            streamed(tmp_path / f"{name}.parquet")


def test_tables_with_different_columns_are_an_error(parquet: Path, streamed) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), parquet / "2.parquet")
    with pytest.raises(ValueError, match=r"2\.parquet .*'label'.*0\.parquet"):
        streamed(parquet)


def test_texts_that_are_not_paths_are_an_error(streamed, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a cat"] * 3}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"'image' .*'a cat'.*data\.image_column"):
        streamed(tmp_path / "t.parquet")


def test_an_empty_table_is_an_error(streamed, tmp_path: Path) -> None:
    schema = Features({"image": Value("binary")}).arrow_schema
    pq.write_table(pa.table({"image": []}, schema), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"data\.source '.*t\.parquet'"):
        streamed(tmp_path / "t.parquet")


def test_a_damaged_row_group_is_named(parquet: Path, streamed) -> None:
    images = streamed(parquet, labels=False)
    data = bytearray((parquet / "0.parquet").read_bytes())
    data[4:600] = bytes(596)
    written = (parquet / "0.parquet").stat()
    (parquet / "0.parquet").write_bytes(data)
    os.utime(parquet / "0.parquet", ns=(written.st_atime_ns, written.st_mtime_ns))  # damage, not a change
    with pytest.raises(ValueError, match=r"0\.parquet .*parquet file"):
        taken(images, 0, COUNT)


def test_row_groups_must_fit_into_memory(parquet: Path, streamed, monkeypatch) -> None:
    monkeypatch.setattr(stream, "total_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"data\.stream_shards 2 .* 4 .*B.* 1 kB"):
        streamed(parquet)


def test_fields_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.cache is '.*'.*data\.stream"):
        DataConfig(stream=True, cache=tmp_path)
    with pytest.raises(ValueError, match=r"data\.stream_shards 0"):
        DataConfig(stream_shards=0)
