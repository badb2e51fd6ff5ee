"""The training loop: images in, updates of any task's model out. Time is counted in images seen.

Every random number belongs to (seed, update), never to a process, a micro-batch or an interruption, and the loss is
the mean over the global batch; so two processes, four micro-batches, or a run stopped and resumed train the same model.
Only dropout and batch norms tell processes and micro-batches apart: a norm sees the images of one forward pass.
"""

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from training import checkpoint, files, log
from training.accelerator import on_main
from training.checkpoint import Checkpoint, Facts
from training.config import TrainConfig
from training.data import BatchReader, ImageSet
from training.log import RunLog
from training.memory import checkpoint_bytes, saved_bytes
from training.meter import Meter
from training.random import GlobalRandom, mix, seed_device
from training.report import checkpoints_kept
from training.room import NoRoom, free_bytes, is_full, require_room, room
from training.run_folder import RunFolder
from training.schedule import ema_keep, learning_rate
from training.state import TrainState
from training.stop import Stop
from training.task import Batch, EvaluationContext, Task
from training.units import show_size


def fit(task: Task[Any], images: ImageSet, config: TrainConfig, folder: RunFolder, accelerator: Accelerator) -> bool:
    """Train `task.model` on `images` until `config.images` are seen; to be called on every process.

    True: the run is finished. False: it was asked to stop (see `Stop`), and what was trained is saved.

    `folder` has been opened: the run starts, or goes on from the newest intact checkpoint, or is finished already.
    Raises ValueError if a checkpoint does not fit the model or the images, and on every process if training diverges
    (before the checkpoint that would hold it).
    """
    if folder.status is None:
        raise ValueError(f"the run folder {folder.path} is not open; call folder.open(resolved_config) first")
    if folder.status == "finished":
        assert folder.start is not None
        accelerator.print(
            f"finished: {folder.path} has seen {folder.start.images:,} images; "
            "give more train.images to go on, or --fresh to start over"
        )
        return True
    return Loop(task, images, config, folder, accelerator).run()


