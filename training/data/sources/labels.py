"""Labels: from what a source says to class numbers with names, checked."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64

MAX_CLASSES = 100_000
"""numbers without names beyond this are taken for something else than classes"""

Label = int | str | None


def number_labels(
    raw: Sequence[Label], classes: Sequence[str] | None
) -> tuple[Int64[np.ndarray, "n"], tuple[str, ...]]:
    """Labels as class numbers, and the names of the classes.

    With `classes` None labels are taken as they come: names are classes in sorted order, numbers are their own names.
    Raises ValueError as `check_label` and `name_classes` do.
    """
    if classes is None and raw and isinstance(raw[0], str):
        classes = sorted({str(label) for label in raw})
        number = {name: index for index, name in enumerate(classes)}
        raw = [number[str(label)] for label in raw]
    numbers = np.array(raw, np.int64)
    return numbers, name_classes(numbers, classes)


def name_classes(labels: Int[np.ndarray, "n"], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes, "0" to the largest label if there are none. Raises ValueError for a label outside."""
    limit = None if classes is None else len(classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= (MAX_CLASSES if limit is None else limit)))
    if len(wrong):
        check_label(int(labels[wrong[0]]), int(wrong[0]), limit)
    return tuple(map(str, range(int(labels.max()) + 1))) if classes is None else tuple(classes)


def check_label(label: Label, index: int, limit: int | None, name: str = "") -> None:
    """Raises ValueError for a label that is missing, or a number that is no class; names are not looked at.

    `limit` is how many classes there are, None where the labels alone tell.
    """
    if isinstance(label, str):
        return
    if label is None:
        rule = "is missing"
    elif limit is not None and not 0 <= label < limit:
        rule = f"is outside 0..{limit - 1}"
    elif label < 0:
        rule = "is negative, but classes are numbered from 0 on"
    elif label >= MAX_CLASSES:
        rule = "is too large to be the number of a class"
    else:
        return
    raise ValueError(
        f"label {label} of image {index}{f', {name},' if name else ''} {rule}; correct it,"
        " name another data.label_column, or set data.labels to false"
    )
