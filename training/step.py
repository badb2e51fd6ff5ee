"""One update of the weights: the next batch, loss, gradients, optimizer, averaged model. Needs no folder.

All random numbers follow from (seed, update), not from processes, micro-batches or interruptions, and the loss is the
mean over the global batch. So two processes, four micro-batches or an interrupted run train the same model. The
exceptions are dropout and batch norms: a batch norm sees the images of one forward pass.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from training.compile import compile_network
from training.config import TrainConfig
from training.data import BatchReader, ImageSet
from training.ema import MAIN, Ema, EmaConfig
from training.optimizer import OPTIMIZERS, Optimizer
from training.precision import choose_memory_format
from training.random import GlobalRandom, mix, seed_device
from training.schedule import SCHEDULES, Schedule
from training.settings import variants
from training.task import Batch, Task


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
        for average in averages.values():
            average.load_state_dict(self.trained.state_dict())  # on several processes: the weights of the main one
        self.averages = {name: Ema(average, self.trained) for name, average in averages.items()}
        """the averages of the weights, by name"""
        self.ema = self.averages[MAIN]
        self.reader = BatchReader(images, config.seed, config.batch, self.rank, ranks, self.micro_batch, device)

    def update(self) -> StepResult:
        """Trains on the next batch, without waiting for the device."""
        accelerator, seed = self.accelerator, self.settings.train.seed
        rate, losses = self.settings.learning_rate(self.images_seen), []
        norm = torch.zeros((), device=accelerator.device)
        if self.settings.train.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what the last update left in the graphs may be overwritten
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for micro_batch in range(self.micro_batches):
            batch = self._batch(micro_batch)
            seed_device(mix(seed, self.updates, "dropout", self.rank, micro_batch), accelerator.device)
            with accelerator.accumulate(self.model):
                losses.append(self.task.loss(self.model, batch, self._random("task", micro_batch)).mean())
                accelerator.backward(losses[-1])  # divided by micro_batches here, averaged over the processes by DDP
                if accelerator.sync_gradients:
                    norm = self._clip()
                self.optimizer.step()
                self.optimizer.zero_grad()
        with torch.no_grad():
            self.task.after_update(self.trained)
        self.updates += 1
        for name, decay in self.settings.ema.decays(self.images_seen, self.settings.train.batch).items():
            self.averages[name].update(decay)
        return StepResult(torch.stack([loss.detach() for loss in losses]).mean(), norm, rate)

    @property
    def images_seen(self) -> int:
        return self.updates * self.settings.train.batch

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that are not frozen."""
        return [parameter for parameter in self.trained.parameters() if parameter.requires_grad]

    def close(self) -> None:
        """Stop reading images ahead."""
        self.reader.close()

    def _batch(self, micro_batch: int) -> Batch:
        stored, label = self.reader.get(self.updates, micro_batch)
        batch = Batch(self.images.pixel_format.to_unit(stored), label)
        batch = self.task.prepare(batch, self._random("augment", micro_batch))
        return replace(batch, image=batch.image.contiguous(memory_format=self.memory_format))

    def _random(self, stream: str, micro_batch: int) -> GlobalRandom:
        config, first = self.settings.train, (self.rank * self.micro_batches + micro_batch) * self.micro_batch
        rows = slice(first, first + self.micro_batch)
        return GlobalRandom(config.seed, self.updates, stream, config.batch, rows, self.accelerator.device)

    def _clip(self) -> Tensor:
        """Clips the gradient to `optimizer.max_grad_norm`; returns its norm before."""
        if (limit := self.settings.optimizer.max_grad_norm) is not None:
            return self.accelerator.clip_grad_norm_(self.trainable, limit)
        return nn.utils.get_total_norm([weight.grad for weight in self.trainable if weight.grad is not None])
