"""Ranges of the training settings, and batches shared by ranks."""

import re

import pytest

from training.config import TrainConfig
from training.ema import EmaConfig
from training.optimizer import SGD, AdamW, Muon
from training.schedule import Constant, InverseSqrt, Step


@pytest.mark.parametrize(
    ("cls", "name", "value", "way_out"),
    [
        (TrainConfig, "images", 0, "1"),
        (TrainConfig, "images", 10**16, "1 to 1,000,000,000,000,000"),
        (TrainConfig, "batch", 0, "1 to 16,777,216"),
        (TrainConfig, "batch", 10**40, "1 to 16,777,216"),
        (TrainConfig, "log_every_images", 0, "1"),
        (TrainConfig, "eval_every_images", -1, "1"),
        (TrainConfig, "checkpoint_every_images", 0, "1"),
        (TrainConfig, "seed", -1, "2^64"),
        (TrainConfig, "seed", 2**64, "2^64"),
        (TrainConfig, "micro_batch", 0, "null"),
        (TrainConfig, "keep_last", 1, "2"),
        (TrainConfig, "keep_every_images", 75_000, "train.checkpoint_every_images=50000"),
        (TrainConfig, "keep_every_images", 250_000, "train.images=200000"),
        (TrainConfig, "keep_every_images", 0, "train.checkpoint_every_images=50000"),
        (EmaConfig, "halflife_images", 0, "null"),
        (EmaConfig, "rampup", 0.0, "null"),
        (AdamW, "weight_decay", -0.1, "0"),
        (AdamW, "learning_rate", 0.0, "0"),
        (SGD, "learning_rate", float("nan"), "0"),
        (AdamW, "learning_rate", float("inf"), "0"),
        (AdamW, "learning_rate", 1e300, "1000"),
        (SGD, "weight_decay", 1e300, "1000"),
        (AdamW, "weight_decay", float("inf"), "0"),
        (AdamW, "betas", (float("nan"), 0.9), "[0, 1)"),
        (AdamW, "max_grad_norm", float("inf"), "null"),
        (EmaConfig, "rampup", float("inf"), "null"),
        (EmaConfig, "rampup", float("nan"), "null"),
        (AdamW, "betas", (0.9, 1.0), "[0, 1)"),
        (SGD, "max_grad_norm", 0.0, "null"),
        (SGD, "momentum", 1.0, "1"),
        (Muon, "momentum", 1.0, "1"),
        (TrainConfig, "cuda_graphs", True, "train.compile=full"),
        (Constant, "warmup_images", -1, "0"),
        (Step, "milestones_images", (), "1"),
        (Step, "milestones_images", (9, 5), "larger"),
        (Step, "milestones_images", (5, 5), "larger"),
        (Step, "milestones_images", (0, 5), "1"),
        (InverseSqrt, "constant_images", 0, "1"),
    ],
)
def test_out_of_range(cls, name, value, way_out):
    with pytest.raises(ValueError, match=rf"\b{name}={re.escape(str(value))} .*{re.escape(way_out)}"):
        cls(**{name: value})


def test_what_depends_on_another_field():
    with pytest.raises(ValueError, match=r"nesterov=True .*momentum"):
        SGD(nesterov=True, momentum=0.0)
    with pytest.raises(ValueError, match=r"factor=1\.0 .*1"):
        Step(milestones_images=(5,), factor=1.0)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "processes", "expected"),
    [(128, None, 1, 1), (128, None, 2, 1), (128, 32, 1, 4), (128, 32, 2, 2), (12, 3, 4, 1)],
)
def test_accumulation(batch, micro_batch, processes, expected):
    assert TrainConfig(batch=batch, micro_batch=micro_batch).accumulation(processes) == expected


def test_a_batch_that_cannot_be_shared():
    text = "train.batch=10 cannot be shared by 4 processes; give a multiple of 4"
    with pytest.raises(ValueError, match=re.escape(text)):
        TrainConfig(batch=10).accumulation(4)


def test_a_micro_batch_that_does_not_fit():
    text = "train.micro_batch=7 does not divide the 16 images of each of 2 processes; give a divisor of 16, such as 4"
    with pytest.raises(ValueError, match=re.escape(text)):
        TrainConfig(batch=32, micro_batch=7).accumulation(2)
    with pytest.raises(ValueError, match="the 32 images of each of 1 process; give a divisor of 32, such as 32"):
        TrainConfig(batch=32, micro_batch=64).accumulation(1)


def test_the_length_is_rounded_up_to_whole_batches():
    assert TrainConfig(images=100, batch=32).updates == 4
    assert TrainConfig(images=96, batch=32).updates == 3


def test_the_first_checkpoint_after_each_multiple_is_permanent():
    config = TrainConfig(batch=32, checkpoint_every_images=100, keep_every_images=200)
    saved = [0, 128, 224, 320, 416, 512, 608]  # at the first update past each multiple of 100
    assert [images for images in saved if config.is_permanent(images)] == [0, 224, 416, 608]
    assert not TrainConfig().is_permanent(0)
