"""Small nets that have really learned some digits: equalities of samplers mean nothing on random weights."""

from pathlib import Path

import pytest

from diffusion import DDPM
from tests.tasks.small import digits, small_run, train


@pytest.fixture(scope="session")
def conditional(tmp_path_factory) -> Path:
    """The model folder of a net that draws the digit of its label."""
    folder = tmp_path_factory.mktemp("conditional")
    task = train(small_run(), digits(), 150)
    task.save(task.model, folder)
    return folder


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory) -> Path:
    """The model folder of a net without labels, with another prediction and schedule."""
    folder = tmp_path_factory.mktemp("unconditional")
    objective = DDPM(prediction="v", schedule="cosine", variance="fixed_small")
    task = train(small_run(objective=objective), digits(labels=False), 150)
    task.save(task.model, folder)
    return folder
