"""One update of the weights: the next batch, loss, gradients, optimizer, averaged model. Needs no folder.

All random numbers follow from (seed, update), not from processes, micro-batches or interruptions, and the loss is the
mean over the global batch. So two processes, four micro-batches or an interrupted run train the same model. The
exceptions are dropout and batch norms: a batch norm sees the images of one forward pass.
"""

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.profiler import record_function

from residual.names import amount
from training.compile import compile_network
from training.config import TrainConfig
from training.data import BatchReader, ImageSet
from training.ema import MAIN, Ema, EmaConfig
from training.memory import activation_bytes, is_out_of_memory, state_bytes, total_bytes
from training.optimizer import OPTIMIZERS, Optimizer
from training.precision import choose_memory_format
from training.progress import print_line
from training.random import GlobalRandom, mix, seed_device
from training.schedule import SCHEDULES, Schedule
from training.settings import variants
from training.task import Batch, Task
from training.units import show_size
from training.watchdog import Progress

TRIALS = 3
"""first updates of a process in which a smaller micro-batch is tried: until the optimizer has its memory, too"""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything that an update of the weights depends on, except the task and the images."""

    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: Optimizer = variants(OPTIMIZERS, default="adamw")
    """the optimizer."""
    schedule: Schedule = variants(SCHEDULES, default="constant")
    """the learning rate over the run."""
    ema: EmaConfig = field(default_factory=EmaConfig)

    def learning_rate(self, images_seen: int) -> float:
        """The learning rate of the update that starts after `images_seen` images."""
        peak, train = self.optimizer.learning_rate, self.train
        return self.schedule.learning_rate(peak, images_seen, train.batch, train.images)


@dataclass(frozen=True)
class StepResult:
    """What one update computed. The tensors are on the device, so reading them waits for it."""

    loss: Float[Tensor, ""]
    """mean over the images of this process; the mean over the processes is that over the global batch"""
    gradient_norm: Float[Tensor, ""]
    """before clipping"""
    learning_rate: float
    loss_number: float
    """`loss`, read together with the decision whether to skip the update"""
    skipped: bool
    """whether the weights are as before, because loss or gradient was not finite on a process"""


@dataclass(frozen=True)
class ImageLosses:
    """The images of an update, and the loss of each."""

    numbers: list[int]
    losses: list[float]

    def largest(self, count: int) -> list[tuple[int, float]]:
        """The images with the largest losses, the largest one first."""
        return sorted(zip(self.numbers, self.losses, strict=True), key=lambda pair: -pair[1])[:count]

    @property
    def not_finite(self) -> list[int]:
        """The images whose loss is not finite; all of them, if it is for none."""
        found = [number for number, loss in zip(self.numbers, self.losses, strict=True) if not math.isfinite(loss)]
        return found or self.numbers


class Step:
    """Trains the model of a task, one global batch per call of `update`; to be used on every process alike.

    ```python
    with closing(Step(task, images, settings, make_accelerator(settings.train))) as step:
        for _ in range(1000):
            result = step.update()
    task.save(step.ema.model, folder)
    ```

    Frozen parameters, which require no gradient, are not given to the optimizer.
    Raises ValueError for a batch that the processes cannot share, and as `compile_network` does.
    """

    def __init__(self, task: Task[Any], images: ImageSet, settings: TrainingSettings, accelerator: Accelerator) -> None:
        self.task, self.images, self.settings, self.accelerator = task, images, settings, accelerator
        config, device = settings.train, accelerator.device
        self.rank, ranks = accelerator.process_index, accelerator.num_processes
        self.updates = 0
        """number of updates so far"""
        self.micro_batches = config.accumulation(ranks)
        self.micro_batch = config.batch // ranks // self.micro_batches
        self.memory_format = choose_memory_format(
            device, accelerator.mixed_precision == "bf16", config.compile != "off"
        )
        self.trained: nn.Module = task.model.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        """the network in training"""
        averages = {name: copy.deepcopy(self.trained) for name in settings.ema.names}  # without accelerate's forward
        compile_network(self.trained, config)
        self.model, self.optimizer = accelerator.prepare(self.trained, settings.optimizer.make(self.trainable))
        self._buffers = list(self.trained.buffers())  # finding them takes longer than copying them
        self.progress = Progress()
        """what this process does in an update"""
        self.progress.mark_waiting(self.model)
        for average in averages.values():
            average.load_state_dict(self.trained.state_dict())  # on several processes: the weights of the main one
        self.averages = {name: Ema(average, self.trained) for name, average in averages.items()}
        """the averages of the weights, by name"""
        self.ema = self.averages[MAIN]
        self.reader = BatchReader(images, config.seed, config.batch, self.rank, ranks, self.micro_batch, device)
        self._losses: list[tuple[np.ndarray, Tensor]] = []
        """of the last update: the numbers of the images of each micro-batch, and their losses"""
        self._trials = 0 if config.cuda_graphs else TRIALS  # recorded graphs hold memory for one shape

    def update(self) -> StepResult:
        """Trains on the next batch. Waits for the device once, when the gradient is there.

        If loss or gradient is not finite on a process, all processes skip the update: weights, buffers, averages and
        optimizer are as before, and the next update takes the next images.
        If memory runs out in one of the first `TRIALS` updates, all processes halve the micro-batch and compute the
        update again, with the same images and random numbers. Raises ValueError, with an estimate of the memory that is
        needed, if one image does not fit.
        """
        rate = self.settings.learning_rate(self.images_seen)
        if self.settings.train.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what the last update left in the graphs may be overwritten
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        buffers = self._copy_buffers()
        loss = self._gradients(self.model) if self._trials == 0 else self._try_gradients()
        with record_function("clipping"):  # labels for training/profile.py
            norm = self._clip()
        skipped, number = self._decide(loss, norm)
        result = StepResult(loss, norm, rate, number, skipped)
        if skipped:
            self.optimizer.zero_grad()
            self._restore_buffers(buffers)
            self.updates += 1
            return result
        with record_function("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        with torch.no_grad():
            self.task.after_update(self.trained)
        self.updates += 1
        with record_function("averaging"):
            for name, decay in self.settings.ema.decays(self.images_seen, self.settings.train.batch).items():
                self.averages[name].update(decay)
        return result

    def image_losses(self) -> ImageLosses:
        """The images of this process in the last update, and their losses; waits for the device."""
        numbers = [int(number) for part, _ in self._losses for number in part]
        return ImageLosses(numbers, [float(loss) for _, part in self._losses for loss in part.tolist()])

    @property
    def images_seen(self) -> int:
        return self.updates * self.settings.train.batch

    @property
    def ended(self) -> bool:
        """Whether all images of the run have been seen."""
        return self.images_seen >= self.settings.train.images

    def due(self, interval_images: int) -> bool:
        """Whether the last update crossed a multiple of the interval, or ended the run."""
        seen, batch = self.images_seen, self.settings.train.batch
        return self.ended or seen // interval_images > (seen - batch) // interval_images

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that are not frozen."""
        return [parameter for parameter in self.trained.parameters() if parameter.requires_grad]

    @property
    def smaller(self) -> int | None:
        """The next smaller micro-batch, at most half as large; None if it has one image."""
        share = self.micro_batch * self.micro_batches
        return next((size for size in range(self.micro_batch // 2, 0, -1) if share % size == 0), None)

    def close(self) -> None:
        """Stop reading images ahead."""
        self.reader.close()

    def _gradients(self, model: nn.Module) -> Float[Tensor, ""]:
        """Adds the gradient of the batch to those of the weights; returns the loss. `model` is `self.model`, whose last
        backward pass averages over the processes, or `self.trained`, which does not."""
        accelerator, losses = self.accelerator, []
        self._losses = []
        for micro_batch in range(self.micro_batches):
            with record_function("data"):
                batch, numbers = self._batch(micro_batch)
            dropout = mix(self.settings.train.seed, self.updates, "dropout", self.rank, micro_batch)
            seed_device(dropout, accelerator.device)
            is_last = micro_batch == self.micro_batches - 1
            with nullcontext() if is_last else accelerator.no_sync(model):
                of_each = self.task.loss(model, batch, self._random("task", micro_batch))
                loss = of_each.mean()
                accelerator.backward(loss)  # divided by micro_batches here
            self._losses.append((numbers, of_each.detach()))
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _try_gradients(self) -> Float[Tensor, ""]:
        """`_gradients`, with a smaller micro-batch on all processes if memory runs out on one of them.

        While gradients are averaged, the others would wait for that one. So several processes first compute alone.
        """
        alone, weights = self.accelerator.num_processes == 1, self.trained
        self._trials -= 1
        while True:
            loss, buffers = None, self._copy_buffers()
            try:
                loss = self._gradients(self.model if alone else weights)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if alone and loss is not None:
                return loss
            self.progress.now = "waiting", self.updates + 1, 0
            failed = torch.tensor(float(loss is None), device=self.accelerator.device)
            fits = not self.accelerator.reduce(failed, "sum").item()
            self.optimizer.zero_grad()
            self._restore_buffers(buffers)
            if fits:
                return self._gradients(self.model)
            clear_device_cache(garbage_collection=True)
            self._use_smaller()

    def _use_smaller(self) -> None:
        """Changes to the next smaller micro-batch. Raises ValueError if it has one image."""
        before = amount(self.micro_batch, "image")
        if (smaller := self.smaller) is None:
            raise ValueError(self._too_large())
        self.micro_batches, self.micro_batch = self.micro_batches * self.micro_batch // smaller, smaller
        self.accelerator.gradient_accumulation_steps = self.micro_batches
        self.reader.resize(smaller)
        if self.accelerator.is_main_process:
            print_line(
                f"out of memory with {before} in a forward pass: from now on {smaller}, in {self.micro_batches} passes "
                f"on each process; train.batch={self.settings.train.batch} stays. train.micro_batch={smaller} starts so"
            )

    def _too_large(self) -> str:
        """The message that one image does not fit, with an estimate."""
        device, slots = self.accelerator.device, self.settings.optimizer.slots
        state = state_bytes(self.trained, slots, averages=len(self.averages))
        try:
            image = torch.zeros(1, *self.images.shape, device="meta")
            one = activation_bytes(self.trained, *self.task.example(image))
        except (RuntimeError, TypeError, ValueError):  # a network that the meta device cannot compute
            one = 0
        have = "" if (total := total_bytes(device)) is None else f", and {device.type} has {show_size(total)}"
        return (
            f"train.micro_batch=1: not even one image in a forward pass fits into memory. Training needs about "
            f"{show_size(state + one)} ({show_size(state)} for weights, gradients, optimizer and EMA, {show_size(one)} "
            f"for the activations of an image){have}; use a smaller model or a larger machine"
        )

    def _decide(self, loss: Tensor, norm: Tensor) -> tuple[bool, float]:
        """Whether loss or gradient is not finite on a process, and the loss of this one. Waits for the device, once."""
        wrong = (~torch.stack([loss, norm]).isfinite()).any().float()
        skipped, number = torch.stack([self.accelerator.reduce(wrong, "sum"), loss]).tolist()
        return bool(skipped), number

    def _copy_buffers(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._buffers]

    def _restore_buffers(self, before: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, before, strict=True):
            buffer.data.copy_(value)

    def _batch(self, micro_batch: int) -> tuple[Batch, Int64[np.ndarray, "b"]]:
        """The images as the task prepares them, and their numbers in the set."""
        self.progress.now = "reading", self.updates + 1, micro_batch
        stored, label, vector, numbers = self.reader.get(self.updates, micro_batch)
        self.progress.now = "computing", self.updates + 1, micro_batch
        batch = Batch(self.images.pixel_format.to_unit(stored), label, vector=vector)
        batch = self.task.prepare(batch, self._random("augment", micro_batch))
        return replace(batch, image=batch.image.contiguous(memory_format=self.memory_format)), numbers

    def _random(self, stream: str, micro_batch: int) -> GlobalRandom:
        config, first = self.settings.train, (self.rank * self.micro_batches + micro_batch) * self.micro_batch
        rows = slice(first, first + self.micro_batch)
        return GlobalRandom(config.seed, self.updates, stream, config.batch, rows, self.accelerator.device)

    def _clip(self) -> Tensor:
        """Clips the gradient to `optimizer.max_grad_norm`; returns its norm before."""
        if (limit := self.settings.optimizer.max_grad_norm) is not None:
            return self.accelerator.clip_grad_norm_(self.trainable, limit)
        return nn.utils.get_total_norm([weight.grad for weight in self.trainable if weight.grad is not None])
