"""Shards: a source divided into groups of images, each of which can be read without the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from pictures.pixel_format import PixelFormat
from training.data.sources.arrays import ArrayFile
from training.data.sources.labels import Label
from training.data.sources.records import Columns, Item, Source
from training.data.sources.table_files import open_table, readable
from training.data.sources.tables import check_paths, class_names, image_column, item, label_column


@dataclass(frozen=True)
class Shards:
    """The images of a source, numbered through its shards."""

    sizes: Sequence[int]
    """images in each shard"""
    bytes: Sequence[int]
    """memory of each shard; 0 if its images are read one by one"""
    load: Callable[[int], Sequence[Item]]
    """the images of a shard, not decoded, without labels"""
    labels: Sequence[Label] | None
    """the label of every image, or None"""
    classes: tuple[str, ...] | None
    """names of the classes if the source has them"""
    shape: tuple[int, int, int] | None
    """channels, height and width of every image if the files define them, as arrays do"""
    pixel_format: PixelFormat
    """of decoded images"""
    stamp: list
    """JSON that changes with the content, but not with its location: names, sizes in bytes, rows"""


def find_shards(source: Source, pixel_format: PixelFormat) -> Shards:
    """Divides a source into shards without reading an image; `pixel_format` is that of decoded pictures.

    A table has a shard for each row group (parquet) or record batch (arrow). A folder is one shard: any of its files
    can be opened at any time. Raises ValueError for an empty source, and for tables as the cache does.
    """
    if source.columns is not None:
        shards = table_shards(source.tables, source.columns, pixel_format)
    else:
        shards = one_shard(source)
    if sum(shards.sizes) == 0:
        raise ValueError(f"data.source {source.setting!r} holds no image")
    return shards


def one_shard(source: Source) -> Shards:
    """Files, or images in memory, as one shard."""
    records = source.open()
    items = list(records.items)
    return Shards(
        sizes=[len(items)],
        bytes=[0],
        load=lambda shard: items,
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


def table_shards(files: Sequence[Path], columns: Columns, pixel_format: PixelFormat) -> Shards:
    """The image column of tables, not read yet; the label column is read."""
    from datasets import Features, Image

    tables = [open_table(file) for file in files]
    features = Features.from_arrow_schema(tables[0].schema)
    image, label = image_column(columns, features), label_column(columns, features)
    for table in tables:
        if missing := [name for name in (image, label) if name is not None and name not in table.schema.names]:
            raise ValueError(f"{table.file} has no column {missing[0]!r}, which {files[0].name} has; write it again")
    check_paths(image, ({image: value} for table in tables for value in table.column(image).to_pylist()), features)
    groups = [(table, group) for table in tables for group in range(len(table.sizes))]
    first_rows = np.cumsum([0, *(table.sizes[group] for table, group in groups)])

    def load(shard: int) -> list[Item]:
        table, group = groups[shard]
        with readable(table.file):
            parts = [Image().cast_storage(part).to_pylist() for part in table.column(image, group).chunks]
        return [item(row, value or {}, None) for row, value in enumerate(chain(*parts), int(first_rows[shard]))]

    def labels(column: str) -> list[Label]:
        found: list[Label] = []
        for table in tables:
            with readable(table.file):
                found += table.column(column).to_pylist()
        return found

    return Shards(
        sizes=[table.sizes[group] for table, group in groups],
        bytes=[table.bytes(image, group) for table, group in groups],
        load=load,
        labels=None if label is None else labels(label),
        classes=class_names(label, features),
        shape=None,
        pixel_format=pixel_format,
        stamp=[image, *([table.file.name, table.file.stat().st_size, list(table.sizes)] for table in tables)],
    )
