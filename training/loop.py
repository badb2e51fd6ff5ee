"""A training run: `Step` repeated, with everything that needs a disk: resume, checkpoints, evaluations, log, signals.

Time is counted in images seen.
"""

import filecmp
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from residual.names import amount, shorten
from storage.read import is_regular
from storage.write import empty_folder, publish_folder, recover_folder, replace_folder, staging_folder
from training import checkpoint, log
from training.accelerator import show
from training.checkpoint import Checkpoint, CheckpointMetadata, describe_machine
from training.compile import explain_compile_error
from training.data import DataLost, ImageSet, StreamedImages
from training.disk_space import DiskFull, free_bytes, is_full, raise_disk_full, require_disk_space
from training.ema import average_name
from training.evaluator import Evaluator
from training.guard import Guard
from training.log import RunLog
from training.memory import checkpoint_bytes, explain_out_of_memory, model_bytes, saved_bytes
from training.meter import Meter
from training.peak import seconds_at_peak
from training.processes import gather, largest, on_main, shared_error
from training.profile import Profile
from training.run_facts import add_usage
from training.run_folder import RunFolder
from training.run_report import REPORT_FILE, next_command, write_report
from training.snapshots import kept_snapshots, write_snapshots
from training.state import restore, state_tensors, write_model
from training.step import Step, TrainingSettings
from training.stop import Stop
from training.task import Task
from training.units import show_size
from training.watchdog import watching
from training.yaml_file import flat

BUILDS_ON = "+"
"""between the fingerprints of images and of weights in `CheckpointMetadata.data`"""
RESUMES = "the same command resumes from the newest checkpoint"


def fit(
    task: Task[Any],
    images: ImageSet,
    settings: TrainingSettings,
    folder: RunFolder,
    accelerator: Accelerator,
    profiled: bool = False,
) -> bool:
    """Train `task.model` on `images` until `train.images` are seen; to be called on every process.

    True: the run is finished. False: it was asked to stop (see `Stop`), and its state is saved.

    `folder` is open: the run begins, resumes from the newest intact checkpoint, or is finished already.
    If `profiled`, the main process profiles some updates, see `Profile`.
    Raises ValueError if a checkpoint does not fit the model or the images, if memory runs out, and on every process if
    training diverges: see `train.max_skipped`.
    """
    if folder.status is None:
        raise ValueError(f"the run folder {folder.path} is not open; call folder.open(...) first")
    if folder.status == "finished":
        assert folder.resume_from is not None
        Loop(task, images, settings, folder, accelerator).check_finished(folder.resume_from)
        seen = f"{folder.path} has seen {folder.resume_from.images:,} images"
        show(accelerator, f"finished: {seen}; raise train.images to continue, or --fresh to start over")
        return True
    with explain_out_of_memory("the model", f"free some, or use a smaller model; {RESUMES}"):
        return Loop(task, images, settings, folder, accelerator, profiled).run()


