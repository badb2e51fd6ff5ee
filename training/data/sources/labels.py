"""Labels: converts the labels of a source to class numbers with names, and checks and summarises them."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from residual.names import shorten
from storage.show import printable

MAX_CLASSES = 100_000
"""limit for class numbers without names; larger ones are hardly class numbers"""
LABEL_NAMES = (
    *("label", "labels", "class", "category", "target", "cls", "fine_label", "fine_labels", "coarse_label"),
    *("class_name", "label_name", "class_id", "label_id"),
)
"""usual names of the column with the labels, the likeliest first"""
FEW = 5
"""classes that a summary shows"""
MAX_LENGTH = 1000
"""characters of a text that is the name of a class or file"""
MAX_NAME = 32
"""characters of a class name in a summary"""

Label = int | str | None


def normalize(text: str) -> str:
    """A name of a class or file as all of the project compares it: composed Unicode (NFC), without spaces around it."""
    return unicodedata.normalize("NFC", text).strip()


def normalize_labels(raw: Iterable[Label]) -> list[Label]:
    """Labels with their names normalised; an empty name is a missing label."""
    return [(normalize(label) or None) if isinstance(label, str) else label for label in raw]


def short_labels(values: Iterable[Any], where: str) -> Iterator[Any]:
    """The values of a column, equal texts as one object. Raises ValueError for a text that is too long for a name."""
    known: dict[Any, Any] = {}
    for row, value in enumerate(values):
        if isinstance(value, str):
            if len(value) > MAX_LENGTH:
                raise ValueError(
                    f"{where}: the text of row {row} has {len(value):,} characters, such as {value[:40]!r}; a name has"
                    f" at most {MAX_LENGTH:,}; set data.label_column to another column, or data.labels to false"
                )
            value = known.setdefault(value, value)
        yield value


def number_labels(
    raw: Sequence[Label], classes: Sequence[str] | None
) -> tuple[Int64[np.ndarray, "n"], tuple[str, ...]]:
    """Labels as class numbers, and the names of the classes.

    If `classes` is None, the labels define them: names are classes in sorted order, numbers are their own names.
    Raises ValueError as `check_label` and `name_classes` do.
    """
    for index, label in enumerate(raw):
        check_label(label, index, None if classes is None else len(classes))
    if classes is None and raw and isinstance(raw[0], str):
        classes = sorted({str(label) for label in raw})
    number: dict[Label, Label] = {name: index for index, name in enumerate(classes or ())}
    numbers = np.array([number.get(label, label) for label in raw], np.int64)
    return numbers, name_classes(numbers, classes)


def name_classes(labels: Int[np.ndarray, "n"], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes, by default "0" to the largest label. Raises ValueError for a label out of range."""
    limit = None if classes is None else len(classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= (MAX_CLASSES if limit is None else limit)))
    if len(wrong):
        check_label(int(labels[wrong[0]]), int(wrong[0]), limit)
    return tuple(map(str, range(int(labels.max()) + 1))) if classes is None else tuple(classes)


def check_label(label: Label, index: int, limit: int | None, name: str = "") -> None:
    """Raises ValueError for a label that is missing, or a number out of range; names are not checked.

    `limit` is the number of classes, None if the labels define them. `index` and `name` are those of the image.
    """
    if isinstance(label, str):
        return
    if label is None:
        rule = "is missing"
    elif limit is not None and not 0 <= label < limit:
        rule = f"is outside 0..{limit - 1}"
    elif label < 0:
        rule = "is negative, but classes are numbered from 0"
    elif label >= MAX_CLASSES:
        rule = f"is too large for a class number (at least {MAX_CLASSES:,})"
    else:
        return
    raise ValueError(
        f"label {label} of image {index}{f', {name},' if name else ''} {rule}; correct it,"
        " set data.label_column to another column, or set data.labels to false"
    )


def count_classes(labels: Int[np.ndarray, "n"], classes: Sequence[str]) -> tuple[int, ...]:
    """The number of images of each class."""
    return tuple(np.bincount(labels, minlength=len(classes)).tolist())


def summarize(counts: Sequence[int] | None, classes: Sequence[str] | None) -> str:
    """The first classes with their numbers of images, and what is unusual about the classes; empty without labels."""
    if counts is None or classes is None:
        return ""
    shown = [f"{show_name(name)} ({count:,})" for name, count in zip(classes[:FEW], counts[:FEW], strict=True)]
    text = f": {', '.join(shown)}{', …' if len(classes) > FEW else ''}"
    if empty := [show_name(name) for name, count in zip(classes, counts, strict=True) if not count]:
        text += f"; {'classes' if len(empty) > 1 else 'class'} {shorten(empty)} {'have' if len(empty) > 1 else 'has'}"
        text += " no image"
    present = len(classes) - len(empty)
    if present > FEW and 2 * present > sum(counts):
        text += f"; warning: {present:,} classes for {sum(counts):,} images, so most have a class of their own"
    alike = defaultdict(list)
    for name in classes:
        alike[name.casefold()].append(show_name(name))
    if same := next((names for names in alike.values() if len(names) > 1), None):
        text += f"; warning: the classes {' and '.join(same[:2])} differ only in their case"
    return text


def show_name(name: str) -> str:
    """The name of a class in a summary: printable, and not too long."""
    return printable(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…")
