"""Tables with an image column: parquet and arrow files, and data sets of the Hugging Face hub."""

import glob
from collections.abc import Generator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pictures.pixel_format import PixelFormat
from residual.names import require_known
from training.data.config import HUB
from training.data.sources.records import Columns, Item, Records, Source, choose_split, stamp
from training.data.sources.table_files import first_line, open_table

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixels", "jpg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "cls", "fine_label", "fine_labels", "coarse_label")

TEXTS = ("string", "large_string")
ROWS_TO_TRY = 100


def local_tables(
    setting: str, splits: Mapping[str, list[Path]], split: str, columns: Columns, pixel_format: PixelFormat
) -> Source:
    """Parquet or arrow files, read as a stream, so that `datasets` writes no copy of them.

    `setting` is the value of data.source. Raises ValueError for an unknown split and for files of both kinds.
    """
    files = splits[choose_split(split, splits, setting)]
    kinds = {file.suffix.lower().removeprefix(".") for file in files}
    if len(kinds) > 1:
        raise ValueError(f"data.source {setting!r} names both parquet and arrow files; name one kind")

    def read() -> Records:
        from datasets import ClassLabel, Features, Value, load_dataset

        count = sum(sum(open_table(file).sizes) for file in files)
        names = [glob.escape(str(file.resolve())) for file in files]
        load = partial(load_dataset, *kinds, data_files={"train": names}, split="train", streaming=True)
        features = load().features
        # A ClassLabel rejects numbers without a name, but without their row: plain numbers are checked later, with it.
        numbers = {name: Value("int64") if isinstance(each, ClassLabel) else each for name, each in features.items()}
        return records(setting, load(features=Features(numbers)), features, columns, count, pixel_format)

    key = ["tables", columns.image, columns.label, columns.labels, *(stamp(file) for file in files)]
    return Source(setting, files[0].stem, key, read, tuple(files), columns)


def hub_tables(setting: str, split: str, columns: Columns, pixel_format: PixelFormat) -> Source:
    """A data set of the hub, downloaded once: the cache key is its name, revision and split, not later changes.

    Raises ValueError, with the reason that `datasets` gives, if it cannot be downloaded or has no such split.
    """
    repository, _, revision = setting.removeprefix(HUB).partition("@")
    if not repository:
        raise ValueError(f"data.source {setting!r} names no data set; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")

    def read() -> Records:
        from datasets import load_dataset

        try:
            table = load_dataset(repository, split=split, revision=revision or None)
        except Exception as error:  # a download fails in many ways; each becomes one line
            hint = "" if split in str(error) else "; check the name and the connection to the hub"
            raise ValueError(f"data.source {setting!r} cannot be read: {first_line(error)}{hint}") from error
        return records(setting, table, table.features, columns, len(table), pixel_format)

    key = ["hub", repository, revision, split, columns.image, columns.label, columns.labels]
    return Source(setting, repository.rpartition("/")[2], key, read)


def records(
    setting: str, table: Any, features: Mapping[str, Any], columns: Columns, count: int, pixel_format: PixelFormat
) -> Records:
    """The chosen image and label columns of a `datasets` table (streamed or not), as `features` describe them."""
    from datasets import Image

    image, label = image_column(columns, features), label_column(columns, features)
    table = table.select_columns([image] if label is None else [image, label])
    check_paths(image, table, features)

    def items() -> Generator[Item, None, None]:
        try:
            for row, record in enumerate(table.cast_column(image, Image(decode=False))):
                yield item(row, record[image] or {}, None if label is None else record[label])
        except Exception as error:
            raise ValueError(f"data.source {setting!r}: a table cannot be read ({first_line(error)})") from error

    return Records(items(), count, pixel_format, label is not None, class_names(label, features))


def class_names(label: str | None, features: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes of a label column of type ClassLabel, else None."""
    from datasets import ClassLabel

    return tuple(features[label].names) if label is not None and isinstance(features[label], ClassLabel) else None


def item(row: int, value: Mapping[str, Any], label: Any) -> Item:
    """One row. An image without bytes is read from its path; without either the decoder reports it."""
    path, data = value.get("path"), value.get("bytes")
    name = f"row {row} ({path})" if path else f"row {row}"
    return Item(name, Path(path) if path and data is None else data or b"", label)


def image_column(columns: Columns, features: Mapping[str, Any]) -> str:
    """The image column: the one named, else the only one of type Image, else one with a usual name."""
    from datasets import Image, Value

    column = columns.image
    if column is not None:
        require_known("data.image_column", column, features)
    else:
        typed = [name for name, feature in features.items() if isinstance(feature, Image)]
        column = pick(typed, features, IMAGE_NAMES)
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


def check_paths(column: str, table: Any, features: Mapping[str, Any]) -> None:
    """Raises ValueError if none of the first texts in an image column is the path of a file."""
    if getattr(features[column], "dtype", None) not in TEXTS:
        return
    texts = [record[column] for record in islice(table, ROWS_TO_TRY) if record[column]]
    if texts and not any(is_file(text) for text in texts):
        raise ValueError(
            f"image column {column!r} holds texts such as {texts[0][:40]!r}, but no file has such a name; set"
            " data.image_column to a column with the bytes or paths of image files"
        )


def is_file(text: str) -> bool:
    """Whether a text is the path of a file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def label_column(columns: Columns, features: Mapping[str, Any]) -> str | None:
    """The label column, or None: the one named, else the only one of type ClassLabel, else one with a usual name."""
    from datasets import ClassLabel, Value

    if columns.labels is False:
        return None
    column = columns.label
    if column is not None:
        require_known("data.label_column", column, features)
    else:
        typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        column = pick(typed, features, LABEL_NAMES)
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


def pick(typed: list[str], features: Mapping[str, Any], usual: tuple[str, ...]) -> str | None:
    """The only column of the right type; among several, or without one, the first with a usual name."""
    if len(typed) == 1:
        return typed[0]
    return next((name for name in usual if name in (typed or features)), None)
