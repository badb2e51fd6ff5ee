"""Label files: the label of each image, as CSV and the like, JSON, JSON lines, or a parquet or arrow table."""

import csv
import os
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeVar

from residual.names import amount, closest, require_known, shorten
from storage.read import MAX_TEXT, is_regular, parse_json, read_text
from training.data.sources.labels import LABEL_NAMES, MAX_CLASSES, normalize, short_labels
from training.data.sources.table_files import features_of, open_table, whole_column

MAX_LINES = 4 * MAX_TEXT
"""bytes of a label file that is no table; a single JSON value may have `MAX_TEXT` characters"""
MAX_LINE, MAX_EMPTY = 1 << 20, 1_000_000
"""characters of a line of a label file, and number of its empty lines"""
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
NAME_NAMES = (
    *("file_name", "filename", "file", "file_path", "filepath", "path", "image", "image_name", "image_path", "img"),
    *("img_name", "img_path", "name", "image_id", "id", "key"),
)
"""usual names of the column with the names of images, the likeliest first"""
TABLES = (".parquet", ".arrow")
DELIMITERS = "\t;,| "
LINES_TO_TRY = 20
NAMES_TO_TRY = 10_000
"""existing images that an unknown name is compared with"""
FORM = 'not of the form {"file_name": "a/b.png", "label": "cat"}'
LEADING_ZERO = re.compile(r"0\d+")

T = TypeVar("T")
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


class NoLabels(ValueError):
    """A file without labels of images, such as a table of captions."""


class Unlabelled(NoLabels):
    """A file that states that images have no labels."""


class Column(NamedTuple):
    """A column of a label file, as a setting names it."""

    setting: str
    name: str | None
    """None finds the labels by usual names"""


class Entry(NamedTuple):
    """What a label file holds for one image, not checked yet."""

    place: str
    name: Any
    label: Any


def read_label_file(
    path: Path, names: Collection[str], folder: Path, column: str | None = None, title: str = "data.label_file"
) -> dict[str, int | str]:
    """The label of each image in the file by the image's name: class names, or class numbers.

    `names` are the existing images, as paths below `folder`. The file names them relative to `folder` or, if more are
    found so, to its own place; suffixes may be left out. `column` is the column (key) of the labels; None finds it by
    usual names. Further columns and empty lines are ignored. In a text without types, labels are class numbers if all
    are numbers and none has a leading zero.

    Raises NoLabels for a file without columns of names and of labels. Raises ValueError with the number of the line
    that has another form, names no existing image, leaves the folder, or repeats an image; if class names and numbers
    are mixed; and for a file that cannot be read. `title` describes the file in the message.
    """
    return read_values(path, names, folder, Column("data.label_column", column), title, checked_labels)


def read_numbers(
    path: Path, names: Collection[str], folder: Path, column: str, title: str = "data.label_file"
) -> dict[str, float]:
    """The number in a column for each image in the file by the image's name, as `read_label_file` reads labels.

    Raises ValueError as it does, for a value that is not a number, and, with the nearest names, for an unknown column.
    """
    return read_values(path, names, folder, Column("data.vector_columns", column), title, checked_numbers)


