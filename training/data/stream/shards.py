"""Images that are read in any order: a source as blocks, each of which can be read without the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from training.data.config import DataConfig
from training.data.pixel_format import PixelFormat
from training.data.sources.arrays import ArrayFile
from training.data.sources.labels import Label
from training.data.sources.records import PICTURE_FORMATS, Item, Source
from training.data.sources.source import HUB
from training.data.sources.table_files import open_table, readable
from training.data.sources.tables import check_paths, image_column, item, label_column


@dataclass(frozen=True)
class Shards:
    """The images of a source, numbered through its blocks."""

    sizes: Sequence[int]
    """images in each block"""
    bytes: Sequence[int]
    """what each block takes in memory; 0 where images are only read one by one"""
    load: Callable[[int], Sequence[Item]]
    """the images of a block, not decoded yet, without labels"""
    labels: Sequence[Label] | None
    """the label of every image, or None"""
    classes: tuple[str, ...] | None
    """names of the classes where the source has them"""
    shape: tuple[int, int, int] | None
    """channels, height and width of every image where the files tell, as those of arrays do"""
    pixel_format: PixelFormat
    """what the numbers of decoded images mean"""
    stamp: list
    """JSON that changes with the content, but not with the place where it lies: names, sizes in bytes, rows"""


def find_shards(source: Source, config: DataConfig) -> Shards:
    """A source as blocks, reading no image.

    A table has one for each row group (parquet) or record batch (arrow). A folder is one block: any of its files can be
    opened at any time. Raises ValueError for a data set of the hub, and for tables as the cache does.
    """
    if config.source.startswith(HUB):
        name, _, revision = config.source.removeprefix(HUB).partition("@")
        at = f" --revision {revision}" if revision else ""
        raise ValueError(
            f"data.source {config.source!r} cannot be streamed from the hub; fetch its files by"
            f" `hf download {name}{at} --repo-type dataset --local-dir FOLDER` and give that folder, or set"
            " data.stream to false"
        )
    return table_shards(source.tables, config) if source.tables else one_block(source)


def one_block(source: Source) -> Shards:
    """Files, or images in memory, as one block."""
    records = source.open()
    items = list(records.items)
    return Shards(
        sizes=[len(items)],
        bytes=[0],
        load=lambda block: items,
        labels=[each.label for each in items] if records.labelled else None,
        classes=records.classes,
        shape=items[0].data.shape if items and isinstance(items[0].data, ArrayFile) else None,
        pixel_format=records.pixel_format,
        stamp=[[each.name, size_bytes(each)] for each in items],
    )


def size_bytes(image: Item) -> int:
    """Bytes of an image that is not decoded."""
    data = image.data.path if isinstance(image.data, ArrayFile) else image.data
    if isinstance(data, bytes):
        return len(data)
    return data.nbytes if isinstance(data, np.ndarray) else data.stat().st_size


def table_shards(files: Sequence[Path], config: DataConfig) -> Shards:
    """The image column of tables, which are opened but not read; the label column is read."""
    from datasets import ClassLabel, Features, Image

    tables = [open_table(file) for file in files]
    features = Features.from_arrow_schema(tables[0].schema)
    image, label = image_column(config, features), label_column(config, features)
    for table in tables:
        if missing := [name for name in (image, label) if name is not None and name not in table.schema.names]:
            raise ValueError(f"{table.file} has no column {missing[0]!r}, which {files[0].name} has; write it again")
    check_paths(image, ({image: value} for table in tables for value in table.column(image).to_pylist()), features)
    places = [(table, block) for table in tables for block in range(len(table.sizes))]
    first_rows = np.cumsum([0, *(table.sizes[block] for table, block in places)])

    def load(number: int) -> list[Item]:
        table, block = places[number]
        with readable(table.file):
            parts = [Image().cast_storage(part).to_pylist() for part in table.column(image, block).chunks]
        return [item(row, value or {}, None) for row, value in enumerate(chain(*parts), int(first_rows[number]))]

    def labels(column: str) -> list[Label]:
        found: list[Label] = []
        for table in tables:
            with readable(table.file):
                found += table.column(column).to_pylist()
        return found

    names = features[label].names if label is not None and isinstance(features[label], ClassLabel) else None
    return Shards(
        sizes=[table.sizes[block] for table, block in places],
        bytes=[table.bytes(image, block) for table, block in places],
        load=load,
        labels=None if label is None else labels(label),
        classes=None if names is None else tuple(names),
        shape=None,
        pixel_format=PICTURE_FORMATS[config.bits],
        stamp=[[table.file.name, table.file.stat().st_size, list(table.sizes)] for table in tables],
    )
