"""The report of the dry run, against numbers counted by hand."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.toy import ToyEvaluation, ToyTask, accelerator, config, images
from training.data import Images
from training.memory import activation_bytes, model_bytes
from training.report import Outlook, rate_points, report
from training.step import TrainingSettings
from training.task import Batch, Task

FLOAT = 4
CPU = torch.device("cpu")
IMAGES = Images(np.zeros((400, 3, 1, 1), np.uint8))


def settings_with(**changes: object) -> TrainingSettings:
    """Settings with a checkpoint within the run."""
    return config(**{"checkpoint_every_images": 100} | changes)


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
    outlook = Outlook(Vectors(), config, IMAGES, CPU, processes)
    text = report({"task": "toy", "train": {"betas": [0.9, 0.99]}}, outlook)
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


def test_the_report_counts_averages_and_snapshots():
    config = settings_with(images=1000, batch=8, power_widths=(0.05, 0.1), snapshot_every_images=300)
    rows = lines(config)
    assert rows["model and optimizer"].startswith("1.2 kB (")  # two averages more, of 40 numbers and the buffer
    assert rows["checkpoint"] == "1.04 kB on disk, 2 are kept"
    assert rows["snapshots"] == "360 bytes each time, 4 times: 1.44 kB in all"


def test_memory_is_that_of_one_process_and_one_pass():
    rows = lines(settings_with(images=200_000, batch=64, micro_batch=8), processes=2)
    assert rows["activations"] == "352 bytes in float32 (8 x 44 bytes)"
    assert rows["updates"] == "3,125 of 2 processes x 4 passes x 8 images"
    with pytest.raises(ValueError, match="cannot be shared by 3 processes"):
        lines(settings_with(batch=64), processes=3)


def test_the_table_of_learning_rates_is_the_schedule():
    config = settings_with(images=10_000, batch=100, warmup_images=1000, learning_rate=0.5, schedule="linear")
    text = report({}, Outlook(Vectors(), config, IMAGES.part(np.arange(1)), CPU))
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


def test_a_run_that_fits_has_no_warning():
    assert (
        Outlook(
            Vectors(), settings_with(images=4_000_000, batch=8, checkpoint_every_images=4_000_000), IMAGES, CPU
        ).warnings()
        == []
    )


def test_a_checkpoint_that_is_never_due_before_the_end():
    settings = settings_with(images=4_000, batch=8, max_skipped=7, checkpoint_every_images=10**9)
    (line,) = Outlook(Vectors(), settings, IMAGES, CPU).warnings()
    assert re.search(r"checkpoint_every_images=1,000,000,000 .*max_skipped=7 .*train\.images=4,000", line)


@pytest.mark.parametrize(
    ("available", "way_out"),
    [
        (840 + 44 * 8, None),
        (840 + 44 * 8 - 1, "train.micro_batch=4"),
        (840 + 44, "train.micro_batch=1"),
        (840, "model"),
    ],
)
def test_memory_is_compared_with_the_machine(available: int, way_out: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.report.total_bytes", lambda device: available)
    found = Outlook(Vectors(), settings_with(batch=8), IMAGES, CPU).warnings()
    assert len(found) == (way_out is not None)
    for line in found:
        assert re.search(rf"1\.19 kB.* cpu has .*{way_out}$", line)


def test_a_length_that_is_absurd_for_the_images():
    outlook = Outlook(
        Vectors(),
        settings_with(images=20_000_000, batch=8, checkpoint_every_images=100),
        IMAGES.part(np.arange(60)),
        CPU,
    )
    (line,) = outlook.warnings()
    assert re.search(r"60 images .*333,333 times .*train\.images=20,000,000.*train\.images=60,000", line)
    assert report({}, outlook).endswith(line)


def test_a_network_that_the_meta_device_cannot_compute_is_not_an_error():
    task = Vectors()
    task.model.append(Stubborn())
    assert Outlook(task, settings_with(), IMAGES, CPU).warnings() == []


class Stubborn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


def test_a_batch_norm_with_one_image_is_refused():
    task = Vectors()
    task.model.insert(1, nn.BatchNorm1d(8))
    assert Outlook(task, settings_with(batch=2), IMAGES, CPU).image_bytes > 0
    for changes, processes in (({"batch": 1}, 1), ({"batch": 8, "micro_batch": 1}, 2), ({"batch": 2}, 2)):
        given = rf"train\.batch={changes['batch']}, .*{processes} processes.*2 or more"
        with pytest.raises(ValueError, match=rf"batch norm.*{given}"):
            Outlook(task, settings_with(**changes), IMAGES, CPU, processes).warnings()


def test_the_time_of_a_run_is_that_of_an_update(monkeypatch: pytest.MonkeyPatch):
    clock = iter([100.0, 100.5])
    monkeypatch.setattr("training.report.time.perf_counter", lambda: next(clock))
    settings = settings_with(images=8 * 7200, batch=8, micro_batch=4)
    outlook = Outlook(ToyTask(), settings, images(), CPU)
    with monkeypatch.context() as patch:
        patch.setattr("training.report.Step.update", lambda step: SimpleNamespace(loss=torch.zeros(())))
        found, evaluations = outlook.measure(accelerator(settings), Path())
    assert (found, evaluations) == ("2:00:00 at 8 images/s (4 in a pass)", [])


def test_an_evaluation_that_does_not_fit_into_memory_is_named(monkeypatch: pytest.MonkeyPatch):
    def plan(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ToyEvaluation, "plan", plan)
    task, settings = ToyTask(), settings_with()
    task.evaluations = (ToyEvaluation(task, 40),)
    with pytest.raises(ValueError, match=r"sum.*memory.*images"):
        Outlook(task, settings, images(), CPU).measure(accelerator(settings), Path("run"))


def test_the_report_has_what_evaluations_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def plan(evaluation: ToyEvaluation, model: nn.Module, folder: Path, record: bool = True) -> tuple[str, float]:
        assert not model.training
        assert not record
        return f"what is in {folder}", 3.0

    monkeypatch.setattr(ToyEvaluation, "plan", plan)
    task, settings = ToyTask(), settings_with()
    task.evaluations = (ToyEvaluation(task, 40),)
    outlook = Outlook(task, settings, images(), CPU)
    text = report({}, outlook, *outlook.measure(accelerator(settings), Path("run")))
    assert re.search(r"^sum: what is in run takes about 3\.0 s, \d+ % of the run$", text, re.M)