def read_values(
    path: Path,
    names: Collection[str],
    folder: Path,
    column: Column,
    title: str,
    checked: Callable[[Sequence[Any], bool], Iterator[T]],
) -> dict[str, T]:
    """See `read_label_file`; `checked` makes values of the cells, given whether the file has types."""
    what, place = f"{title} {str(path)!r}".lstrip(), ""
    is_table = path.suffix.lower() in TABLES
    try:
        document = "" if is_table else read_text(path, MAX_LINES)
    except (OSError, ValueError) as error:
        is_other = not os.path.lexists(path) and is_regular(folder / path)
        hint = f"; did you mean {str(folder / path)!r}?" if is_other else ""
        raise ValueError(f"{what} cannot be read ({error}){hint}") from error
    typed = is_table or is_json(path, document)
    read = partial(read_table, most=len(names)) if is_table else read_json if typed else read_delimited
    labels: dict[str, T] = {}
    place_of: dict[str, str] = {}
    try:
        entries = list(islice(read(path, document, column), len(names) + 1))  # one more than images has an error
        if not entries:
            raise NoLabels("it holds no labels")
        found = find_images([entry.name for entry in entries], names, folder, path.parent)
        is_first = not typed and entries[0].place == "line 1"
        header = "; if this line names the columns, call them file_name and label" if is_first else ""
        if not any(found):
            raise NoLabels(f"{entries[0].place}: {unknown_image(entries[0].name, names)}{header}")
        values = checked([entry.label for entry in entries], typed)
        for entry, name in zip(entries, found, strict=True):
            place = f"{entry.place}: "
            if name is None:
                raise ValueError(unknown_image(entry.name, names) + (header if not labels else ""))
            if name in labels:
                raise ValueError(f"{_repr.repr(name)} has a label already, in {place_of[name]}")
            labels[name], place_of[name] = next(values), entry.place
    except ValueError as error:
        kind = type(error) if isinstance(error, NoLabels) else ValueError
        raise kind(f"{what}, {place}{error}") from error
    return labels


def is_json(file: Path, text: str) -> bool:
    """Whether a text is JSON or JSON lines."""
    return file.suffix.lower() in (".json", ".jsonl", ".ndjson") or text.lstrip()[:1] in ("{", "[")


def read_table(file: Path, text: str, column: Column, most: int) -> Iterator[Entry]:
    """The rows of a parquet or arrow file. Raises ValueError for more than `most` of them, before any is read."""
    from datasets import ClassLabel

    table = open_table(file)
    name, label = find_columns(table.schema.names, column)
    kind = features_of(table)[label]
    if (found := sum(table.sizes)) > most:
        raise ValueError(f"it has {amount(found, 'row')} for {amount(most, 'image')}; leave the others out")
    rows = count(1)
    columns = (short_labels(whole_column(table, each), f"column {each!r}") for each in (name, label))
    for image, value in zip(*columns, strict=True):
        named = kind.int2str(value) if isinstance(kind, ClassLabel) and value is not None else value
        yield Entry(f"row {next(rows)}", image, named)


def read_json(file: Path, text: str, column: Column) -> Iterator[Entry]:
    """The entries of one JSON value, or of JSON lines.

    A value is a list of objects or pairs, an object with such a list as `labels` (as EDM's dataset.json), or an object
    from names to labels.
    """
    lines = ((f"line {number}", line) for number, line in enumerate(lines_of(text), 1) if line.strip())
    if file.suffix.lower() != ".json" or len(text) > MAX_TEXT:
        return from_records(parsed(lines), column)
    if not text.strip():
        return iter(())
    try:
        value = parse(text)
    except ValueError as error:
        try:
            first = next(lines)
            parse(first[1])
        except ValueError:
            raise error from None
        return from_records(parsed(chain([first], lines)), column)
    return from_value(value, column)


def lines_of(text: str) -> Iterator[str]:
    """The lines of a text with their ends, one by one. Raises ValueError for a long one, and for many empty ones."""
    empty = 0
    for number, match in enumerate(LINE.finditer(text), 1):
        line = match[0]
        empty += not line.strip()
        if len(line) > MAX_LINE or empty > MAX_EMPTY:
            found = f"it has more than {MAX_LINE:,} characters" if empty <= MAX_EMPTY else f"{empty:,} lines are empty"
            raise ValueError(f"line {number}: {found}; give one line for each image")
        if line:
            yield line


