"""What a classifier does with each class: accuracy, confusions and the worst mistakes, as files in a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor

from pictures.confusion import draw_confusion, shown_classes
from pictures.grid import draw_samples
from pictures.units import AnyFormat
from storage.write import replace_file
from training.processes import gather
from training.run_report import CLASSES_FILE, OF_CLASSES

MAX_MISTAKES = 16
SURPLUS = -1
"""label of an image that was counted before"""


@dataclass(frozen=True)
class Mistake:
    """An image with another predicted class than its own."""

    loss: float
    label: int
    predicted: int
    probability: float
    """of the predicted class"""
    stored: Shaped[np.ndarray, "c h w"]


class ClassCounter:
    """Collects labels, predictions and the worst mistakes of one process, on its device."""

    def __init__(self) -> None:
        self._pairs = list[Tensor]()
        self._worst: tuple[Tensor, ...] = ()

    def add(
        self,
        stored: Shaped[Tensor, "b c h w"],
        label: Int[Tensor, "b"],
        logits: Float[Tensor, "b classes"],
        losses: Float[Tensor, "b"],
    ) -> None:
        """Counts a batch. Images with the label `SURPLUS` do not count."""
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        self._pairs.append(torch.stack([label, predicted]))
        is_wrong = (predicted != label) & (label != SURPLUS)
        new = (losses.where(is_wrong, float("-inf")), label, predicted, probability, stored)
        every = tuple(torch.cat(pair) for pair in zip(self._worst, new, strict=True)) if self._worst else new
        worst = every[0].topk(min(MAX_MISTAKES, len(every[0]))).indices
        self._worst = tuple(values[worst] for values in every)

    def outcome(self, classes: Sequence[str], pixel_format: AnyFormat) -> "ClassOutcome":
        """What all processes have collected. Call it on every process."""
        pairs = torch.cat(self._pairs, dim=1).cpu().numpy() if self._pairs else np.empty((2, 0), np.int64)
        columns = [values.cpu().numpy() for values in self._worst]
        mistakes = [
            Mistake(float(loss), int(label), int(predicted), float(probability), stored)
            for loss, label, predicted, probability, stored in zip(*columns, strict=True)
            if np.isfinite(loss)
        ]
        gathered = np.concatenate(gather([pairs]), axis=1)
        worst = sorted(gather(mistakes), key=lambda mistake: -mistake.loss)[:MAX_MISTAKES]
        label, predicted = gathered[:, gathered[0] != SURPLUS]
        return ClassOutcome(tuple(classes), pixel_format, label, predicted, tuple(worst))


@dataclass(frozen=True)
class ClassOutcome:
    """Labels and predictions of all images, and the mistakes with the largest loss."""

    classes: tuple[str, ...]
    pixel_format: AnyFormat
    label: Int[np.ndarray, "n"]
    predicted: Int[np.ndarray, "n"]
    mistakes: tuple[Mistake, ...]

    @property
    def totals(self) -> Int[np.ndarray, "classes"]:
        """Images of each class."""
        return np.bincount(self.label, minlength=len(self.classes))

    @property
    def right(self) -> Int[np.ndarray, "classes"]:
        """Images of each class that are classified correctly."""
        return np.bincount(self.label[self.label == self.predicted], minlength=len(self.classes))

    def write(self, folder: Path, images_seen: int) -> None:
        """Writes classes.json, confusion.png and mistakes.png, which is removed if there are none."""
        folder.mkdir(parents=True, exist_ok=True)
        confusion, mistakes = (folder / name for name in OF_CLASSES)
        rows = [
            {"name": name, "images": int(images), "right": int(right), "confused_with": confused}
            for name, images, right, confused in zip(self.classes, self.totals, self.right, self._confused, strict=True)
        ]
        text = json.dumps({"images_seen": images_seen, "classes": rows}, indent=1) + "\n"
        replace_file(folder / CLASSES_FILE, lambda new: new.write_text(text, encoding="utf-8"), flush=False)
        replace_file(confusion, lambda new: self._matrix().save(new, "png"), flush=False)
        if not self.mistakes:
            mistakes.unlink(missing_ok=True)
            return
        names = [
            f"{self.classes[each.label]}, taken for {self.classes[each.predicted]} ({each.probability:.0%})"
            for each in self.mistakes
        ]
        grid = draw_samples(np.stack([each.stored for each in self.mistakes]), self.pixel_format, names)
        replace_file(mistakes, lambda new: grid.save(new, "png"), flush=False)

    def worst(self, count: int = 3) -> list[str]:
        """The classes with the lowest accuracy, as text, the worst first."""
        totals, right = self.totals, self.right
        ordered = sorted(np.flatnonzero(totals), key=lambda k: right[k] / totals[k])[:count]
        return [f"{self.classes[k]} {right[k] / totals[k]:.4f} ({right[k]:,} of {totals[k]:,})" for k in ordered]

    @property
    def _confused(self) -> list[str | None]:
        """The class for which each class is taken most often, by name; None where it never is."""
        wrong = self.label != self.predicted
        codes, counts = np.unique(
            self.label[wrong].astype(np.int64) * len(self.classes) + self.predicted[wrong], return_counts=True
        )
        found: list[str | None] = [None] * len(self.classes)
        for code in codes[np.argsort(counts, kind="stable")].tolist():
            label, predicted = divmod(code, len(self.classes))
            found[label] = self.classes[predicted]
        return found

    def _matrix(self) -> Image.Image:
        wrong = self.label != self.predicted
        mistakes = sum(np.bincount(each[wrong], minlength=len(self.classes)) for each in (self.label, self.predicted))
        shown = shown_classes(np.asarray(mistakes))
        place = np.full(len(self.classes), -1)
        place[shown] = np.arange(len(shown))
        rows, columns = place[self.label], place[self.predicted]
        counts = np.zeros((len(shown), len(shown)), np.int64)
        inside = (rows >= 0) & (columns >= 0)
        np.add.at(counts, (rows[inside], columns[inside]), 1)
        return draw_confusion(counts, self.totals[shown], [self.classes[k] for k in shown])
