"""Watches the updates of a run: those that are skipped, and losses that are much larger than before."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import gather_object

from residual.names import amount, shorten
from training import checkpoint
from training.log import RunLog
from training.meter import diverged
from training.processes import on_main
from training.progress import print_line
from training.state import restore
from training.step import Step, StepResult


class Guard:
    """Reports updates that were skipped, and goes back to an earlier checkpoint after too many in a row.

    `limit` is `train.max_skipped`, `checkpoints` the folder of the checkpoints.
    """

    def __init__(self, step: Step, limit: int, checkpoints: Path) -> None:
        self.step, self.limit, self.checkpoints = step, limit, checkpoints
        self.skipped = 0
        """the last updates, as far as they were skipped"""
        self.went_back = 0
        """the number of updates when the run went back last; earlier checkpoints are not of its weights"""
        self._spikes = Spikes()

    def check(self, result: StepResult, log: RunLog) -> None:
        """Look at the last update; to be called on every process.

        Raises ValueError on every process if too many updates in a row were skipped and there is no checkpoint to go
        back to.
        """
        if result.skipped:
            self._skip(result, log)
        else:
            self.skipped = 0
            self._report_spike(result.loss_number)

    def _skip(self, result: StepResult, log: RunLog) -> None:
        step, limit = self.step, self.limit
        self.skipped += 1
        both = step.accelerator.reduce(torch.stack([result.loss, result.gradient_norm]), "mean")
        means = dict(zip(("loss", "gradient_norm"), both.tolist(), strict=True))
        images = sorted(gather_object(step.image_losses().not_finite))
        shown = shorten([str(number) for number in images], 8)
        if limit:
            found = ", ".join(f"{name} is {number:.4g}" for name, number in means.items())
            self._show(f"update {step.updates:,} is skipped, the weights stay: {found}; images {shown}")
            log.write(step.images_seen, step.updates, {}, skipped=True, image_numbers=images)
        if self.skipped >= limit and not (limit and self._go_back()):
            way = f"{amount(self.skipped, 'update')} in a row could not be computed, the last one on images {shown}:"
            raise diverged(way, means)

    def _go_back(self) -> bool:
        """Restore the newest checkpoint that is older than the skipped updates; the next images follow as before.

        False if there is none since the run went back.
        """
        step, updates = self.step, self.step.updates
        saved = on_main(lambda: checkpoint.newest_before(self.checkpoints, updates - self.skipped))
        if saved is None or saved.update < self.went_back:
            return False
        restore(step, saved.update, lambda: checkpoint.read_tensors(saved))
        step.updates = updates
        self.went_back = updates
        self._show(
            f"{amount(self.skipped, 'update')} in a row skipped: back to the weights after {saved.images:,} images; "
            "training continues with the next images"
        )
        self.skipped = 0
        return True

    def _report_spike(self, loss: float) -> None:
        if (largest := self._spikes.find(loss)) is not None:
            worst = ", ".join(f"{number} ({own:.4g})" for number, own in self.step.image_losses().largest(5))
            print_line(
                f"update {self.step.updates:,} has a loss of {loss:.4g}, the {self._spikes.window} before have at most "
                f"{largest:.4g}; the images with the largest losses: {worst}"
            )

    def _show(self, line: str) -> None:
        if self.step.accelerator.is_main_process:
            print_line(line)


@dataclass
class Spikes:
    """Compares each loss with the largest of the updates before it, as Megatron-LM does."""

    factor: float = 10
    """how much larger a spike is"""
    window: int = 100
    """updates that a loss is compared with, after as many"""
    _earlier: deque[float] = field(default_factory=deque)

    def find(self, loss: float) -> float | None:
        """The largest of the losses before, if this one is a spike. Spikes are not compared with later losses."""
        largest = max(self._earlier, default=0.0)
        if len(self._earlier) == self.window and loss > self.factor * largest:
            return largest
        self._earlier.append(loss)
        if len(self._earlier) > self.window:
            self._earlier.popleft()
        return None
