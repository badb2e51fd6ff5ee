"""Labels: converts the labels of a source to class numbers with names, and checks them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64

MAX_CLASSES = 100_000
"""limit for class numbers without names; larger ones are hardly class numbers"""

Label = int | str | None


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
