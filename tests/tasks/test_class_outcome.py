"""Accuracy of each class, confusions and worst mistakes, against counts by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from pictures.confusion import MAX_CLASSES, draw_confusion, shown_classes
from pictures.pixel_format import BYTES
from tasks.class_outcome import MAX_MISTAKES, SURPLUS, ClassCounter, ClassOutcome

CLASSES = ("cat", "dog", "<b>owl")
LABEL = torch.tensor([0, 0, 0, 1, 1, 2, 0])
PREDICTED = torch.tensor([0, 1, 1, 1, 2, 2, SURPLUS % 3])


def outcome(batches: int = 1) -> ClassOutcome:
    """Seven images of which the last does not count, in so many batches."""
    logits = torch.zeros(7, 3).scatter(1, PREDICTED[:, None], torch.arange(1.0, 8.0)[:, None])
    label = LABEL.clone()
    label[-1] = SURPLUS
    losses = cross_entropy(logits, label, ignore_index=SURPLUS, reduction="none")
    stored = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(7, 1, 2, 2)
    counter = ClassCounter()
    for part in torch.arange(7).chunk(batches):
        counter.add(stored[part], label[part], logits[part], losses[part])
    return counter.outcome(CLASSES, BYTES)


@pytest.mark.parametrize("batches", [1, 3, 7])
def test_every_image_counts_once_and_the_worst_come_first(batches: int) -> None:
    found = outcome(batches)
    assert found.totals.tolist() == [3, 2, 1]
    assert found.right.tolist() == [1, 1, 1]
    assert [int(each.stored.max()) for each in found.mistakes] == [4, 2, 1]
    worst = found.mistakes[0]
    assert (worst.label, worst.predicted) == (1, 2)
    assert worst.probability == pytest.approx(torch.tensor([5.0, 0, 0]).softmax(0)[0].item())
    assert [line.split()[0] for line in found.worst(2)] == ["cat", "dog"]


def test_few_mistakes_are_kept() -> None:
    counter, count = ClassCounter(), MAX_MISTAKES + 5
    logits = torch.tensor([[0.0, 1.0]]).repeat(count, 1) * torch.arange(1, count + 1)[:, None]
    label = torch.zeros(count, dtype=torch.int64)
    for part in torch.arange(count).chunk(3):
        losses = cross_entropy(logits[part], label[part], reduction="none")
        counter.add(torch.zeros(len(part), 1, 1, 1, dtype=torch.uint8), label[part], logits[part], losses)
    losses = torch.tensor([each.loss for each in counter.outcome(("a", "b"), BYTES).mistakes])
    assert_close(losses, cross_entropy(logits, label, reduction="none").sort(descending=True).values[:MAX_MISTAKES])


def test_the_files_hold_what_was_counted(tmp_path) -> None:
    outcome().write(tmp_path, 70)
    document = json.loads((tmp_path / "classes.json").read_text())
    assert document["images_seen"] == 70
    rows = [tuple(row.values()) for row in document["classes"]]
    assert rows == [("cat", 3, 1, "dog"), ("dog", 2, 1, "<b>owl"), ("<b>owl", 1, 1, None)]
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    right = ClassOutcome(CLASSES, BYTES, np.arange(3), np.arange(3), ())
    right.write(tmp_path, 80)
    assert not (tmp_path / "mistakes.png").exists()


def test_the_matrix_shows_the_classes_with_the_most_mistakes() -> None:
    mistakes = np.zeros(MAX_CLASSES + 10, np.int64)
    mistakes[-3:] = 1
    shown = shown_classes(mistakes)
    assert len(shown) == MAX_CLASSES
    assert shown[-3:].tolist() == [len(mistakes) - 3, len(mistakes) - 2, len(mistakes) - 1]
    assert shown_classes(np.zeros(4, np.int64)).tolist() == [0, 1, 2, 3]
    picture = draw_confusion(np.eye(2, dtype=np.int64), np.array([1, 0]), ("a" * 500, "\n"))
    assert max(picture.size) < 1000
