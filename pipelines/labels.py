"""Labels of a diffusion model, by the names of its classes."""

import unicodedata
from collections.abc import Sequence

from residual.names import require_known, shorten

NO_LABEL = "none"
TRAIN_WITHOUT_LABELS = "train one with diffusion.label_dropout=0.1"


def find_label(text: str, classes: Sequence[str] | None, null: int | None) -> int:
    """The number of a class from its name; else `null` from “none”, or the number of a class from its number.

    If any name is a number, classes have to be named. Raises ValueError, with the nearest names, if there is no such
    class.
    """
    if classes is None:
        raise ValueError(f"label {text!r} was given, but the model has no classes; leave the label out")
    if text in classes:
        return classes.index(text)
    if (composed := unicodedata.normalize("NFC", text)) in classes:  # as names of training data are
        return classes.index(composed)
    if text == NO_LABEL:
        if null is None:
            raise ValueError(
                f"label {NO_LABEL!r} needs a model that was also trained without labels; {TRAIN_WITHOUT_LABELS}"
            )
        return null
    if text.removeprefix("-").isdecimal():
        if any(name.isdecimal() for name in classes):
            raise ValueError(f"label {text} is not the name of a class; the classes are: {shorten(classes)}")
        if int(text) in range(len(classes)):
            return int(text)
        raise ValueError(f"label {text} is outside 0 … {len(classes) - 1}; the classes are: {shorten(classes)}")
    return classes.index(require_known("class", text, classes))
