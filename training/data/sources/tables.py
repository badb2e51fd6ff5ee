"""Tables with an image column: parquet and arrow files, and data sets of the Hugging Face hub."""

import ast
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path, PureWindowsPath
from typing import Any, overload

import numpy as np

from pictures.pixel_format import PixelFormat
from residual.names import require_known, shorten
from training.data.config import HUB, split_hub
from training.data.sources.labels import LABEL_NAMES, Label, normalize_labels, short_labels
from training.data.sources.records import Item, Records, Source, choose_split, stamp
from training.data.sources.table_files import features_of, first_line, held_column, open_table, whole_column
from training.data.sources.vectors import NO_VECTORS, VectorColumns

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixels", "jpg", "png", "webp")

TEXTS, BYTES = ("string", "large_string", "string_view"), ("binary", "large_binary", "binary_view")
ROWS_TO_TRY = 100
MAX_LISTED = 100
"""names of configurations in a message"""
HUB_ROWS = 1000
"""rows of a data set of the hub that are read at a time"""


@dataclass(frozen=True)
class Columns:
    """The columns of a table as settings name them; None finds one by its type, else by usual names."""

    image: str | None
    label: str | None
    labels: bool | None
    """True requires labels, False ignores them, None uses them if there are any"""
    allow_outside: bool = False
    """whether tables may name files outside their folders"""
    vectors: VectorColumns = NO_VECTORS
    """columns of numbers"""
    condition: str | None = None
    """column with the conditions of the images"""


@dataclass(frozen=True)
class FilesBelow:
    """The files that a table may name: those below `folder`, where relative names start, or below one of `others`."""

    folder: Path
    allow_outside: bool
    others: tuple[Path, ...] = ()

    def find(self, name: str, where: str) -> Path:
        """The path of the file of this name, which need not exist.

        Raises ValueError, with the place `where` in the table, for a URL and for a file outside, links included.
        """
        path = self.folder / name
        if "\\" in name and not os.path.lexists(path):  # a path of Windows
            path = self.folder / name.replace("\\", "/")
        if re.match(r"[A-Za-z][\w+.-]+://", name) or (PureWindowsPath(name).drive and not os.path.lexists(path)):
            raise ValueError(f"{where} names {name[:200]!r}, not a file below {self.folder}; copy the images there")
        if "\0" in name:
            return path  # the decoder reports it: no file has such a name
        real = Path(os.path.realpath(path))
        roots = map(os.path.realpath, (self.folder, *self.others))
        if self.allow_outside or any(map(real.is_relative_to, roots)):
            return path
        raise ValueError(
            f"{where} names {name[:200]!r}, which is outside {self.folder}, the folder of the table; copy the images"
            " there, or set data.allow_outside to true if you trust the table"
        )


def local_tables(
    setting: str,
    splits: Mapping[str, list[Path]],
    split: str,
    columns: Columns,
    pixel_format: PixelFormat,
    notes: tuple[str, ...] = (),
) -> Source:
    """Parquet or arrow files. Raises ValueError for an unknown split and for files of both kinds.

    `setting` is the value of data.source.
    """
    files = splits[choose_split(split, splits, setting)]
    if len({file.suffix.lower() for file in files}) > 1:
        raise ValueError(f"data.source {setting!r} names both parquet and arrow files; name one kind")
    key = ["tables", columns.image, columns.label, columns.labels, *(stamp(file) for file in files)]
    return Source(setting, files[0].stem, key, partial(read_tables, files, columns, pixel_format), notes)


