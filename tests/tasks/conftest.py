"""Small nets that have really learned some digits: equalities of samplers mean nothing on random weights."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from diffusion import DDPM
from tasks.diffusion import DiffusionRun
from tests.tasks.small import digits, small_run, train
from training.data import Images


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a net that draws the digit of its label."""
    return trained(tmp_path_factory, "conditional", small_run(), digits())


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a net without labels, with another prediction and schedule."""
    objective = DDPM(prediction="v", schedule="cosine", variance="fixed_small")
    return trained(tmp_path_factory, "unconditional", small_run(objective=objective), digits(labels=False))


def trained(factory: pytest.TempPathFactory, name: str, run: DiffusionRun, images: Images) -> Path:
    """A model folder for all processes of pytest-xdist, trained by the first of them that needs it."""
    home = factory.getbasetemp()
    folder = (home.parent if "PYTEST_XDIST_WORKER" in os.environ else home) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            task, staged = train(run, images, 150), factory.mktemp(name)
            task.save(task.model, staged)
            staged.rename(folder)
    return folder
