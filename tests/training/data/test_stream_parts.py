"""A streamed set in parts, of which each process reads its own, up to 10,000 shards and 10^9 images."""

import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState

import train
from benchmarks.stream import GROUP, SIDE, simulated
from pictures.preprocessing import Preprocessing
from training.data import BatchReader, DataConfig, StreamedImages, open_images
from training.data.order import PartOrder, ShardOrder

SIZES = [3, 5, 1, 4, 1, 6, 2, 2]
GREY = Preprocessing(size=(SIDE, SIDE), channels=1)


def positions(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.int64)


def test_one_part_has_the_order_of_shards() -> None:
    expected = ShardOrder(SIZES, 2).index(positions(0, 72), 1)
    for batch in (1, 5, 8):
        np.testing.assert_array_equal(PartOrder(SIZES, 2, 1, batch).index(positions(0, 72), 1), expected)


@pytest.mark.parametrize("parts", [2, 4])
def test_each_slice_of_a_batch_holds_the_next_images_of_its_part(parts: int) -> None:
    batches = PartOrder(SIZES, 2, parts, batch=8).index(positions(0, 8 * 30), 1).reshape(30, parts, 8 // parts)
    starts = np.cumsum([0, *SIZES])
    for part in range(parts):
        images = [image for shard in range(part, 8, parts) for image in range(starts[shard], starts[shard + 1])]
        taken = batches[:, part].ravel()
        epochs = taken[: len(taken) // len(images) * len(images)].reshape(-1, len(images))
        np.testing.assert_array_equal(np.sort(epochs), np.tile(images, (len(epochs), 1)))
        assert len({tuple(epoch) for epoch in epochs}) > 2


def test_parts_of_one_size_have_different_orders() -> None:
    """Else neighbouring shards, which may hold similar images, would always be read together."""
    order = PartOrder([10] * 12, 1, 2, batch=2)
    first, second = order.index(positions(0, 120), 0).reshape(60, 2).T // 10
    assert len(set((second - first).tolist())) > 3


def test_the_order_in_parts_is_unchanged() -> None:
    """Golden: a run must resume in the same order after an upgrade of numpy."""
    index = PartOrder([4, 3, 3, 2], 1, 2, batch=4).index(positions(0, 12), 0)
    assert index.tolist() == [1, 2, 5, 4, 0, 3, 6, 10, 7, 8, 11, 10]


def test_a_position_does_not_depend_on_its_neighbours() -> None:
    order = PartOrder(SIZES, 2, 4, batch=8)
    whole, shuffled = order.index(positions(0, 64), 1), np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(PartOrder(SIZES, 2, 4, batch=8).index(shuffled, 1), whole[shuffled])


@pytest.fixture
def parquet(pixels, png, tmp_path: Path) -> Path:
    """Image i of 24 is drawn from seed i; six row groups."""
    table = pa.table({"image": [png(pixels(i, SIDE, SIDE)) for i in range(24)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    return tmp_path / "t.parquet"


def test_the_global_batch_does_not_depend_on_processes_and_each_reads_its_part(parquet: Path) -> None:
    settings = DataConfig(source=str(parquet), size=SIDE, channels=1, stream=True, stream_shards=1, stream_parts=2)
    whole = open_images(settings, batch=4)
    assert isinstance(whole, StreamedImages)
    with closing(BatchReader(whole, 3, 4)) as alone:
        for ranks, micro_batch in ((2, 2), (2, 1), (4, 1)):
            opened = [open_images(settings, batch=4) for _ in range(ranks)]
            readers = [BatchReader(images, 3, 4, rank, ranks, micro_batch) for rank, images in enumerate(opened)]
            for update in (0, 1, 2, 3, 7, 2, 40):
                parts = [reader.get(update, index) for reader in readers for index in range(reader.micro_batches)]
                np.testing.assert_array_equal(np.concatenate([part.image for part in parts]), alone.get(update).image)
            for reader, images in zip(readers, opened, strict=True):
                reader.close()
                assert isinstance(images, StreamedImages)
                assert {shard % 2 for shard in images._held} == {reader.first // 2}
                assert len(images._held) == 2
    assert str(whole).endswith("streamed in 6 shards, 1 shuffled together, in 2 parts")
    order = PartOrder([4] * 6, 1, 2, batch=4)
    with closing(BatchReader(open_images(settings, batch=4), 3, 4)) as reader:
        np.testing.assert_array_equal(reader.get(5).numbers, order.index(positions(20, 24), 3))
    with closing(BatchReader(open_images(settings), 3, 4)) as reader:  # not for training by this batch: one part
        np.testing.assert_array_equal(reader.get(5).numbers, ShardOrder([4] * 6, 1).index(positions(20, 24), 3))


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (3, 8)])
def test_a_billion_images_in_the_middle_of_an_epoch(rank: int, ranks: int) -> None:
    """The first batch of a resumed run opens the shards of two groups of its part, in megabytes of memory."""
    shards, images, batch, opened = 10_000, 100_000, 64, set[int]()
    tracemalloc.start()
    streamed = StreamedImages(simulated(shards, images, opened.add), GREY, GROUP, 0, parts=ranks, batch=batch)
    assert len(streamed) == 10**9
    assert not opened
    update = len(streamed) // batch // 2 + 7
    with closing(BatchReader(streamed, 0, batch, rank, ranks)) as reader:
        taken = reader.get(update)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    streamed._loader.shutdown()
    assert len(opened) == 2 * GROUP
    assert {shard % ranks for shard in opened} == {rank}
    assert peak < 50e6
    slot = rank * (batch // ranks)
    expected = PartOrder([images] * shards, GROUP, ranks, batch).index(
        positions(update * batch + slot, update * batch + slot + batch // ranks), 0
    )
    np.testing.assert_array_equal(taken.numbers, expected)
    np.testing.assert_array_equal(taken.image[:, 0, 0, 0], taken.numbers % 256)


@pytest.mark.parametrize(
    ("sizes", "parts", "batch"), [([5, 5, 5], 3, 4), ([5, 5, 5], 4, 4), ([5, 0, 5, 0, 5], 2, 4), ([5], 10**9, 4)]
)
def test_parts_that_do_not_fit(sizes: list[int], parts: int, batch: int) -> None:
    shards = np.count_nonzero(sizes)
    with pytest.raises(ValueError, match=rf"data\.stream_parts {parts} .*{batch} images.* {shards};"):
        PartOrder(sizes, 1, parts, batch)


def test_settings_of_parts() -> None:
    settings = DataConfig(stream=True, size=8, channels=1, stream_parts=2)
    for wrong in ({"stream_parts": 0}, {"stream": False}):
        with pytest.raises(ValueError, match=r"data\.stream_parts [02] .*data\.stream"):
            replace(settings, **wrong)


def test_train_py_divides_its_batch(pixels, save, tmp_path: Path, monkeypatch, capsys) -> None:
    """Of a folder, which is one shard: an error before any work, which names the batch."""
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state()
    save(tmp_path / "set/0.png", pixels(0, SIDE, SIDE))
    words = f"--data.source set --data.size {SIDE} --data.channels 1 --data.stream true --data.stream_parts 2".split()
    with pytest.raises(SystemExit) as stopped:
        train.main([*words, "--train.batch", "6", "--task", "diffusion", "--run", "run"])
    assert stopped.value.code == 2
    assert "data.stream_parts 2 must divide the batch of 6 images" in capsys.readouterr().err