def parsed(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """The value of each line. Raises ValueError with the line that is not valid JSON."""
    for place, line in lines:
        try:
            value = parse(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        yield place, value


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for any fault, repeated keys included."""
    try:
        return parse_json(text, unique)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a repeated key, of which Python would take the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_repr.repr(twice)} is given twice")
    return found


def from_value(value: Any, column: Column) -> Iterator[Entry]:
    """The entries of one JSON value, see `read_json`."""
    if isinstance(value, dict) and "labels" in value and (value["labels"] is None or isinstance(value["labels"], list)):
        if value["labels"] is None:
            raise Unlabelled("its labels are null")
        value = value["labels"]
    elif isinstance(value, dict):
        try:
            find_columns(list(value), column)
            value = [value]
        except NoLabels:
            value = list(map(list, value.items()))
    if not isinstance(value, list):
        raise NoLabels(FORM)
    places = ((f"entry {number}", entry) for number, entry in enumerate(value, 1))
    if all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in value):
        return (Entry(place, *entry) for place, entry in places)
    return from_records(places, column)


def from_records(records: Iterable[tuple[str, Any]], column: Column) -> Iterator[Entry]:
    """The entries of objects, each with its place. Raises ValueError for one without name or label."""
    columns: dict[tuple[str, ...], tuple[str, str]] = {}
    for place, record in records:
        keys = tuple(record) if isinstance(record, dict) else ()
        if keys not in columns:
            try:
                columns[keys] = find_columns(keys, column)
            except NoLabels as error:
                raise (ValueError if columns else NoLabels)(f"{place}: {FORM}: {error}") from None
        name, label = columns[keys]
        if not isinstance(record[name], str):
            raise ValueError(f"{place}: {FORM}: {name} is {_repr.repr(record[name])}")
        yield Entry(place, record[name], record[label])


def read_delimited(file: Path, text: str, column: Column) -> Iterator[Entry]:
    """The rows of a text with two or more columns, as CSV; the first row may hold their names."""
    delimiter = find_delimiter(text)
    reader = csv.reader(lines_of(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    where: tuple[int, int] | None = None
    width = 0
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {start}: not valid CSV ({error})") from None
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if where is None:
            width = len(row)
            where, is_header = row_columns(row, column)
            if is_header:
                continue
        if len(row) != width:
            raise ValueError(
                f"line {start}: {amount(len(row), 'column')}, but {width} in the first line; "
                f"quote texts that hold {delimiter!r}"
            )
        yield Entry(f"line {start}", row[where[0]], row[where[1]])


def row_columns(row: Sequence[str], column: Column) -> tuple[tuple[int, int], bool]:
    """The columns of names and of labels, and whether the first row names them. Raises NoLabels if they are unclear."""
    usual = {*NAME_NAMES, *LABEL_NAMES}
    if column.name is not None or any(normalize(cell).casefold() in usual for cell in row):
        name, label = find_columns(row, column)
        return (row.index(name), row.index(label)), True
    if len(row) != 2:
        raise NoLabels(
            f"line 1: {amount(len(row), 'column')} without their names; add a first line such as file_name,label"
        )
    return (0, 1), False


def find_delimiter(text: str) -> str:
    """The character between columns: the first that divides all of the first lines into equally many."""
    lines = [line for line in islice(lines_of(text), LINES_TO_TRY) if line.strip()]
    for delimiter in DELIMITERS:
        try:
            rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
            widths = {len(row) for row in rows}
        except csv.Error:
            continue
        if len(widths) == 1 and widths != {1}:
            return delimiter
    return ","


def find_columns(keys: Sequence[str], column: Column) -> tuple[str, str]:
    """The columns with the names of images and with values: `column`, else usual names of labels, in any case.

    Of two columns, one is enough. Raises NoLabels, with all columns, if one is not found.
    """
    folded = {normalize(key).casefold(): key for key in reversed(keys)}
    if column.name is not None:
        require_known(column.setting, column.name, keys)
    label = (
        column.name if column.name is not None else next((folded[name] for name in LABEL_NAMES if name in folded), None)
    )
    names = [folded[name] for name in NAME_NAMES if name in folded and folded[name] != label]
    others = [key for key in keys if key != label]
    name = names[0] if names else others[0] if len(keys) == 2 and label is not None else None
    listed = shorten([_repr.repr(key) for key in keys])
    if name is None:
        raise NoLabels(f"no column has a usual name of images, such as {NAME_NAMES[0]} (columns: {listed})")
    if label is None:
        raise NoLabels(f"no column has a usual name of labels; set data.label_column to one of: {listed}")
    return name, label


def from_texts(texts: Sequence[str]) -> list[Any]:
    """Labels of a text without types: numbers if all are numbers and none has a leading zero, else names."""
    cleaned = [normalize(text) for text in texts]
    try:
        numbers = {text: float(text) for text in set(cleaned) if text}
    except ValueError:
        return list(cleaned)
    if any(LEADING_ZERO.fullmatch(text) or "_" in text for text in numbers):  # Python takes 1_0 as 10
        return list(cleaned)
    return [numbers.get(text, text) for text in cleaned]


def checked_labels(cells: Sequence[Any], typed: bool) -> Iterator[int | str]:
    """Labels, all names or all numbers. Raises ValueError for another."""
    first: int | str | None = None
    for cell in cells if typed else from_texts(cells):
        label = checked(cell)
        first = label if first is None else first
        if type(label) is not type(first):
            rule = "is not of the type of those before; give names or numbers, not both"
            raise ValueError(f"label {_repr.repr(cell)} {rule}")
        yield label


def checked_numbers(cells: Sequence[Any], typed: bool) -> Iterator[float]:
    """Numbers. Raises ValueError for anything else."""
    for cell in cells:
        try:
            if typed and not isinstance(cell, int | float):
                raise ValueError
            yield float(cell)
        except (ValueError, OverflowError):
            raise ValueError(f"{_repr.repr(cell)} is not a number; correct it, or leave out the column") from None


def checked(label: Any) -> int | str:
    """A class name, normalised, or a class number. Raises ValueError for any other label."""
    if isinstance(label, str):
        if name := normalize(label):
            return name
        raise ValueError("the label is empty; give a class, or leave the image and its line out")
    is_number = type(label) is int or (isinstance(label, float) and label.is_integer())
    if is_number and 0 <= label < MAX_CLASSES:
        return int(label)
    raise ValueError(f"label {_repr.repr(label)} is neither a name nor a whole number from 0 to {MAX_CLASSES - 1:,}")


def find_images(given: Sequence[str], names: Collection[str], folder: Path, place: Path) -> list[str | None]:
    """The existing images that names in a label file mean, None for unknown ones.

    Names are relative to `folder`, or to `place`, the folder of the label file: whichever finds more. Raises ValueError
    for names that leave both.
    """
    exact, composed = set(names), {normalize(name): name for name in names}
    stems: dict[str, str] = {}
    for name in composed:
        stem, dot, suffix = name.rpartition(".")
        if dot and "/" not in suffix:
            stems[stem] = "" if stem in stems else composed[name]  # "": several

    def find(name: str) -> str | None:
        for text in (name, name.replace("\\", "/")):
            if text in exact:
                return text
            text = normalize(str(PurePosixPath(text)))
            if found := composed.get(text) or stems.get(text):
                return found
        return None

    here, there = (Path(os.path.abspath(path)) for path in (folder, place))
    prefix = f"{there.relative_to(here).as_posix()}/" if there.is_relative_to(here) else ""
    cut = f"{here.relative_to(there).as_posix()}/" if here.is_relative_to(there) else ""
    absolute = f"{here.as_posix()}/"
    cleaned = [name.removeprefix(absolute) if isinstance(name, str) else "" for name in given]
    whole = [find(name) for name in cleaned]
    if None in whole and here != there:
        other = [find(prefix + name.removeprefix("./").removeprefix(cut)) for name in cleaned]
        whole = max(whole, other, key=lambda found: len(found) - found.count(None))
    return whole


def unknown_image(name: Any, names: Collection[str]) -> str:
    """A message about a name in a label file that no image has, with the nearest names."""
    if not isinstance(name, str):
        return f"the name {_repr.repr(name)} is no text"
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        return f"{_repr.repr(name)} leaves the folder; give a path below it"
    tail = path.name.casefold()
    ends = ((each, each.casefold().rpartition("/")[2]) for each in names)
    near = sorted(islice((each for each, end in ends if tail in (end, end.rpartition(".")[0])), 3))
    near = near or closest(str(path), islice(names, NAMES_TO_TRY))
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"there is no image {_repr.repr(name)} in the folder{hint}"
