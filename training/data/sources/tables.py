"""Tables with an image column: parquet and arrow files, and data sets of the Hugging Face hub."""

import glob
from collections.abc import Generator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from residual.names import require_known
from training.data.config import DataConfig
from training.data.sources.records import (
    PICTURE_FORMATS,
    Item,
    Records,
    Source,
    choose_split,
    only_pictures,
    refuse,
    stamp,
)
from training.data.sources.table_files import first_line, open_table

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixels", "jpg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "cls", "fine_label", "fine_labels", "coarse_label")

TEXTS = ("string", "large_string")
ROWS_TO_TRY = 100


def local_tables(config: DataConfig, splits: dict[str, list[Path]]) -> Source:
    """Parquet or arrow files, read as a stream so that no copy of them is written."""
    only_table(config)
    files = splits[choose_split(config, splits)]
    kinds = {file.suffix.lower().removeprefix(".") for file in files}
    if len(kinds) > 1:
        raise ValueError(f"data.source {config.source!r} names both parquet and arrow files; name one kind")

    def read() -> Records:
        from datasets import ClassLabel, Features, Value, load_dataset

        count = sum(sum(open_table(file).sizes) for file in files)
        names = [glob.escape(str(file.resolve())) for file in files]
        load = partial(load_dataset, *kinds, data_files={"train": names}, split="train", streaming=True)
        features = load().features
        # A ClassLabel refuses numbers without a name, but says not where: read plain numbers, we say it.
        numbers = {name: Value("int64") if isinstance(each, ClassLabel) else each for name, each in features.items()}
        return records(config, load(features=Features(numbers)), features, count)

    return Source(files[0].stem, ["tables", *(stamp(file) for file in files)], read, tuple(files))


def hub_tables(config: DataConfig, name: str) -> Source:
    """A data set of the hub. It is fetched once: the cache is keyed by name, revision and split, not by later changes.

    Raises ValueError when it cannot be fetched, or has no such split, with the reason that `datasets` gives.
    """
    only_table(config)
    repository, _, revision = name.partition("@")
    if not repository:
        raise ValueError(
            f"data.source {config.source!r} names no data set; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION"
        )

    def read() -> Records:
        from datasets import load_dataset

        try:
            table = load_dataset(repository, split=config.split, revision=revision or None)
        except Exception as error:  # every way in which a download can fail, said in one line
            hint = "" if config.split in str(error) else "; is the name right, and the hub in reach?"
            raise ValueError(f"data.source {config.source!r} cannot be read: {first_line(error)}{hint}") from error
        return records(config, table, table.features, len(table))

    return Source(repository.rpartition("/")[2], ["hub", repository, revision, config.split], read)


def only_table(config: DataConfig) -> None:
    """Refuse what only folders can have."""
    only_pictures(config)
    refuse(config, ("label_file",), "a table has a column for labels, data.label_column")


def records(config: DataConfig, table: Any, features: Mapping[str, Any], count: int) -> Records:
    """The chosen image and label columns of a `datasets` table (streamed or not), as `features` describe them."""
    from datasets import ClassLabel, Image

    image, label = image_column(config, features), label_column(config, features)
    names = features[label].names if label is not None and isinstance(features[label], ClassLabel) else None
    table = table.select_columns([image] if label is None else [image, label])
    check_paths(image, table, features)

    def items() -> Generator[Item, None, None]:
        try:
            for row, record in enumerate(table.cast_column(image, Image(decode=False))):
                yield item(row, record[image] or {}, None if label is None else record[label])
        except Exception as error:
            raise ValueError(f"data.source {config.source!r}: a table cannot be read ({first_line(error)})") from error

    classes = None if names is None else tuple(names)
    return Records(items(), count, PICTURE_FORMATS[config.bits], label is not None, classes)


def item(row: int, value: Mapping[str, Any], label: Any) -> Item:
    """One row; an image without bytes is looked for at its path, one without either the decoder refuses."""
    path, data = value.get("path"), value.get("bytes")
    name = f"row {row} ({path})" if path else f"row {row}"
    return Item(name, Path(path) if path and data is None else data or b"", label)


def image_column(config: DataConfig, features: Mapping[str, Any]) -> str:
    """The image column: the one named, else the only one of type Image, else one with a usual name."""
    from datasets import Image, Value

    column = config.image_column
    if column is not None:
        named("image_column", column, features)
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
    """Raises ValueError if an image column of texts holds no paths: the first rows tell."""
    if getattr(features[column], "dtype", None) not in TEXTS:
        return
    texts = [record[column] for record in islice(table, ROWS_TO_TRY) if record[column]]
    if texts and not any(is_file(text) for text in texts):
        raise ValueError(
            f"image column {column!r} holds texts such as {texts[0][:40]!r}, and no file has such a name; set"
            " data.image_column to a column with the bytes or paths of image files"
        )


def is_file(text: str) -> bool:
    """Whether a text is the path of a file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def label_column(config: DataConfig, features: Mapping[str, Any]) -> str | None:
    """The label column, or None: the one named, else the only one of type ClassLabel, else one with a usual name."""
    from datasets import ClassLabel, Value

    if config.labels is False:
        return None
    column = config.label_column
    if column is not None:
        named("label_column", column, features)
    else:
        typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        column = pick(typed, features, LABEL_NAMES)
    if column is None:
        if config.labels:
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


def named(field: str, column: str, features: Mapping[str, Any]) -> str:
    """`column`, which must be there."""
    return require_known(f"data.{field}", column, features)


def pick(typed: list[str], features: Mapping[str, Any], usual: tuple[str, ...]) -> str | None:
    """The only column of the right type; of several, or of none, the first with a usual name."""
    if len(typed) == 1:
        return typed[0]
    return next((name for name in usual if name in (typed or features)), None)
