import re

import pytest

from training.config import TrainConfig


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("images", 0, "train.images=0 is out of range; give at least 1"),
        ("batch", 0, "train.batch=0 is out of range; give 1 to 16,777,216"),
        ("batch", 10**40, "is out of range; give 1 to 16,777,216"),
        ("ema_halflife_images", 0, "train.ema_halflife_images=0 is out of range; give at least 1, or null"),
        ("log_every_images", 0, "train.log_every_images=0 is out of range; give at least 1"),
        ("eval_every_images", -1, "train.eval_every_images=-1 is out of range; give at least 1"),
        ("checkpoint_every_images", 0, "train.checkpoint_every_images=0 is out of range; give at least 1"),
        ("warmup_images", -1, "train.warmup_images=-1 is out of range; give 0 or more"),
        ("weight_decay", -0.1, "train.weight_decay=-0.1 is out of range; give 0 or more"),
        ("seed", -1, "train.seed=-1 is out of range; give 0 or more"),
        ("seed", 2**64, "train.seed=18446744073709551616 is out of range; give 0 or more, below 2^64"),
        ("micro_batch", 0, "train.micro_batch=0 is out of range; give at least 1, or null"),
        ("learning_rate", 0.0, "train.learning_rate=0.0 is out of range; give a rate above 0"),
        ("learning_rate", float("nan"), "train.learning_rate=nan is out of range; give a rate above 0"),
        ("betas", (0.9, 1.0), "train.betas=(0.9, 1.0) is out of range; give two numbers in [0, 1)"),
        ("max_grad_norm", 0.0, "train.max_grad_norm=0.0 is out of range; give a norm above 0, or null for no clipping"),
        ("ema_rampup", 0.0, "train.ema_rampup=0.0 is out of range; give a share above 0, or null"),
        (
            "keep_every_images",
            75_000,
            "train.keep_every_images=75000 is out of range; give a multiple of train.checkpoint_every_images=50000, or",
        ),
        ("keep_every_images", 0, "train.keep_every_images=0 is out of range; give a multiple of"),
        ("momentum", 1.0, "train.momentum=1.0 is out of range; give at least 0 and below 1"),
        ("nesterov", True, "train.nesterov=True is out of range; it needs train.optimizer=sgd with momentum"),
        ("schedule", "step", "train.milestones_images=() is out of range; they belong to train.schedule=step, which"),
        ("milestones_images", (5,), "train.milestones_images=(5,) is out of range; they belong to train.schedule=step"),
        ("milestones_images", (9, 5), "is out of range; give numbers of images from 1 on, each larger than the one"),
        ("milestones_images", (5, 5), "is out of range; give numbers of images from 1 on, each larger than the one"),
        ("milestones_images", (0, 5), "is out of range; give numbers of images from 1 on, each larger than the one"),
        ("step_factor", 1.0, "train.step_factor=1.0 is out of range; give a number between 0 and 1"),
        ("keep_last", 1, "train.keep_last=1 is out of range; keep at least 2 checkpoints"),
    ],
)
def test_out_of_range(name, value, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        TrainConfig(**{name: value})


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


def test_the_first_checkpoint_after_each_multiple_is_kept_for_good():
    config = TrainConfig(batch=32, checkpoint_every_images=100, keep_every_images=200)
    saved = [0, 128, 224, 320, 416, 512, 608]  # at the first update past each multiple of 100
    assert [images for images in saved if config.is_permanent(images)] == [0, 224, 416, 608]
    assert not TrainConfig().is_permanent(0)
