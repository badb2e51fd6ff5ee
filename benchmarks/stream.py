"""Streaming at scale: a simulated set of 10,000 shards and 10^9 images, of which nothing is stored.

    python -m benchmarks.stream

Each image is computed from its number when it is decoded. For one process and for several, each with its own part of
the set: the time to open the set, the time to the first batch at the start of a run and in the middle of its first
epoch, the shards that were opened for it, and the memory of one process for both. Then parquet files, which are small
and real: the time and the memory to open them, which is proportional to their number.
"""

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from pictures.pixel_format import PixelFormat
from pictures.preprocessing import Preprocessing
from training.data import BatchReader, DataConfig, StreamedImages, open_images
from training.data.sources.records import Item, Records, Source
from training.script import ScriptParser, command

SIDE = 8
GROUP = 16
"""the default of data.stream_shards"""
PROCESSES = (1, 8, 64)


class Shard(Sequence[Item]):
    """`count` grey images from number `start` on, each made when it is asked for: all pixels are its number."""

    def __init__(self, start: int, count: int) -> None:
        self._numbers = range(start, start + count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        assert isinstance(place, int)
        number = self._numbers[place]
        return Item(str(number), np.full((SIDE, SIDE), number % 256, np.uint8))


def simulated(shards: int, images: int, opened: Callable[[int], None] = lambda shard: None) -> Source:
    """A source of so many shards with so many images each; calls `opened` with the number of each shard it loads."""

    def load(shard: int) -> Sequence[Item]:
        opened(shard)
        return Shard(shard * images, images)

    records = Records(
        sizes=[images] * shards,
        load=load,
        labels=None,
        classes=None,
        pixel_format=PixelFormat(),
        stamp=lambda: [shards, images],
        bytes=[images * SIDE * SIDE] * shards,
    )
    return Source("simulated", "simulated", [], lambda: records)


@command
def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=100_000, help="in each shard")
    parser.add_argument("--batch", type=int, default=512, help="of all processes together")
    parser.add_argument("--files", type=int, default=1_000, help="parquet files")
    args = parser.parse_args(argv)
    table = Table(title=f"{args.shards:,} shards, {args.shards * args.images:,} images, batches of {args.batch}")
    for column in ("processes", "opened in s", "first batch in s", "in the middle in s", "shards opened", "memory MB"):
        table.add_column(column, justify="right")
    for processes in PROCESSES:
        seconds = [measure(args.shards, args.images, args.batch, processes, middle) for middle in (False, True)]
        tracemalloc.start()
        opened = measure(args.shards, args.images, args.batch, processes, middle=True)[2]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        (start, first, _), (_, middle, _) = seconds
        table.add_row(
            str(processes), f"{start:.2f}", f"{first:.2f}", f"{middle:.2f}", f"{opened:,}", f"{peak / 1e6:.0f}"
        )
    console = Console()
    console.print(table)
    with tempfile.TemporaryDirectory() as folder:
        files = write_tables(Path(folder), args.files)
        seconds_to_open, peak = open_tables(files)
        console.print(f"{args.files:,} parquet files opened in {seconds_to_open:.2f} s, {peak / 1e6:.0f} MB")


def measure(shards: int, images: int, batch: int, processes: int, middle: bool) -> tuple[float, float, int]:
    """Seconds to open the set and to the first batch of the last process, and the number of shards it has opened."""
    opened: set[int] = set()
    start = time.perf_counter()
    streamed = StreamedImages(
        simulated(shards, images, opened.add),
        Preprocessing(size=(SIDE, SIDE), channels=1),
        GROUP,
        0,
        parts=processes,
        batch=batch,
    )
    ready = time.perf_counter()
    with closing(BatchReader(streamed, 0, batch, processes - 1, processes)) as reader:
        reader.get(len(streamed) // batch // 2 if middle else 0)
        done = time.perf_counter()
    return ready - start, done - ready, len(opened)


def write_tables(folder: Path, count: int) -> Path:
    """So many parquet files of one row group of ten grey images."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    table = pa.table({"image": [bytes(100)] * 10})
    for number in range(count):
        pq.write_table(table, folder / f"{number:05d}.parquet")
    return folder


def open_tables(folder: Path) -> tuple[float, int]:
    """Seconds to open them, and the growth of the memory of this process in bytes, without that of the libraries."""
    config = DataConfig(source=str(folder), stream=True, size=SIDE, channels=1)
    open_images(replace(config, source=str(min(folder.iterdir()))))  # imports the libraries
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    images = open_images(config)
    seconds, after = time.perf_counter() - start, psutil.Process().memory_info().rss
    assert len(images) == 10 * len(list(folder.iterdir()))
    return seconds, after - before


if __name__ == "__main__":
    main()