class Loop:
    """One run: the arguments of `fit`, and the step that it repeats."""

    def __init__(
        self,
        task: Task[Any],
        images: ImageSet,
        settings: TrainingSettings,
        folder: RunFolder,
        accelerator: Accelerator,
        profiled: bool = False,
    ) -> None:
        self.task, self.images, self.folder, self.accelerator = task, images, folder, accelerator
        self.config, self.ema, self.optimizer_slots = settings.train, settings.ema, settings.optimizer.slots
        self.step, self.meter = Step(task, images, settings, accelerator), Meter(accelerator.device)
        self.images_per_second: float | None = None
        """in the last line of the log"""
        self.profiled = profiled and accelerator.is_main_process
        self.guard = Guard(self.step, self.config.max_skipped, folder.checkpoints)
        self.once = dict[str, float]()
        """numbers for the next line of the log only"""
        bf16 = accelerator.mixed_precision == "bf16"
        self.ideal_seconds = seconds_at_peak(self.step.ema.model, task, images.shape, accelerator.device, bf16)
        """for an image, at the peak of all devices; None if that is not known"""
        self.saved_images = -1
        """images seen when the newest checkpoint was written or restored"""
        self.known_bad = 0
        """unreadable images of a stream that all processes have found and exchanged"""
        self.spent = dict[str, float]()
        """seconds beside updates that RUN/usage.json does not have yet"""

    def show(self, line: str) -> None:
        show(self.accelerator, line)

    def run(self) -> bool:
        """From the state of the run folder to the end (True), or until asked to stop (False)."""
        folder, step = self.folder, self.step
        with closing(step), Stop() as self.stop:
            self.begin()
            seen = step.images_seen
            settings = dict(flat({**folder.resolved, "machine": self.metadata().machine}))
            self.log = RunLog(folder.log, folder.tensorboard, self.config, seen, self.accelerator, settings)
            with closing(self.log):
                self.evaluator = Evaluator(step, folder, self.log, self.stop)
                evaluated = not seen or on_main(lambda: log.evaluated(folder.log, seen))
                if not evaluated and self.evaluator.due:
                    self.evaluate()  # the run stopped between the checkpoint and its evaluation
                watched = watching(step.progress, self.config.hang_seconds, step.updates + 1)
                with watched, self.profiling() as after_update:
                    stopped = self.stop.agreed() or self.train(after_update)
                on_main(self.write_report)
        self.show(
            f"stopped by {stopped} after {step.images_seen:,} images, saved in {folder.path}; "
            "the same command resumes the run"
            if stopped
            else f"finished: {folder.path} has seen {step.images_seen:,} images; its model is in {folder.model}"
        )
        for line in on_main(lambda: log.failures(log.read(folder.log))):
            self.show(f"NOT MEASURED: {line}")
        if stopped is None and (command := next_command(dict(flat(folder.resolved)), folder.path)):
            self.show(f"next: {command}")
        return stopped is None

    def begin(self) -> None:
        """Restore the newest checkpoint; or, for a new run, write one before the first update and verify it.

        Raises DiskFull if there is not enough disk space for what the run writes next.
        """
        resume_from, path, took = self.folder.resume_from, self.folder.path, ""
        model, slots, averages = self.step.trained, self.optimizer_slots, len(self.ema.names)
        if resume_from is None:
            needed = saved_bytes(model, slots, checkpoints=2, averages=averages)
            what = "two checkpoints and the model"
            if self.task.leading is not None:
                needed, what = needed + model_bytes(model), "two checkpoints, the model and the best model"
            on_main(lambda: require_disk_space(path, needed, what))
            began = time.perf_counter()
            self.save()
            took = f"; the first took {time.perf_counter() - began:.1f} s"
            if problem := on_main(lambda: checkpoint.verify(checkpoint.list_folders(self.folder.checkpoints)[0])):
                raise OSError(f"{self.folder.checkpoints}: the first checkpoint cannot be read back: {problem}")
        else:
            needed = saved_bytes(model, slots, averages=averages)
            on_main(lambda: require_disk_space(path, needed, "a checkpoint and the model"))
            self.restore(resume_from)
            self.check_model()
        size, free = show_size(checkpoint_bytes(model, slots, averages)), show_size(on_main(lambda: free_bytes(path)))
        kept = checkpoint.kept_checkpoints(self.config)
        self.show(f"checkpoints: {size} each, {kept}{took}; {free} are free")
        if self.ema.power_widths:
            self.show(f"snapshots: {kept_snapshots(self.ema, self.config, model)}")

    @property
    def data(self) -> str:
        """The fingerprint of the images, and of the weights that the task builds on."""
        foundation = self.task.foundation
        return f"{self.images.fingerprint}{BUILDS_ON}{foundation}" if foundation else self.images.fingerprint

    def load(self, saved: Checkpoint) -> None:
        """Set the step to a checkpoint, and write config.yaml. Raises ValueError if it does not fit images or model."""
        path = self.folder.path
        found, now = (data.partition(BUILDS_ON) for data in (saved.data, self.data))
        for what, before, after in (("images", found[0], now[0]), ("weights", found[2], now[2])):
            if before != after:
                on = "on other images" if what == "images" else "with other weights of the model that it builds on"
                raise ValueError(
                    f"{path} was trained {on} (fingerprint {before[:12]}, now {after[:12]}); give the same {what}, "
                    "another --run, or --fresh to start over"
                )
        try:
            restore(self.step, saved.update, lambda: checkpoint.read_tensors(saved))
        except ValueError as error:
            way_out = "give the model that was trained, or --fresh to start over"
            raise ValueError(f"{saved.folder}: {error}; {way_out}") from None
        on_main(self.folder.record)

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint, and print what has changed since it was written."""
        self.load(saved)
        self.meter.restore(saved.unlogged_updates, saved.unlogged_sums, self.accelerator)
        self.saved_images = saved.images
        self.guard.skipped, self.guard.went_back = saved.skipped_in_a_row, saved.went_back
        self.show(f"resuming {self.folder.path} from {saved.images:,} images (update {saved.update:,})")
        for line in checkpoint.changes(saved, self.metadata()):
            self.show(line)

    def check_finished(self, last: Checkpoint) -> None:
        """Write the model folder of a finished run again if it is missing or damaged; needs its `last` checkpoint."""
        with closing(self.step):
            self.load(last)
            self.check_model()

    def check_model(self) -> None:
        """Write the model folder again, with a message, if its files are not those of the restored checkpoint."""
        model, images = self.folder.model, self.step.images_seen

        def write() -> None:
            new = empty_folder(staging_folder(model))
            try:
                write_model(self.step, new)
                names = [path.relative_to(new) for path in sorted(new.rglob("*")) if path.is_file()]
                differ = [str(name) for name in names if not _same(new / name, model / name)]
                if differ or model.is_symlink():
                    publish_folder(model)
                    what = shorten(differ, 3) or "a link"
                    log.print_line(
                        f"{model} was not that after {images:,} images ({what}); restored from the checkpoint"
                    )
            finally:
                recover_folder(model)

        try:
            on_main(write)
        except Exception as error:  # safetensors has an error of its own
            if not is_full(error):
                raise
            self.show(f"the disk is full: {model} was not compared with the checkpoint")

    @contextmanager
    def profiling(self) -> Iterator[Callable[[], None]]:
        """A function to call after each update: it profiles some of them, or does nothing."""
        if not self.profiled:
            yield lambda: None
            return
        trace = self.folder.path / "profile" / "trace.json"
        with closing(Profile(trace, self.accelerator.device, log.print_line)) as profile:
            yield profile.step

    def train(self, after_update: Callable[[], None] = lambda: None) -> str | None:
        """Updates until the end, and after each what is due. If asked to stop, saves and returns the reason."""
        config, step, meter = self.config, self.step, self.meter
        meter.restart_clock(step.reader.waited_seconds)
        is_cold = config.compile != "off"
        while not step.ended:
            began = time.perf_counter()
            way_out = f"give train.micro_batch={step.smaller}; {RESUMES}" if step.smaller else "use a smaller model"
            with (
                explain_out_of_memory(f"an update with {amount(step.micro_batch, 'image')} in a forward pass", way_out),
                explain_compile_error(*config.compile_option),
                self.saved_if_lost(),
            ):
                result = step.update()
            step.progress.now = "between", step.updates, 0
            after_update()
            self.guard.check(result, self.log)
            meter.add(result)
            if is_cold:
                self.once["first_update_seconds"] = took = time.perf_counter() - began
                self.show(f"train.compile={config.compile}: the first update, with compilation, took {took:.1f} s")
                meter.restart_clock(step.reader.waited_seconds)
                is_cold = False
            self.log.advance(config.batch)
            stopped = self.stop.agreed()
            write, save = step.due(config.log_every_images), step.due(config.checkpoint_every_images)
            evaluate, snapshot = self.evaluator.due, self.snapshot_due()
            if self.guard.skipped and not step.ended:
                save = evaluate = snapshot = False  # of weights that may be why it was skipped
            if write:
                numbers = {**meter.means(self.accelerator), "learning_rate": result.learning_rate}
                numbers |= meter.speed(config.batch, step.reader.waited_seconds) | self.once
                self.once.clear()
                self.images_per_second = numbers.get("images_per_second")
                if self.ideal_seconds is not None and self.images_per_second is not None:
                    numbers["mfu"] = self.images_per_second * self.ideal_seconds / self.accelerator.num_processes
                self.log.write(step.images_seen, step.updates, numbers)
                meter.restart(step.reader.waited_seconds)
            with meter.pause():
                if snapshot:
                    self.write_snapshots()  # before the checkpoint: a resumed run has all that are due until then
                with self.timed("checkpoints"):
                    saved = bool(save or stopped) and self.save(last=bool(stopped))
                if evaluate and not stopped:
                    stopped = self.evaluate()
            if stopped:
                if not saved:
                    self.save(last=True)
                return stopped
            self.check_data()
        return None

    @contextmanager
    def saved_if_lost(self) -> Iterator[None]:
        """Saves before it raises DataLost of an update that could not be computed. Several processes save before, see
        `check_data`; a loss in the middle of an update of theirs leaves the newest checkpoint as it is."""
        try:
            yield
        except DataLost as error:
            if self.accelerator.num_processes > 1:
                raise
            raise self.lost(error) from None

    def check_data(self) -> None:
        """On several processes, waits for the images of the next update. If one of them has lost a file, or all of them
        together have found more than `data.max_bad` unreadable images, all save and raise DataLost."""
        if self.accelerator.num_processes == 1 or self.step.ended:
            return
        mine = self.step.reader.lost(self.step.updates)
        bad = self.images.bad_numbers if isinstance(self.images, StreamedImages) else {}
        news = largest(2 if mine is not None else int(len(bad) > self.known_bad))
        if news == 1 and isinstance(self.images, StreamedImages):
            exchanged = {number: reason for found in gather([bad]) for number, reason in found.items()}
            self.known_bad = len(exchanged)  # reading ahead may have found more meanwhile
            try:
                self.images.add_bad(exchanged)
            except DataLost as error:
                mine = error
        if news and (lost := shared_error(mine)):
            raise self.lost(lost)

    def lost(self, error: Exception) -> DataLost:
        """The error to raise for a data set that cannot be read on, after a checkpoint of the updates so far; called on
        every process."""
        if self.step.images_seen > self.saved_images:
            self.save(last=True)
        return DataLost(f"{error} (saved after {self.step.images_seen:,} images)")

    def metadata(self) -> CheckpointMetadata:
        """The metadata of a checkpoint that is written now; to be called on every process."""
        return CheckpointMetadata(
            images=self.step.images_seen,
            update=self.step.updates,
            batch=self.config.batch,
            micro_batch=self.config.micro_batch,
            processes=self.accelerator.num_processes,
            data=self.data,
            config=self.folder.resolved,
            machine=describe_machine(self.accelerator.device),
            unlogged_updates=self.meter.updates,
            unlogged_sums=self.meter.sums(self.accelerator),
            skipped_in_a_row=self.guard.skipped,
            went_back=self.guard.went_back,
        )

    def save(self, last: bool = False) -> bool:
        """Write a checkpoint and the model folder. The checkpoint becomes valid by its renaming, which comes last.

        False if the disk is full: a message is printed, earlier checkpoints stay, and training continues. Raises
        DiskFull for the first checkpoint, and for the `last` one before this process ends.
        """
        step, folder = self.step, self.folder
        needed = saved_bytes(step.trained, self.optimizer_slots, averages=len(self.ema.names))
        what = "a checkpoint and the model"
        metadata = self.metadata()

        def write() -> None:
            with raise_disk_full(folder.path, needed, what):
                staged = checkpoint.stage(folder.checkpoints, state_tensors(step), metadata)
                replace_folder(folder.model, partial(write_model, step))
                checkpoint.publish(staged)
            checkpoint.prune(folder.checkpoints, self.config.keep_last, self.config.is_permanent)

        try:
            on_main(write)
        except DiskFull as error:
            on_main(lambda: checkpoint.clean(folder.checkpoints))
            if step.updates == 0:
                raise
            if last or step.ended:
                raise DiskFull(f"the last updates are not saved: {error}; the same command resumes the run") from None
            if self.accelerator.is_main_process:
                log.print_line(f"NOT SAVED after {step.images_seen:,} images: {error}; training continues")
            self.log.write(step.images_seen, step.updates, {}, saved=False)
            return False
        self.saved_images = step.images_seen
        return True

    def snapshot_due(self) -> bool:
        """Whether snapshots are due after the last update; the end of the run always has them."""
        return bool(self.ema.power_widths) and self.step.due(self.ema.snapshot_every_images)

    def write_snapshots(self) -> None:
        """Write the power-function averages into the run folder. On a full disk a message is printed, and no more."""
        step, folder = self.step, self.folder
        averages = {width: step.averages[average_name(width)].model.state_dict() for width in self.ema.power_widths}

        def write() -> None:
            with raise_disk_full(folder.path, len(averages) * model_bytes(step.trained), "the snapshots"):
                write_snapshots(folder.snapshots, step.images_seen, averages)

        try:
            on_main(write)
        except DiskFull as error:
            self.show(f"NO SNAPSHOTS after {step.images_seen:,} images: {error}; training continues")

    def evaluate(self) -> str | None:
        """Run the evaluations due, and show them on the page; the reason to stop, if there is one."""
        with self.timed("evaluations"):
            self.evaluator.run(self.images_per_second)
        stopped = self.stop.agreed()
        if not stopped and not self.step.ended:  # else the page is written at the end
            on_main(self.write_report)
        return stopped

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Counts the seconds of the block as spent on `what`."""
        began = time.perf_counter()
        yield
        self.spent[what] = self.spent.get(what, 0.0) + time.perf_counter() - began

    def write_report(self) -> None:
        """Write RUN/report.html and what it needs besides the log. An error is a message: training goes on."""
        device = self.accelerator.device
        try:
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
            add_usage(self.folder.path, self.spent, checkpoint.describe_machine(device), peak)
            self.spent.clear()
            write_report(self.folder.path, self.task.figures)
        except Exception as error:
            reason = "the disk is full" if is_full(error) else f"{type(error).__name__}: {error}"
            log.print_line(f"{self.folder.path / REPORT_FILE} is not written: {reason}")


def _same(new: Path, old: Path) -> bool:
    """Whether both are regular files with the same content."""
    return is_regular(old) and filecmp.cmp(new, old, shallow=False)