class Loop:
    """One run: what `fit` was given, and the state that it changes."""

    def __init__(
        self,
        task: Task[Any],
        images: ImageSet,
        config: TrainConfig,
        folder: RunFolder,
        accelerator: Accelerator,
    ) -> None:
        self.task, self.images, self.config, self.folder, self.accelerator = task, images, config, folder, accelerator
        self.rank, ranks = accelerator.process_index, accelerator.num_processes
        self.micro_batches = config.accumulation(ranks)
        self.micro_batch = config.batch // ranks // self.micro_batches
        self.state = TrainState(task.model, config, accelerator)
        self.feed = BatchReader(
            images, config.seed, config.batch, self.rank, ranks, self.micro_batch, accelerator.device
        )

    def run(self) -> bool:
        """From where the run folder stands to the end (True), or until asked to stop (False)."""
        folder = self.folder
        with closing(self.feed), Stop() as self.stop:
            self.start()
            seen = self.state.images_seen
            self.log = RunLog(folder.log, folder.tensorboard, self.config, seen, self.accelerator)
            with closing(self.log):
                evaluated = not seen or on_main(lambda: log.evaluated(folder.log, seen))
                if not evaluated and self.evaluation_due():
                    self.evaluate()  # the run stopped between the checkpoint and this
                stopped = self.stop.agreed() or self.train()
        seen = self.state.images_seen
        self.accelerator.print(
            f"stopped by {stopped} after {seen:,} images, which are saved in {folder.path}; the same command goes on"
            if stopped
            else f"finished: {folder.path} has seen {seen:,} images; its model is in {folder.model}"
        )
        return stopped is None

    def start(self) -> None:
        """Restore the newest checkpoint; or, for a new run, write one before the first update and check it.

        Raises NoRoom if the disk has no room for what the run will write next.
        """
        start, path, took = self.folder.start, self.folder.path, ""
        model, slots = self.state.trained, self.config.optimizer_slots
        if start is None:
            on_main(lambda: require_room(path, saved_bytes(model, slots, 2), "two checkpoints and the model"))
            began = time.perf_counter()
            self.save()
            took = f"; the first took {time.perf_counter() - began:.1f} s"
            if problem := on_main(lambda: checkpoint.verify(checkpoint.list_folders(self.folder.checkpoints)[0])):
                raise OSError(f"{self.folder.checkpoints}: the first checkpoint cannot be read back: {problem}")
        else:
            on_main(lambda: require_room(path, saved_bytes(model, slots), "a checkpoint and the model"))
            self.restore(start)
        size, free = show_size(checkpoint_bytes(model, slots)), show_size(on_main(lambda: free_bytes(path)))
        self.accelerator.print(f"checkpoints: {size} each, {checkpoints_kept(self.config)}{took}; {free} are free")

    def restore(self, start: Checkpoint) -> None:
        """Go on from a checkpoint, and say what has changed since it was written."""
        if start.data != self.images.fingerprint:
            raise ValueError(
                f"{self.folder.path} was trained on other images (fingerprint {start.data[:12]} there, "
                f"{self.images.fingerprint[:12]} now); give the same, another --run, or --fresh to start over"
            )
        self.state.restore(start)
        self.accelerator.print(f"resuming {self.folder.path} from {start.images:,} images (update {start.update:,})")
        for line in checkpoint.changes(start, self.facts()):
            self.accelerator.print(line)

    def train(self) -> str | None:
        """Updates until the end, and after each what is due. If asked to stop, saves and tells by what."""
        config, state, meter = self.config, self.state, Meter(self.accelerator.device)
        while state.images_seen < config.images:
            rate = learning_rate(config, state.images_seen)
            meter.add(*self.update(rate))
            self.log.advance(config.batch)
            stopped = self.stop.agreed()
            write, save = self.due(config.log_every_images), self.due(config.checkpoint_every_images)
            evaluate = self.evaluation_due()
            if write or save or stopped or evaluate:
                means = meter.means(self.accelerator)
                meter.require_finite(means)  # before a checkpoint or the averaged model would be overwritten
                if write:
                    numbers = {**means, "learning_rate": rate, **meter.speed(config.batch, self.feed.waited_seconds)}
                    self.log.write(state.images_seen, state.update, numbers)
                    meter.restart(self.feed.waited_seconds)
            with meter.pause():
                saved = bool(save or stopped) and self.save(last=bool(stopped))
                if evaluate and not stopped:
                    self.evaluate()
                    stopped = self.stop.agreed()
            if stopped:
                if not saved:
                    self.save(last=True)
                return stopped
        return None

    def update(self, rate: float) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """One update of the weights and one of their average, without waiting for the device.

        Returns this process's loss (the mean over the processes is the mean over the global batch) and the norm of the
        gradient before clipping, both on the device.
        """
        state, accelerator, seed = self.state, self.accelerator, self.config.seed
        losses, norm = [], torch.zeros((), device=accelerator.device)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        for micro in range(self.micro_batches):
            batch = self.batch(micro)
            seed_device(mix(seed, state.update, "dropout", self.rank, micro), accelerator.device)
            with accelerator.accumulate(state.model):
                losses.append(self.task.loss(state.model, batch, self.random("task", micro)).mean())
                accelerator.backward(losses[-1])  # divided by micro_batches here, averaged over the processes by DDP
                if accelerator.sync_gradients:
                    norm = self.clip()
                state.optimizer.step()
                state.optimizer.zero_grad()
        with torch.no_grad():
            self.task.after_update(state.trained)
        state.update += 1
        state.ema.update(ema_keep(self.config, state.images_seen))
        return torch.stack([loss.detach() for loss in losses]).mean(), norm

    def batch(self, micro: int) -> Batch:
        """Micro-batch number `micro` of the next update, augmented."""
        stored, label = self.feed.get(self.state.update, micro)
        random = self.random("augment", micro)
        batch = self.task.prepare(Batch(self.images.pixel_format.to_unit(stored), label), random)
        return replace(batch, image=batch.image.contiguous(memory_format=self.state.memory_format))

    def random(self, stream: str, micro: int) -> GlobalRandom:
        """The random numbers of the next update, for this process's micro-batch number `micro`."""
        first = (self.rank * self.micro_batches + micro) * self.micro_batch
        part = slice(first, first + self.micro_batch)
        return GlobalRandom(
            self.config.seed, self.state.update, stream, self.config.batch, part, self.accelerator.device
        )

    def clip(self) -> Tensor:
        """The norm of the gradient, which is scaled down to `config.max_grad_norm` if it is longer."""
        weights = self.state.trainable
        if self.config.max_grad_norm is not None:
            return self.accelerator.clip_grad_norm_(weights, self.config.max_grad_norm)
        return nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])

    def due(self, interval_images: int) -> bool:
        """Whether the last update crossed a multiple of the interval, or ended the run."""
        seen, before = self.state.images_seen, self.state.images_seen - self.config.batch
        return seen // interval_images > before // interval_images or self.ended

    @property
    def ended(self) -> bool:
        """Whether all images of the run have been seen."""
        return self.state.images_seen >= self.config.images

    def facts(self) -> Facts:
        """What a checkpoint that is written now says of itself."""
        return Facts(
            images=self.state.images_seen,
            update=self.state.update,
            batch=self.config.batch,
            processes=self.accelerator.num_processes,
            data=self.images.fingerprint,
            config=self.folder.resolved,
        )

    def save(self, last: bool = False) -> bool:
        """Write a checkpoint and the model folder. The checkpoint counts from its renaming, which comes last.

        False if there is no room for it: that is said, what was there stays, and training goes on. Raises NoRoom if it
        is the first one, or the `last` one before this process ends.
        """
        state, folder, config = self.state, self.folder, self.config

        def write() -> Path:
            with room(folder.path, saved_bytes(state.trained, config.optimizer_slots), "a checkpoint and the model"):
                staged = checkpoint.stage(folder.checkpoints, state.tensors(), self.facts())
                files.replace_folder(folder.model, lambda new: self.task.save(state.ema.model, new))
                return staged

        def publish(staged: Path) -> None:
            with room(folder.path, 0, "a checkpoint"):
                checkpoint.publish(staged)
            checkpoint.prune(folder.checkpoints, config.keep_last, config.is_permanent)

        try:
            staged = on_main(write)  # and a barrier
            on_main(lambda: publish(staged))
        except NoRoom as error:
            on_main(lambda: checkpoint.clean(folder.checkpoints))
            if state.update == 0:
                raise
            if last or self.ended:
                raise NoRoom(f"what was trained last is not saved: {error}; the same command goes on") from None
            if self.accelerator.is_main_process:
                log.say(f"NOT SAVED after {state.images_seen:,} images: {error}; training goes on")
            self.log.write(state.images_seen, state.update, {}, saved=False)
            return False
        return True

    def evaluation_due(self) -> bool:
        """Whether an evaluation is due after the last update; the end of the run always is."""
        return self.ended or any(self.due(evaluation.every_images) for evaluation in self.task.evaluations)

    def evaluate(self) -> None:
        """Run the evaluations due on the averaged model, on every process, and log their numbers together.

        A stop cuts them short; then nothing is logged, and the resumed run repeats them.
        """
        state, folder, numbers, complete = self.state, self.folder.samples, dict[str, float](), True
        context = EvaluationContext(folder, state.images_seen, self.accelerator, self.stop.agreed)
        state.ema.share_buffers()
        for evaluation in self.task.evaluations:
            if not self.due(evaluation.every_images):
                continue
            try:
                with torch.no_grad():
                    found = evaluation.run(state.ema.model, context)
            except OSError as error:  # on the main process, which alone writes
                if not is_full(error):
                    raise
                found, complete = {}, False
                log.say(f"the disk is full: {folder} lacks the {evaluation.name} after {state.images_seen:,} images")
            self.accelerator.wait_for_everyone()
            if found is None:
                return
            numbers |= found
        if complete:
            self.log.write(state.images_seen, state.update, numbers, evaluated=True)
