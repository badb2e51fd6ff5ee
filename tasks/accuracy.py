"""Top-k accuracy and loss over a dataset, on all processes."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipelines.classification import ImageClassifier
from resnet import Classifier
from tasks.class_outcome import SURPLUS, ClassCounter
from training.data import BatchReader, ImageSet
from training.processes import gather, on_main, process_state
from training.task import Evaluation, EvaluationContext, Figure


@torch.no_grad()
def accuracy(
    classifier: ImageClassifier,
    images: ImageSet,
    batch: int,
    interrupted: Callable[[], object] = lambda: False,
    counter: ClassCounter | None = None,
) -> dict[str, float] | None:
    """Accuracy and loss over all images, each counted once, on all processes together. `counter` sees every batch.

    `top1` is the share of images whose label is the most likely class, `top5` (with more than five classes) the share
    whose label is among the five most likely ones, `validation_loss` the mean cross-entropy. It is not finite if that
    of any image is not. None if `interrupted()` was true.

    Call it on every process; each takes `batch` images at a time, and all call `interrupted()` equally often. The
    network of the classifier must be in eval mode and on the device.
    """
    state, device = process_state(), next(classifier.net.parameters()).device
    rank, ranks, classes = state.process_index, state.num_processes, len(classifier.classes)
    batch = min(batch, -(-len(images) // ranks))
    best = {f"top{k}": k for k in (1, 5) if k == 1 or classes > k}
    sums = torch.zeros(len(best) + 1, device=device)
    with closing(BatchReader(images, 0, batch * ranks, rank, ranks, device=device)) as reader:
        for step in range(-(-len(images) // (batch * ranks))):
            if interrupted():
                return None
            stored, label, *_ = reader.get(step)
            assert label is not None, "the images were checked when the task was built"
            first = (step * ranks + rank) * batch
            label[max(0, len(images) - first) :] = SURPLUS  # positions after the last image start over
            logits = classifier.logits(images.pixel_format.to_unit(stored))
            losses = F.cross_entropy(logits, label, ignore_index=SURPLUS, reduction="none")
            if counter is not None:
                counter.add(stored, label, logits, losses)
            sums += torch.stack([*(_count_right(logits, label, k) for k in best.values()), losses.sum()])
    means = torch.tensor(gather([sums.tolist()])).sum(dim=0) / len(images)
    return dict(zip((*best, "validation_loss"), means.tolist(), strict=True))


def _count_right(logits: Float[Tensor, "b classes"], label: Int[Tensor, "b"], k: int) -> Int[Tensor, ""]:
    """The number of images whose label is among the `k` most likely classes."""
    likely = logits.argmax(dim=1, keepdim=True) if k == 1 else logits.topk(k, dim=1).indices
    return (likely == label[:, None]).sum()


@dataclass(frozen=True)
class AccuracyEvaluation(Evaluation):
    """Accuracy on held-out images, with pictures of the classes."""

    classifier: ImageClassifier
    """everything but the weights"""
    images: ImageSet
    batch: int
    """images per forward pass on each process"""
    every_images: int
    name: ClassVar[str] = "accuracy"
    figures: ClassVar[Mapping[str, Figure]] = {
        "top1": Figure("share of images", best="highest"),
        "top5": Figure("share of images"),
        "validation_loss": Figure("cross-entropy (nats)"),
    }

    @property
    def conditions(self) -> dict[str, Any]:
        """The images."""
        return {"data": self.images.fingerprint}

    def run(self, model: nn.Module, context: EvaluationContext) -> dict[str, float] | None:
        """See `accuracy`; also writes the files of `ClassOutcome` into `context.folder`."""
        assert isinstance(model, Classifier), "the averaged model is a copy of the trained one"
        counter = ClassCounter()
        classifier = replace(self.classifier, net=model)
        found = accuracy(classifier, self.images, self.batch, context.interrupted, counter)
        if found is not None:
            outcome = counter.outcome(classifier.classes, classifier.pixel_format)
            on_main(lambda: outcome.write(context.folder, context.images_seen))
        return found