def read_tables(files: Sequence[Path], columns: Columns, pixel_format: PixelFormat) -> Records:
    """The image column of table files, not read yet; the label column is read."""
    tables = [open_table(file) for file in files]
    features = features_of(tables[0])
    image = image_column(columns, features)
    label = label_column(columns, features, image)
    for table in tables:
        if missing := [name for name in (image, label) if name is not None and name not in table.schema.names]:
            raise ValueError(f"{table.file} has no column {missing[0]!r}, which {files[0].name} has; write it again")
        others = features_of(table)
        try:
            image_column(replace(columns, image=image), others)
            label_column(replace(columns, label=label), others, image)
        except ValueError as error:
            raise ValueError(f"{table.file}: {error}") from None
        if label is not None and label_kind(label, others) != label_kind(label, features):
            raise ValueError(
                f"label column {label!r} is {str(others[label])[:80]} in {table.file}, but {str(features[label])[:80]}"
                f" in {files[0].name}; write the tables again with the same classes, or set data.labels to false"
            )
    below = {table: FilesBelow(table.file.parent, columns.allow_outside) for table in tables}
    check_paths(image, ((below[table], v) for table in tables for v in whole_column(table, image)), features)
    groups = [(table, group) for table in tables for group in range(len(table.sizes))]
    sizes = [table.sizes[group] for table, group in groups]
    first_rows = np.cumsum([0, *sizes]).tolist()
    for name in columns.vectors.names:
        for table in tables:
            require_known(f"data.vector_columns of {table.file.name}", name, table.schema.names)
    numbers = {name: [v for table in tables for v in whole_column(table, name)] for name in columns.vectors.names}
    labels: list[Label] | None = None if label is None else []
    for table in tables:
        if label is not None and labels is not None:
            labels += normalize_labels(list(short_labels(whole_column(table, label), f"{table.file}, {label!r}")))

    def load(shard: int) -> Rows:
        table, group = groups[shard]
        return Rows(held_column(table, image, group), first_rows[shard], below[table])

    def read(shard: int) -> Iterator[Item]:
        table, group = groups[shard]
        row = first_rows[shard]
        for array in table.batches(image, group):
            yield from Rows([array], row, below[table])
            row += len(array)

    return Records(
        sizes=sizes,
        load=load,
        read=read,
        labels=labels,
        classes=class_names(label, features),
        pixel_format=pixel_format,
        stamp=lambda: [image, *([table.file.name, table.file.stat().st_size, list(table.sizes)] for table in tables)],
        bytes=[table.bytes(image, group) for table, group in groups],
        vectors=columns.vectors.stack(numbers, files[0].name),
        vector_columns=columns.vectors.names,
        shard_files=[table.file for table, _ in groups],
    )


def hub_tables(setting: str, split: str, columns: Columns, pixel_format: PixelFormat) -> Source:
    """A data set of the hub, downloaded once: the cache key is its full name and split, not later changes.

    Raises ValueError, with the reason that `datasets` gives, if it cannot be downloaded or has no such split; and with
    the names of its configurations if there are several and none of them is given.
    """
    repository, configuration, revision = split_hub(setting)
    if not repository or setting.endswith((":", "@")):
        raise ValueError(f"data.source {setting!r} is incomplete; write hub:OWNER/NAME[:CONFIGURATION][@REVISION]")

    def read() -> Records:
        from datasets import Image, config, load_dataset

        caches = Path(config.HF_CACHE_HOME, "hub").expanduser(), Path(config.HF_DATASETS_CACHE)  # downloaded files
        try:
            names = (repository, configuration) if configuration else (repository,)
            table = load_dataset(*names, split=split, revision=revision or None)
        except Exception as error:  # a download fails in many ways; each becomes one line
            if known := configurations(str(error)):
                name = HUB + ":".join((repository, known[0])) + (revision and f"@{revision}")
                raise ValueError(
                    f"data.source {setting!r} needs the name of a configuration, such as {name}; it has:"
                    f" {shorten(known, MAX_LISTED)}"
                ) from error
            hint = "" if split in str(error) else "; check the name and the connection to the hub"
            raise ValueError(f"data.source {setting!r} cannot be read: {first_line(error)}{hint}") from error
        image = image_column(columns, table.features)
        label = label_column(columns, table.features, image)
        pictures = table.select_columns([image])
        local = Path(repository).expanduser()
        below = FilesBelow(local if local.is_dir() else caches[0], columns.allow_outside, caches)
        check_paths(image, ((below, row[image]) for row in pictures), table.features)
        pictures = pictures.cast_column(image, Image(decode=False)).with_format("arrow")
        starts = range(0, len(table), HUB_ROWS)

        def load(shard: int) -> Rows:
            start = starts[shard]
            return Rows(pictures[start : start + HUB_ROWS][image].chunks, start, below)

        for name in columns.vectors.names:
            require_known("data.vector_columns", name, table.features)
        numbers = {name: table.select_columns([name])[:][name] for name in columns.vectors.names}
        return Records(
            sizes=[min(HUB_ROWS, len(table) - start) for start in starts],
            load=load,
            labels=None if label is None else normalize_labels(table.select_columns([label])[:][label]),
            classes=class_names(label, table.features),
            pixel_format=pixel_format,
            stamp=list,
            vectors=columns.vectors.stack(numbers, setting),
            vector_columns=columns.vectors.names,
        )

    key = ["hub", repository, revision, split, columns.image, columns.label, columns.labels]
    key += [configuration] if configuration else []
    return Source(setting, repository.rpartition("/")[2], key, read)


