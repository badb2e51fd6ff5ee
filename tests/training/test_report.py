"""The report of the dry run, against numbers counted by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.toy import config as settings_with
from training.data import Images
from training.memory import model_bytes
from training.report import activation_bytes, rate_points, report
from training.step import TrainingSettings
from training.task import Batch, Task

FLOAT = 4
IMAGES = Images(np.zeros((400, 3, 1, 1), np.uint8))


def net() -> nn.Module:
    """Two layers on vectors, with a buffer of 5 numbers that is stored and one of 7 that is not."""
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    model.register_buffer("stored", torch.zeros(5))
    model.register_buffer("scratch", torch.zeros(7), persistent=False)
    return model


class Vectors(Task[Batch]):
    """The part of a task that the report uses."""

    def __init__(self) -> None:
        super().__init__(net())

    def loss(self, model: nn.Module, batch: Batch, random: Any) -> Tensor:
        raise NotImplementedError

    def example(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image.flatten(1),)


def test_activations_are_what_autograd_keeps_each_counted_once():
    # the input of the first layer, and the output of the ReLU, which the last layer and the ReLU itself both keep
    for batch in (1, 6):
        assert activation_bytes(net(), torch.zeros(batch, 3)) == batch * (3 + 8) * FLOAT


def test_activations_leave_the_model_alone():
    model = net().eval()
    activation_bytes(model, torch.zeros(1, 3))
    assert not model.training
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}
    assert all(weight.grad is None for weight in model.parameters())


def test_dropout_counts_although_the_model_is_in_eval_mode():
    plain, dropping = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    assert activation_bytes(dropping, torch.zeros(1, 4)) > activation_bytes(plain, torch.zeros(1, 4))


def test_stored_bytes():
    assert model_bytes(net()) == (3 * 8 + 8 * 2 + 5) * FLOAT


def lines(config: TrainingSettings, processes: int = 1) -> dict[str, str]:
    text = report({"task": "toy", "train": {"betas": [0.9, 0.99]}}, Vectors(), config, IMAGES, processes=processes)
    assert text.startswith("task: toy\ntrain:\n  betas: [0.9, 0.99]\n")
    assert max(map(len, text.splitlines())) <= 80
    return {line[:24].strip(): line[24:] for line in text.splitlines()}


def test_the_report_counts_parameters_memory_and_updates():
    rows = lines(settings_with(images=1000, batch=8, warmup_images=80, keep_last=3))
    assert rows["parameters"] == "40"
    assert rows["multiply-adds"] == "40 per image, forward"
    assert rows["model and optimizer"].startswith("840 bytes (")  # 40 numbers x 5, and the buffer twice
    assert rows["activations"] == "352 bytes in float32 (8 x 44 bytes)"
    assert rows["memory, estimated"] == "1.19 kB on each process, of it"
    assert rows["checkpoint"] == "680 bytes on disk, 3 are kept"
    assert rows["updates"] == "125 of 8 images"
    assert rows["length"] == "1,000 images: each of the 400 about 2.5 times"


def test_memory_is_that_of_one_process_and_one_pass():
    rows = lines(settings_with(images=200_000, batch=64, micro_batch=8), processes=2)
    assert rows["activations"] == "352 bytes in float32 (8 x 44 bytes)"
    assert rows["updates"] == "3,125 of 2 processes x 4 passes x 8 images"
    with pytest.raises(ValueError, match="cannot be shared by 3 processes"):
        lines(settings_with(batch=64), processes=3)


def test_the_table_of_learning_rates_is_the_schedule():
    config = settings_with(images=10_000, batch=100, warmup_images=1000, learning_rate=0.5, schedule="linear")
    text = report({}, Vectors(), config, IMAGES.part(np.arange(1)))
    table = [line.split() for line in text.partition("learning rate\n")[2].splitlines()]
    assert len(table) == 11
    for seen, rate in table:
        assert float(rate) == pytest.approx(config.learning_rate(int(seen.replace(",", ""))), rel=1e-3)
    assert ["1,000", "5.000e-01"] in table


@pytest.mark.parametrize("warmup", [0, 64, 1000, 10_000])
@pytest.mark.parametrize("images", [1, 64, 1000, 5000])
def test_rates_are_shown_before_updates_that_happen(images: int, warmup: int):
    config = settings_with(images=images, batch=64, warmup_images=warmup)
    points = rate_points(config)
    assert points[0] == 0
    assert points[-1] == (config.train.updates - 1) * 64
    assert all(point % 64 == 0 for point in points)
    assert 1 <= len(points) <= 11
    if warmup < points[-1]:
        assert -(-warmup // 64) * 64 in points
