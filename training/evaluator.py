"""The evaluations of a run, with the curves and the best model that follow. One that fails does not end the run."""

import math
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

from storage.secret import hide_secrets
from storage.show import printable
from training import best
from training.accelerator import show
from training.curves import draw_curves
from training.disk_space import ignore_disk_full, is_full, raise_disk_full
from training.log import RunLog
from training.memory import is_out_of_memory, model_bytes
from training.meter import require_finite
from training.processes import attempt, meet, on_main
from training.run_folder import RunFolder
from training.state import write_model
from training.step import Step
from training.stop import Stop
from training.task import Evaluation, EvaluationContext, plan_line

MAX_REASON = 500
"""characters of the reason why an evaluation failed"""
T = TypeVar("T")


class Evaluator:
    """Runs the evaluations of the task of `step` on its averaged model; to be used on every process alike.

    The numbers go into `log`, pictures and the best model into `folder`.
    """

    def __init__(self, step: Step, folder: RunFolder, log: RunLog, stop: Stop) -> None:
        self.step, self.folder, self.log, self.stop = step, folder, log, stop
        self.task, self.accelerator = step.task, step.accelerator
        self.planned = set[str]()
        """names of the evaluations that were planned"""

    @property
    def due(self) -> bool:
        """Whether an evaluation is due after the last update; the end of the run always is."""
        return self.step.ended or any(self.step.due(evaluation.every_images) for evaluation in self.task.evaluations)

    def run(self, images_per_second: float | None = None) -> None:
        """Run the evaluations due, and log their numbers together. `images_per_second` of training, if it is known.

        A stop cuts them short; then nothing is logged, and the resumed run repeats them. One that fails on a process is
        reported and logged; training continues.
        """
        step, seen, numbers, failed = self.step, self.step.images_seen, dict[str, float](), dict[str, str]()
        context = EvaluationContext(
            self.folder.samples,
            seen,
            self.accelerator,
            self._interrupted,
            lambda name, pixels: self.log.write_image(name, seen, pixels),
        )
        step.ema.share_buffers()
        for evaluation in self.task.evaluations:
            if not step.due(evaluation.every_images):
                continue
            found, problem = self._attempt(partial(self._measure, evaluation, context, images_per_second))
            if problem is not None:
                failed[evaluation.name] = problem
                self._report_failure(f"the {evaluation.name} after {seen:,} images", problem)
            elif found is None:
                return
            else:
                numbers |= found
        self._keep_best(numbers)  # before the line of the log, without which a resumed run evaluates again
        marks = {"evaluated": False, "failed": failed} if failed else {"evaluated": True}
        self.log.write(seen, step.updates, numbers, **marks)
        _, problem = self._attempt(lambda: on_main(self._draw_curves))
        if problem is not None:
            self._show(f"NOT DRAWN: the curves after {seen:,} images: {problem}; training continues")

    def _show(self, line: str) -> None:
        show(self.accelerator, line)

    def _attempt(self, function: Callable[[], T]) -> tuple[T, None] | tuple[None, str]:
        """`attempt` of something without which training goes on; see `describe_failure`."""
        return attempt(function, partial(describe_failure, self.folder.path))

    def _interrupted(self) -> str | None:
        """`Stop.agreed` for evaluations, in which a process may fail."""
        meet()
        return self.stop.agreed()

    @torch.no_grad()
    def _measure(
        self, evaluation: Evaluation, context: EvaluationContext, images_per_second: float | None
    ) -> Mapping[str, float] | None:
        """The numbers of an evaluation; None if it was interrupted. Raises ValueError if one is not finite."""
        self._plan(evaluation, images_per_second)
        found = evaluation.run(self.step.ema.model, context)
        if wrong := {name: number for name, number in (found or {}).items() if not math.isfinite(number)}:
            raise ValueError(", ".join(f"{name} is {number}" for name, number in wrong.items()))
        return found

    def _plan(self, evaluation: Evaluation, images_per_second: float | None) -> None:
        """Before the first run of an evaluation in this process, let it decide how much it measures; print its cost."""
        if evaluation.name in self.planned:
            return
        plan = evaluation.plan(self.step.ema.model, self.folder.samples)
        self.planned.add(evaluation.name)
        if plan:
            self._show(plan_line(evaluation, plan, self.step.settings.train.images, images_per_second))

    def _report_failure(self, what: str, problem: str) -> None:
        """Print that an evaluation failed. Raises ValueError if the averaged weights are not finite."""
        clear_device_cache(garbage_collection=True)
        again = "the same command" if self.step.ended else "training continues, and the next evaluation"
        self._show(f"NOT MEASURED: {what}: {problem}; {again} tries it again")
        weight = torch.stack([weight.abs().max() for weight in self.step.ema.model.parameters()]).max().item()
        require_finite(f"after {self.step.images_seen:,} images", {"the largest averaged weight": weight})

    def _draw_curves(self) -> None:
        """Draw what all evaluations logged, as far as the disk has space."""
        with ignore_disk_full():
            draw_curves(self.folder.log, self.folder.samples / "metrics.png", self.task.figures)

    def _keep_best(self, numbers: Mapping[str, float]) -> None:
        """Write the averaged model as `RUN/best` if the leading figure is the best so far. A failure is reported."""
        step, folder = self.step, self.folder
        if (leading := self.task.leading) is None or leading[1] not in numbers:
            return
        evaluation, name, figure = leading
        conditions, seen = evaluation.conditions, step.images_seen
        new = best.Measured(figure=name, value=numbers[name], images_seen=seen, conditions=conditions)

        def write() -> None:
            with raise_disk_full(folder.path, model_bytes(step.trained), "the best model"):
                best.keep(folder.best, new, figure, partial(write_model, step))

        _, problem = self._attempt(lambda: on_main(write))
        if problem is not None:
            self._show(f"NOT KEPT as the best model after {seen:,} images: {problem}; training continues")


def describe_failure(folder: Path, error: Exception) -> str:
    """Why something of the run in `folder` failed, in one line. An unexpected error prints its traceback."""
    if is_out_of_memory(error):
        return "it needs more memory than there is; lower the numbers of images in its settings, which may change"
    if is_full(error):
        return f"the disk is full: {folder}"
    text = str(error)
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {error}"
        for line in "".join(traceback.format_exception(error)).splitlines():
            print(printable(line), file=sys.stderr, flush=True)
    return " ".join(hide_secrets(text).split())[:MAX_REASON]