def configurations(message: str) -> list[str]:
    """The configurations that `datasets` lists in the message about one that is missing or unknown; else none."""
    listed = re.search(r"available[^\[\n]*(\[[^\]]*\])", message, re.IGNORECASE)
    try:
        return [str(name) for name in ast.literal_eval(listed[1])] if listed else []
    except (SyntaxError, ValueError):
        return []


def class_names(label: str | None, features: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes of a label column of type ClassLabel, else None."""
    from datasets import ClassLabel

    return tuple(features[label].names) if label is not None and isinstance(features[label], ClassLabel) else None


class Rows(Sequence):
    """Rows of an image column, held as arrays of arrow; the first one has the number `first`."""

    def __init__(self, arrays: Sequence[Any], first: int, below: FilesBelow):
        self._arrays, self._first, self._below = arrays, first, below
        self._ends = list(accumulate(map(len, arrays)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        part = bisect_right(self._ends, number)
        try:
            value = self._arrays[part][number - self._ends[part]].as_py()  # counted from the end of the array
        except UnicodeDecodeError as error:
            row = f"row {self._first + number} of a table in {self._below.folder}"
            raise ValueError(f"{row} names a file by a text that is not UTF-8 ({error}); write it again") from None
        return item(self._first + number, value, self._below)


def item(row: int, value: Mapping[str, Any] | str | bytes | None, below: FilesBelow) -> Item:
    """One row. An image without bytes is read from its path; without either the decoder reports it.

    Raises ValueError for a path that `below` does not allow.
    """
    if isinstance(value, str | bytes):
        value = {"path" if isinstance(value, str) else "bytes": value}
    path, data = (value or {}).get("path"), (value or {}).get("bytes")
    name = f"row {row} ({path})" if path else f"row {row}"
    return Item(name, below.find(path, f"row {row}") if path and data is None else data or b"")


def image_column(columns: Columns, features: Mapping[str, Any]) -> str:
    """The image column. Raises ValueError if there is none, or if it holds neither bytes nor paths of images."""
    from datasets import Image, Value

    column = find_column("image", columns.image, features, Image, IMAGE_NAMES)
    if column is None:
        several = [name for name, feature in features.items() if isinstance(feature, Image)]
        found = f"{len(several)} columns hold images" if several else "no image column found"
        raise ValueError(f"{found}; set data.image_column to one of the columns: {shorten(several or list(features))}")
    feature = features[column]
    plain = isinstance(feature, Value) and feature.dtype in (*BYTES, *TEXTS)
    if not (plain or is_image(feature)):
        raise ValueError(
            f"image column {column!r} holds {getattr(feature, 'dtype', feature)}, not the bytes or paths of image"
            " files; set data.image_column to another column"
        )
    return column


def is_image(feature: Any) -> bool:
    """Whether a column is of the type of images, or has their bytes or paths packed."""
    from datasets import Image

    parts = feature if isinstance(feature, Mapping) else {}
    packed = [
        getattr(parts[name], "dtype", "") in (*kinds, "null")
        for name, kinds in (("bytes", BYTES), ("path", TEXTS))
        if name in parts
    ]
    return isinstance(feature, Image) or (bool(packed) and all(packed))


def check_paths(column: str, values: Iterable[tuple[FilesBelow, Any]], features: Mapping[str, Any]) -> None:
    """Raises ValueError if none of the first texts in an image column is the path of a file, or if one is not allowed.

    Each value comes with the files that its table may name.
    """
    if getattr(features[column], "dtype", None) not in TEXTS:
        return
    few = list(islice(((below, text) for below, text in values if text), ROWS_TO_TRY))
    paths = [below.find(text, f"image column {column!r}") for below, text in few]
    if paths and not any(map(os.path.isfile, paths)):
        raise ValueError(
            f"image column {column!r} holds texts such as {few[0][1][:40]!r}, but no file below {few[0][0].folder} has"
            " such a name; set data.image_column to a column with the bytes or paths of image files"
        )


def label_column(columns: Columns, features: Mapping[str, Any], image: str) -> str | None:
    """The label column, or None; those of images and conditions are not found as one. Raises ValueError if one is
    required but missing, or holds no labels."""
    from datasets import ClassLabel, Value

    if columns.labels is False:
        return None
    taken = () if columns.label is not None else (image, columns.condition)
    others = {name: feature for name, feature in features.items() if name not in taken}
    column = find_column("label", columns.label, others, ClassLabel, LABEL_NAMES)
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


def label_kind(label: str, features: Mapping[str, Any]) -> tuple[str, ...] | bool:
    """What the label columns of all files must share: the names of their classes, or whether they hold names."""
    return class_names(label, features) or features[label].dtype in TEXTS


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
