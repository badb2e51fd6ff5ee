"""A small task for the tests of the loop: a convolutional net that predicts the noise in an image."""

import hashlib
import os
import signal
from collections.abc import Container, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from residual import NormAct
from tasks.augment import random_flip
from training.accelerator import make_accelerator
from training.config import TrainConfig
from training.data import Images
from training.ema import EmaConfig
from training.loop import Loop, fit
from training.optimizer import OPTIMIZERS
from training.random import GlobalRandom, seeded
from training.run_folder import RunFolder
from training.schedule import SCHEDULES
from training.settings import plain
from training.step import TrainingSettings
from training.task import Batch, Evaluation, EvaluationContext, Task

BATCH = 8

os.environ.setdefault("ACCELERATE_USE_CPU", "1")  # the tests compare bits


class Net(nn.Module):
    def __init__(self, dropout: float, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = NormAct(channels, groups=2, act=None)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(channels, 1, 3, padding=1)
        self.label = nn.Embedding(3, channels)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        h = self.norm(self.first(x)) + self.label(label)[:, :, None, None]
        return self.last(self.dropout(nn.functional.silu(h)))


class ToyTask(Task[Batch]):
    """Counts the calls of the loop. Attributes let a test ruin a loss, an evaluation, or raise a signal."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, channels: int = 8, flip: bool = True) -> None:
        self.flip = flip
        with seeded(seed, "model"):
            super().__init__(Net(dropout, channels))
        self.evaluated: list[int] = []
        self.finished: bool | None = None
        self.saved = 0
        self.batches: list[Batch] = []
        self.seen: set[tuple[int, int]] = set()
        self.spoil_at: Container[int] = ()
        """updates of this task whose losses are not finite"""
        self.fail_evaluation = False
        self.signal_at: tuple[int, int] = (-1, 0)
        """(update, signal): the signal comes during this update"""
        self.signal_in_evaluation: tuple[int, int] = (-1, 0)
        """(images seen, signal)"""

    def prepare(self, batch: Batch, random: GlobalRandom) -> Batch:
        return replace(batch, image=random_flip(batch.image, random)) if self.flip else batch

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Tensor:
        if (which := (random.update, random.rows.start)) not in self.seen:  # a repeated update counts once
            self.seen.add(which)
            self.batches.append(batch)
            self.raise_at(self.signal_at, len(self.batches))
        noise = random.normal(*batch.image.shape[1:])
        level = random.uniform()[:, None, None, None]
        assert batch.label is not None
        losses = (model(batch.image + level * noise, batch.label) - noise).square().mean(dim=(1, 2, 3))
        return losses * float("nan") if len(self.batches) in self.spoil_at else losses

    def raise_at(self, when: tuple[int, int], now: int) -> None:
        if now == when[0]:
            signal.raise_signal(signal.Signals(when[1]))

    def save(self, model: nn.Module, folder: Path) -> None:
        self.saved += 1
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
        )

    def example(self, image: Tensor) -> tuple[Tensor, ...]:
        return image, torch.zeros(len(image), dtype=torch.int64, device=image.device)


class Tight(ToyTask):
    """From update `first` on, the last images of a batch need memory for at most `limit` of them in a forward pass."""

    def __init__(self, limit: int, first: int = 0, **options: float) -> None:
        super().__init__(**options)
        self.limit, self.first = limit, first

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Tensor:
        losses = super().loss(model, batch, random)
        if random.update >= self.first and len(losses) > self.limit and random.rows.stop == BATCH:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return losses


@dataclass
class ToyEvaluation(Evaluation):
    """Writes a file, and returns the sum of a weight."""

    task: ToyTask
    every_images: int
    name: ClassVar[str] = "sum"

    def run(self, model: nn.Module, context: EvaluationContext) -> Mapping[str, float] | None:
        assert not model.training
        self.task.raise_at(self.task.signal_in_evaluation, context.images_seen)
        if context.interrupted():
            return None
        if self.task.fail_evaluation:
            raise RuntimeError("a broken evaluation")
        self.task.evaluated.append(context.images_seen)
        if context.accelerator.is_main_process:
            (context.folder / f"{context.images_seen}.txt").write_text("seen")
        return {"average": model.first.weight.double().sum().item()}  # type: ignore[union-attr]


def images(seed: int = 0) -> Images:
    return Images(np.random.default_rng(seed).integers(0, 256, (24, 1, 8, 8), np.uint8), np.arange(24) % 3)


def config(**changes: object) -> TrainingSettings:
    """Ten updates in float32, each logged, one checkpoint at the end.

    `changes` are fields of any section (no two share a name), and `optimizer` and `schedule`, the kinds.
    """
    values: dict = {
        "images": 10 * BATCH,
        "batch": BATCH,
        "learning_rate": 1e-2,
        "warmup_images": 0,
        "log_every_images": BATCH,
        "checkpoint_every_images": 10**9,
        "eval_every_images": 10**9,
        "precision": "float32",
        "trackers": (),
    } | changes
    classes = {
        "train": TrainConfig,
        "optimizer": OPTIMIZERS[values.pop("optimizer", "adamw")],
        "schedule": SCHEDULES[values.pop("schedule", "constant")],
        "ema": EmaConfig,
    }
    sections = {
        name: cls(**{field.name: values.pop(field.name) for field in fields(cls) if field.name in values})
        for name, cls in classes.items()
    }
    assert not values, f"no section has {', '.join(values)}"
    return TrainingSettings(**sections)


def accelerator(settings: TrainingSettings) -> Accelerator:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return make_accelerator(settings.train)


def resolved(settings: TrainingSettings, **other: object) -> dict:
    return {"task": "toy", **plain(settings), **other}


def train(path: Path, task: ToyTask | None = None, pictures: Images | None = None, **changes: object) -> ToyTask:
    """What a script does: the same call starts, resumes, or finds the run finished.

    `task.finished` is what `fit` returns.
    """
    settings = config(**changes)
    task = task or ToyTask(seed=settings.train.seed)
    task.evaluations = (ToyEvaluation(task, settings.train.eval_every_images),)
    engine = accelerator(settings)
    folder = RunFolder(path)
    with closing(folder):
        folder.open(settings, resolved(settings))
        task.finished = fit(task, pictures or images(), settings, folder, engine)
    return task


def loop(path: Path, task: ToyTask, **changes: object) -> Loop:
    settings = config(**changes)
    engine = accelerator(settings)
    folder = RunFolder(path)
    folder.open(settings, resolved(settings))
    return Loop(task, images(), settings, folder, engine)


def newest(path: Path) -> Path:
    return max((path / "checkpoints").glob("[0-9]*"))


def tensors(path: Path, file: str = "model") -> dict[str, Tensor]:
    return load_file(newest(path) / f"{file}.safetensors")


def hashes(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in newest(path).glob("*.safetensors")}
