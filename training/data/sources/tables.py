"""Tables with an image column: parquet and arrow files, and data sets of the Hugging Face hub."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from pictures.pixel_format import PixelFormat
from residual.names import require_known
from training.data.config import HUB
from training.data.sources.labels import LABEL_NAMES, Label, normalize_labels
from training.data.sources.records import Item, Records, Source, choose_split, stamp
from training.data.sources.table_files import first_line, open_table, readable

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixels", "jpg", "png", "webp")

TEXTS = ("string", "large_string")
ROWS_TO_TRY = 100
HUB_ROWS = 1000
"""rows of a data set of the hub that are read at a time"""


@dataclass(frozen=True)
class Columns:
    """The columns of a table as settings name them; None finds one by its type, else by usual names."""

    image: str | None
    label: str | None
    labels: bool | None
    """True requires labels, False ignores them, None uses them if there are any"""


def local_tables(
    setting: str, splits: Mapping[str, list[Path]], split: str, columns: Columns, pixel_format: PixelFormat
) -> Source:
    """Parquet or arrow files. Raises ValueError for an unknown split and for files of both kinds.

    `setting` is the value of data.source.
    """
    files = splits[choose_split(split, splits, setting)]
    if len({file.suffix.lower() for file in files}) > 1:
        raise ValueError(f"data.source {setting!r} names both parquet and arrow files; name one kind")
    key = ["tables", columns.image, columns.label, columns.labels, *(stamp(file) for file in files)]
    return Source(setting, files[0].stem, key, partial(read_tables, files, columns, pixel_format))


def read_tables(files: Sequence[Path], columns: Columns, pixel_format: PixelFormat) -> Records:
    """The image column of table files, not read yet; the label column is read."""
    from datasets import Features, Image

    tables = [open_table(file) for file in files]
    features = Features.from_arrow_schema(tables[0].schema)
    image, label = image_column(columns, features), label_column(columns, features)
    for table in tables:
        if missing := [name for name in (image, label) if name is not None and name not in table.schema.names]:
            raise ValueError(f"{table.file} has no column {missing[0]!r}, which {files[0].name} has; write it again")
    check_paths(image, (value for table in tables for value in table.column(image).to_pylist()), features)
    groups = [(table, group) for table in tables for group in range(len(table.sizes))]
    sizes = [table.sizes[group] for table, group in groups]
    first_rows = np.cumsum([0, *sizes]).tolist()
    labels: list[Label] | None = None if label is None else []
    for table in tables:
        if label is not None and labels is not None:
            with readable(table.file):
                labels += normalize_labels(table.column(label).to_pylist())

    def load(shard: int) -> list[Item]:
        table, group = groups[shard]
        with readable(table.file):
            parts = [Image().cast_storage(part).to_pylist() for part in table.column(image, group).chunks]
        return [item(row, value) for row, value in enumerate(chain(*parts), first_rows[shard])]

    return Records(
        sizes=sizes,
        load=load,
        labels=labels,
        classes=class_names(label, features),
        pixel_format=pixel_format,
        stamp=lambda: [image, *([table.file.name, table.file.stat().st_size, list(table.sizes)] for table in tables)],
        bytes=[table.bytes(image, group) for table, group in groups],
    )


def hub_tables(setting: str, split: str, columns: Columns, pixel_format: PixelFormat) -> Source:
    """A data set of the hub, downloaded once: the cache key is its name, revision and split, not later changes.

    Raises ValueError, with the reason that `datasets` gives, if it cannot be downloaded or has no such split.
    """
    repository, _, revision = setting.removeprefix(HUB).partition("@")
    if not repository:
        raise ValueError(f"data.source {setting!r} names no data set; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")

    def read() -> Records:
        from datasets import Image, load_dataset

        try:
            table = load_dataset(repository, split=split, revision=revision or None)
        except Exception as error:  # a download fails in many ways; each becomes one line
            hint = "" if split in str(error) else "; check the name and the connection to the hub"
            raise ValueError(f"data.source {setting!r} cannot be read: {first_line(error)}{hint}") from error
        image, label = image_column(columns, table.features), label_column(columns, table.features)
        pictures = table.select_columns([image])
        check_paths(image, (row[image] for row in pictures), table.features)
        pictures = pictures.cast_column(image, Image(decode=False))
        starts = range(0, len(table), HUB_ROWS)

        def load(shard: int) -> list[Item]:
            start = starts[shard]
            return [item(row, value) for row, value in enumerate(pictures[start : start + HUB_ROWS][image], start)]

        return Records(
            sizes=[min(HUB_ROWS, len(table) - start) for start in starts],
            load=load,
            labels=None if label is None else normalize_labels(table.select_columns([label])[:][label]),
            classes=class_names(label, table.features),
            pixel_format=pixel_format,
            stamp=list,
        )

    key = ["hub", repository, revision, split, columns.image, columns.label, columns.labels]
    return Source(setting, repository.rpartition("/")[2], key, read)


def class_names(label: str | None, features: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes of a label column of type ClassLabel, else None."""
    from datasets import ClassLabel

    return tuple(features[label].names) if label is not None and isinstance(features[label], ClassLabel) else None


