import pytest

from training.config import TrainConfig
from training.schedule import ema_keep, learning_rate


def rates(schedule: str, at: list[int], **changes) -> list[float]:
    config = TrainConfig(images=1000, batch=10, learning_rate=2.0, warmup_images=100, schedule=schedule, **changes)
    return [learning_rate(config, images) for images in at]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_rises_linearly_and_the_first_update_moves(schedule):
    assert rates(schedule, [0, 10, 40, 80]) == pytest.approx([0.2, 0.4, 1.0, 1.8])
    assert rates(schedule, [90, 100]) == pytest.approx([2.0, 2.0])


def test_after_the_warmup():
    at = [100, 325, 550, 775, 1000, 2000]
    assert rates("constant", at) == [2.0] * 6
    assert rates("linear", at) == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0, 0.0])
    half = 0.5**0.5
    assert rates("cosine", at) == pytest.approx([2.0, 1 + half, 1.0, 1 - half, 0.0, 0.0], abs=1e-12)


def test_no_warmup_and_only_warmup():
    assert learning_rate(TrainConfig(warmup_images=0, learning_rate=0.5), 0) == 0.5
    config = TrainConfig(images=100, batch=10, warmup_images=200, schedule="cosine", learning_rate=1.0)
    assert learning_rate(config, 90) == pytest.approx(0.5)


def test_a_weight_halves_over_the_halflife():
    config = TrainConfig(batch=10, ema_halflife_images=500, ema_rampup=None)
    assert ema_keep(config, 10) ** 50 == pytest.approx(0.5)


def test_rampup_shortens_the_halflife_early_on():
    config = TrainConfig(batch=10, ema_halflife_images=500, ema_rampup=0.05)
    assert ema_keep(config, 200) == pytest.approx(0.5), "half-life 0.05 * 200 = 10 images, one batch"
    assert ema_keep(config, 10_000) == ema_keep(config, 1_000_000) == pytest.approx(0.5 ** (10 / 500))


def test_steps_multiply_at_each_milestone_from_its_update_on():
    at = [100, 290, 300, 590, 600, 2000]
    steps = {"milestones_images": (300, 600), "step_factor": 0.2}
    assert rates("step", at, **steps) == pytest.approx([2.0, 2.0, 0.4, 0.4, 0.08, 0.08])
    assert rates("step", at[:3], milestones_images=(300,)) == pytest.approx([2.0, 2.0, 0.2])
    assert rates("step", [40], **steps) == pytest.approx([1.0])


def test_without_a_halflife_nothing_is_averaged():
    assert ema_keep(TrainConfig(ema_halflife_images=None), 10) == 0
