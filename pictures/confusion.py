"""A confusion matrix as a picture: numbers of images by true and predicted class, with the accuracy of each class."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from pictures.grid import fitting

MAX_CLASSES = 30
"""in the picture: of more, those with the most mistakes"""
CELL_PX, GAP_PX, TEXT_PX, MAX_NAME_PX = 30, 6, 12, 140
RIGHT, WRONG = np.array([26, 127, 55]), np.array([207, 34, 46])
"""colours of the diagonal, and of the rest, for all images of a class"""


def shown_classes(mistakes: Int[np.ndarray, "classes"]) -> Int[np.ndarray, "shown"]:
    """The classes that a picture shows, in their order; `mistakes` has those of each class."""
    return np.sort(np.argsort(-mistakes, kind="stable")[:MAX_CLASSES])


def draw_confusion(counts: Int[np.ndarray, "n n"], totals: Int[np.ndarray, "n"], names: Sequence[str]) -> Image.Image:
    """The matrix of `counts` [true class, predicted class], of classes with these `names` and `totals` of images.

    The colour of a cell is its share of the images of the true class. The accuracy is to the right.
    """
    font = ImageFont.load_default(TEXT_PX)
    labels = [fitting(name, font, MAX_NAME_PX) for name in names]
    margin = int(max(map(font.getlength, labels))) + 2 * GAP_PX
    side, last = len(labels) * CELL_PX, int(font.getlength("100.0% of 000,000")) + GAP_PX
    picture = Image.new("RGB", (margin + side + GAP_PX + last, margin + side + GAP_PX), "white")
    pen = ImageDraw.Draw(picture)
    for k, label in enumerate(labels):
        middle = margin + k * CELL_PX + CELL_PX // 2
        pen.text((margin - GAP_PX, middle), label, fill="black", font=font, anchor="rm")
        upright = Image.new("RGB", (margin - GAP_PX, CELL_PX), "white")
        ImageDraw.Draw(upright).text((0, CELL_PX // 2), label, fill="black", font=font, anchor="lm")
        picture.paste(upright.rotate(90, expand=True), (middle - CELL_PX // 2, 0))
        accuracy = f"{counts[k, k] / totals[k]:.1%} of {totals[k]:,}" if totals[k] else "no images"
        pen.text((margin + side + GAP_PX, middle), accuracy, fill="black", font=font, anchor="lm")
    for row, column in np.ndindex(counts.shape):
        share = counts[row, column] / max(1, totals[row])
        strength = share**0.5 * 0.85  # so that few mistakes are seen
        colour = np.rint(255 + strength * ((RIGHT if row == column else WRONG) - 255)).astype(int)
        x, y = margin + column * CELL_PX, margin + row * CELL_PX
        pen.rectangle((x, y, x + CELL_PX - 2, y + CELL_PX - 2), fill=tuple(colour.tolist()))
        if counts[row, column]:
            text = _few_digits(int(counts[row, column]))
            centre = x + CELL_PX // 2 - 1, y + CELL_PX // 2 - 1
            pen.text(centre, text, fill="white" if strength > 0.6 else "black", font=font, anchor="mm")
    return picture


def _few_digits(number: int) -> str:
    return str(number) if number < 1000 else f"{number / 1000:.0f}k" if number < 1_000_000 else ">1M"
