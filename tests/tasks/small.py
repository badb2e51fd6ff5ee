"""A small run on the digits, for the tests of tasks and scripts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from sklearn.datasets import load_digits

from tasks.denoising import DiffusionTask
from tasks.diffusion import DiffusionRun
from tasks.grid_evaluation import SampleConfig
from training.data import Images
from training.random import GlobalRandom
from training.run import Run
from training.task import Batch, Task
from unet import UNetConfig

ROOT = Path(__file__).parents[2]
T = TypeVar("T", bound=Task)
SMALL = UNetConfig(
    base_channels=16, channel_multipliers=(1, 2), attention_levels=(1,), blocks_per_level=1, groups=8, size=(8, 8)
)
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits(labels: bool = True) -> Images:
    """The embedded digits as the data package hands them over."""
    found = load_digits()
    pixels = np.round(found.images / 16 * 255).astype(np.uint8)[:, None]
    return Images(pixels, found.target if labels else None, CLASSES if labels else None)


def train(run: Run[T], images: Images, updates: int) -> T:
    """A plain training on the CPU."""
    task = run.build(images)
    optimizer = torch.optim.AdamW(task.model.parameters(), 3e-3)
    for update in range(updates):
        chosen = np.random.default_rng(update).choice(len(images), 32)
        image = images.pixel_format.to_unit(torch.from_numpy(images.read(chosen)))
        label = None if images.labels is None else torch.from_numpy(images.labels[chosen])
        random = GlobalRandom(0, update, "task", 32, slice(0, 32), "cpu")
        batch = task.prepare(Batch(image, label), random)
        task.loss(task.model.train(), batch, random).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    task.model.eval()
    return task


def small_run(**fields) -> DiffusionRun:
    return DiffusionRun(**{"model": SMALL, "sample": SampleConfig(num=13, steps=5), **fields})


def shaken(task: DiffusionTask) -> DiffusionTask:
    """The task with other weights than the initial ones, with which every output is zero."""
    generator = torch.Generator().manual_seed(0)
    for weight in task.model.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return task


def sample_on_two_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    """sample.py on two processes of the CPU."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--",
         str(ROOT / "sample.py"), *map(str, arguments)],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
