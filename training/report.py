"""The report of `--dry-run`: settings, model size, memory, length, time and learning rates; and warnings of a run."""

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from residual.count import multiply_adds, parameters
from storage.show import printable
from training.checkpoint import kept_checkpoints
from training.data import ImageSet
from training.memory import activation_bytes, checkpoint_bytes, explain_out_of_memory, state_bytes, total_bytes
from training.snapshots import kept_snapshots
from training.step import Step, TrainingSettings
from training.task import Task, plan_line
from training.units import show_count, show_size
from training.yaml_file import write_yaml

MANY_TIMES = 10_000
"""how often a run may see each image without a warning; published recipes stay below 5,000"""
TRIAL_MULTIPLY_ADDS = 100e9
"""of the forward pass of an update that is measured on a CPU: some seconds"""


@dataclass(frozen=True)
class Outlook:
    """What a run needs, compared with the machine. Memory is an estimate: tensors of the optimizer and of autograd,
    without the libraries' workspaces.

    Raises ValueError for a batch that the processes cannot share.
    """

    task: Task[Any]
    settings: TrainingSettings
    images: ImageSet
    device: torch.device
    processes: int = 1

    def __post_init__(self) -> None:
        self.settings.train.accumulation(self.processes)

    @property
    def passes(self) -> int:
        """Forward passes of an update on each process."""
        return self.settings.train.accumulation(self.processes)

    @property
    def micro_batch(self) -> int:
        """Images of a forward pass."""
        return self.settings.train.batch // self.processes // self.passes

    @property
    def repeats(self) -> float:
        """How often each image is seen."""
        config = self.settings.train
        return config.updates * config.batch / len(self.images)

    @cached_property
    def state_bytes(self) -> int:
        """Of weights, gradients, optimizer and averaged weights."""
        averages = len(self.settings.ema.names)
        return state_bytes(self.task.model, self.settings.optimizer.slots, averages=averages)

    @cached_property
    def image_bytes(self) -> int:
        """Of the activations of one image. Raises ValueError if a batch norm has only one value to normalise."""
        count = min(2, self.micro_batch)  # a batch norm may need two
        try:
            return activation_bytes(self.task.model, *self._example(count)) // count
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"batch norms cannot be trained with {self.micro_batch} image in a forward pass (train.batch="
                f"{self.settings.train.batch}, train.micro_batch={self.settings.train.micro_batch or 'null'}, "
                f"{self.processes} processes); give 2 or more images to each"
            ) from None

    @cached_property
    def multiply_adds(self) -> int:
        """Of the forward pass of one image."""
        return multiply_adds(self.task.model, *self._example(1))

    def warnings(self) -> list[str]:
        """What of the run does not fit the machine or the images, with a way out; one line each."""
        lines, available, device = list[str](), total_bytes(self.device), self.device.type
        try:
            one = self.image_bytes
        except (RuntimeError, TypeError):  # a network that the meta device cannot compute: its memory is unknown
            one = 0
        needed = self.state_bytes + self.micro_batch * one
        if available is not None and needed > available:
            share, fitting = self.settings.train.batch // self.processes, (available - self.state_bytes) // max(one, 1)
            divisor = next((number for number in range(min(fitting, share), 0, -1) if share % number == 0), None)
            way_out = "use a smaller model" if divisor is None else f"give train.micro_batch={divisor}"
            have = f"{device} has {show_size(available)} for each process"
            lines.append(f"warning: the run needs about {show_size(needed)}, but {have}; {way_out}")
        if self.repeats > MANY_TIMES:
            enough = f"train.images={MANY_TIMES // 10 * len(self.images):,} shows each 1,000 times"
            lines.append(
                f"warning: each of the {len(self.images):,} images is seen {self.repeats:,.0f} times by "
                f"train.images={self.settings.train.images:,}; {enough}"
            )
        config = self.settings.train
        if config.checkpoint_every_images > config.images and config.updates > config.max_skipped:
            lines.append(
                f"warning: train.checkpoint_every_images={config.checkpoint_every_images:,} is longer than the run: an "
                f"interruption, or train.max_skipped={config.max_skipped} skipped updates in a row, loses all updates; "
                f"give at most half of train.images={config.images:,}"
            )
        return lines

    def measure(self, accelerator: Accelerator, samples: Path) -> tuple[str, list[str]]:
        """The time of the run without evaluations, from the second of two updates; and a line per planned evaluation.

        To be called on every process. It trains the model: for a dry run only. On a CPU a part of a large micro-batch
        is measured. `samples` is the folder of evaluations in the run folder. Raises ValueError if memory is too small
        for an evaluation.
        """
        available, count = total_bytes(self.device), self.micro_batch
        if self.device.type == "cpu":
            count = min(count, int(TRIAL_MULTIPLY_ADDS // max(self.multiply_adds, 1)) // 2 * 2)
        if not count or (available is not None and self.state_bytes + count * self.image_bytes > available):
            return "not measured: the update is too large for this machine", []
        config = replace(self.settings.train, batch=count * self.processes, micro_batch=None, compile="off")
        settings = TrainingSettings(
            train=config,
            optimizer=self.settings.optimizer,
            schedule=self.settings.schedule,
            ema=self.settings.ema,
        )
        accelerator.gradient_accumulation_steps = 1
        try:
            average = copy.deepcopy(self.task.model).to(self.device).eval()
            with closing(Step(self.task, self.images, settings, accelerator)) as step:
                step.update().loss.item()
                began = time.perf_counter()
                step.update().loss.item()  # waits for the device
                seconds = time.perf_counter() - began
        except torch.OutOfMemoryError:
            return f"not measured: {count} images do not fit into memory; lower train.micro_batch", []
        speed = config.batch / seconds
        total = self.settings.train.updates * self.settings.train.batch / speed
        text = f"{tqdm.format_interval(total)} at {speed:,.3g} images/s ({step.micro_batch} in a pass)"
        lines = []
        for each in self.task.evaluations:
            way_out = "lower the numbers of images in its settings"
            with torch.no_grad(), explain_out_of_memory(f"the {each.name} evaluation", way_out):
                if plan := each.plan(average, samples, record=False):
                    lines.append(plan_line(each, plan, self.settings.train.images, speed))
        return text, lines

    def _example(self, count: int) -> tuple[Tensor, ...]:
        return self.task.example(torch.zeros(count, *self.images.shape, device="meta"))


def report(
    resolved: Mapping[str, Any], outlook: Outlook, measured: str | None = None, evaluations: Sequence[str] = ()
) -> str:
    """The report of a run before it starts, for a terminal of 80 columns.

    `resolved` has all settings as plain values; `measured` and `evaluations` are what `Outlook.measure` returned.
    """
    settings, config = outlook.settings, outlook.settings.train
    state, one, micro_batch = outlook.state_bytes, outlook.image_bytes, outlook.micro_batch
    activations, seen = one * micro_batch, config.updates * config.batch
    parts = [(outlook.processes, "processes"), (outlook.passes, "passes"), (micro_batch, "images")]
    split = [f"{number} {name}" for number, name in parts if number > 1 or name == "images"]
    stored = checkpoint_bytes(outlook.task.model, settings.optimizer.slots, len(settings.ema.names))
    rows = {
        "parameters": f"{parameters(outlook.task.model):,}",
        "multiply-adds": f"{show_count(outlook.multiply_adds)} per image, forward",
        "memory, estimated": f"{show_size(state + activations)} on each process, of it",
        "  model and optimizer": f"{show_size(state)} (weights, gradients, optimizer, EMA)",
        "  activations": f"{show_size(activations)} in float32 ({micro_batch} x {show_size(one)})",
        "checkpoint": f"{show_size(stored)} on disk, {kept_checkpoints(config)}",
        "updates": f"{config.updates:,} of {' x '.join(split)}",
        "length": f"{seen:,} images: each of the {len(outlook.images):,} about {outlook.repeats:,.1f} times",
    }
    if settings.ema.power_widths:
        rows["snapshots"] = kept_snapshots(settings.ema, config, outlook.task.model)
    if measured is not None:
        rows["time, measured"] = measured
    rates = [f"{point:>15,}   {settings.learning_rate(point):.3e}" for point in rate_points(settings)]
    table = [f"{name:<24}{text}" for name, text in rows.items()]
    lines = [*write_yaml(resolved).splitlines(), "", *table, "", "    images seen   learning rate", *rates]
    return "\n".join(map(printable, [*lines, *evaluations, *outlook.warnings()]))


def rate_points(settings: TrainingSettings, after_warmup: int = 8) -> list[int]:
    """Images seen before some updates: the first, the last, within and at the end of the warm-up, evenly after it."""
    config = settings.train
    last = (config.updates - 1) * config.batch
    edge = min(settings.schedule.warmup_images, last)
    points = [0, edge // 2, *(edge + (last - edge) * i // after_warmup for i in range(after_warmup + 1))]
    return sorted({-(-point // config.batch) * config.batch for point in points})