def item(row: int, value: Mapping[str, Any] | None) -> Item:
    """One row. An image without bytes is read from its path; without either the decoder reports it."""
    path, data = (value or {}).get("path"), (value or {}).get("bytes")
    name = f"row {row} ({path})" if path else f"row {row}"
    return Item(name, Path(path) if path and data is None else data or b"")


def image_column(columns: Columns, features: Mapping[str, Any]) -> str:
    """The image column. Raises ValueError if there is none, or if it holds neither bytes nor paths of images."""
    from datasets import Image, Value

    column = find_column("image", columns.image, features, Image, IMAGE_NAMES)
    if column is None:
        raise ValueError(f"no image column found; set data.image_column to one of the columns: {', '.join(features)}")
    feature = features[column]
    plain = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", *TEXTS)
    packed = isinstance(feature, Mapping) and {"bytes", "path"} & set(feature)
    if not (isinstance(feature, Image) or plain or packed):
        raise ValueError(
            f"image column {column!r} holds {getattr(feature, 'dtype', feature)}, not the bytes or paths of image"
            " files; set data.image_column to another column"
        )
    return column


def check_paths(column: str, values: Iterable[Any], features: Mapping[str, Any]) -> None:
    """Raises ValueError if none of the first texts in an image column is the path of a file."""
    if getattr(features[column], "dtype", None) not in TEXTS:
        return
    texts = [text for text in islice(values, ROWS_TO_TRY) if text]
    if texts and not any(map(os.path.isfile, texts)):
        raise ValueError(
            f"image column {column!r} holds texts such as {texts[0][:40]!r}, but no file has such a name; set"
            " data.image_column to a column with the bytes or paths of image files"
        )


def label_column(columns: Columns, features: Mapping[str, Any]) -> str | None:
    """The label column, or None. Raises ValueError if one is required but missing, or holds no labels."""
    from datasets import ClassLabel, Value

    if columns.labels is False:
        return None
    column = find_column("label", columns.label, features, ClassLabel, LABEL_NAMES)
    if column is None:
        if columns.labels:
            raise ValueError(
                "data.labels is true but no label column was found; set data.label_column to one of the columns: "
                + ", ".join(features)
            )
        return None
    feature = features[column]
    whole = isinstance(feature, Value) and ("int" in feature.dtype or feature.dtype in TEXTS)
    if not isinstance(feature, ClassLabel) and not whole:
        raise ValueError(
            f"label column {column!r} holds {getattr(feature, 'dtype', feature)}, not whole numbers or names;"
            " set data.label_column to another column, or data.labels to false"
        )
    return column


def find_column(
    kind: str, named: str | None, features: Mapping[str, Any], feature_type: type, usual: tuple[str, ...]
) -> str | None:
    """The column named by the settings, else the only one of the type, else the first (of several) with a usual name.

    Raises ValueError, which lists the columns, if there is none of the name.
    """
    if named is not None:
        require_known(f"data.{kind}_column", named, features)
        return named
    typed = [name for name, feature in features.items() if isinstance(feature, feature_type)]
    if len(typed) == 1:
        return typed[0]
    return next((name for name in usual if name in (typed or features)), None)
