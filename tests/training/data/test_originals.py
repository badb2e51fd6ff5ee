"""Files that change or disappear while a run reads them."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training import toy
from training.data import DataConfig, DataLost, open_images, originals
from training.data.originals import Originals
from training.random import GlobalRandom
from training.task import Batch


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that are waited, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(originals.time, "sleep", found.append)
    return found


def write_table(path: Path, png, pixels, seed: int = 0) -> Path:
    cells = pa.array([png(pixels(seed + i, 8, 8)) for i in range(24)])
    labels = pa.array([i % 3 for i in range(24)])
    pq.write_table(pa.table({"image": cells, "label": labels}), path, row_group_size=8)
    return path


def streamed(source: Path, **fields):
    return open_images(DataConfig(source=str(source), size=8, channels=1, stream=True, stream_shards=1, **fields))


def read(images, *indices: int) -> np.ndarray:
    out = np.empty((len(indices), *images.shape), images.pixel_format.stored)
    images.read(np.array(indices), out)
    return out


def test_a_shard_that_disappears_is_named_and_tried_again_with_longer_waits(tmp_path, png, pixels, waits, capsys):
    table = write_table(tmp_path / "t.parquet", png, pixels)
    images = streamed(table)
    read(images, 0)
    table.unlink()
    with pytest.raises(DataLost, match=f"{table} has disappeared"):
        read(images, 8)
    assert waits == list(originals.WAITS_S)
    assert waits == sorted(waits)
    assert capsys.readouterr().err.count(str(table)) == len(waits)


def test_a_shard_that_comes_back_is_read(tmp_path, png, pixels, monkeypatch):
    table = write_table(tmp_path / "t.parquet", png, pixels)
    images, away = streamed(table), tmp_path / "away"
    expected = read(streamed(table), 8)
    table.rename(away)
    monkeypatch.setattr(originals.time, "sleep", lambda seconds: away.rename(table))
    np.testing.assert_array_equal(read(images, 8), expected)


def test_a_shard_that_changes_is_named_at_its_next_read(tmp_path, png, pixels, waits):
    table = write_table(tmp_path / "t.parquet", png, pixels)
    images = streamed(table)
    read(images, 0)
    write_table(table, png, pixels, seed=100)
    with pytest.raises(DataLost, match=f"{table} has changed"):
        read(images, 8)
    assert waits == []


@pytest.mark.parametrize("way", ["changed", "removed"])
def test_a_picture_of_a_folder(way, tmp_path, save, pixels, waits):
    """One that was unreadable when the set was opened is replaced; one that becomes so is an error."""
    for i in range(4):
        save(tmp_path / "set" / f"{i}.png", pixels(i, 8, 8))
    images, file = streamed(tmp_path / "set"), tmp_path / "set" / "2.png"
    read(images, 0, 1, 2, 3)
    if way == "removed":
        file.unlink()
    else:
        save(file, pixels(9, 8, 8))
    read(images, 0, 1, 3)
    with pytest.raises(DataLost, match=f"{file} has {'changed' if way == 'changed' else 'disappeared'}"):
        read(images, 2)


def test_an_array_file_that_is_written_again(tmp_path):
    values = np.zeros((6, 1, 4, 4), np.uint8)
    np.save(tmp_path / "a.npy", values)
    images = open_images(DataConfig(source=str(tmp_path / "a.npy"), stream=True))
    read(images, 1)
    np.save(tmp_path / "a.npy", values + 1)
    os.utime(tmp_path / "a.npy", ns=(0, 0))
    with pytest.raises(DataLost, match=r"a\.npy"):
        read(images, 1)


def test_a_file_that_was_never_found_is_not_waited_for(tmp_path, waits):
    Originals([tmp_path / "none"]).check(0)
    assert waits == []


def test_a_cache_that_is_changed_in_place_is_an_error_and_a_removed_one_is_not(tmp_path, config, save, pixels):
    for i in range(4):
        save(tmp_path / "set" / f"{i}.png", pixels(i, 8, 8))
    images = open_images(config(source=tmp_path / "set"))
    (file,) = (path for path in tmp_path.rglob("images.bin"))
    expected = images.read(np.arange(4))
    with file.open("r+b") as stream:
        stream.write(b"\1")
    os.utime(file, ns=(0, 0))
    with pytest.raises(DataLost, match=f"{file}"):
        images.read(np.arange(4))
    again = open_images(config(source=tmp_path / "set"))
    (file,) = (path for path in tmp_path.rglob("images.bin"))
    file.unlink()
    np.testing.assert_array_equal(again.read(np.arange(4)), expected)


class Loses(toy.ToyTask):
    """Moves a file away in the third update."""

    def __init__(self, file: Path, away: Path) -> None:
        super().__init__()
        self.file, self.away = file, away

    def prepare(self, batch: Batch, random: GlobalRandom) -> Batch:
        if random.update == 2:
            self.file.rename(self.away)
        return super().prepare(batch, random)


def test_the_run_saves_before_it_ends(tmp_path, png, pixels, waits):
    """No update is repeated: the resumed run ends with the bits of one that lost nothing."""
    table, away = write_table(tmp_path / "t.parquet", png, pixels), tmp_path / "away"
    toy.train(tmp_path / "quiet", pictures=streamed(table))
    with pytest.raises(DataLost, match=f"{table} has disappeared.*saved after"):
        toy.train(tmp_path / "run", Loses(table, away), streamed(table))
    assert int(toy.newest(tmp_path / "run").name) >= 3 * toy.BATCH
    away.rename(table)
    toy.train(tmp_path / "run", pictures=streamed(table))
    assert toy.hashes(tmp_path / "run") == toy.hashes(tmp_path / "quiet")
