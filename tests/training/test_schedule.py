"""Learning rate schedules against their formulas."""

import pytest

from training.schedule import SCHEDULES, Constant, Cosine


def rates(kind: str, at: list[int], **changes) -> list[float]:
    schedule = SCHEDULES[kind](warmup_images=100, **changes)
    return [schedule.learning_rate(2.0, images, batch=10, images=1000) for images in at]


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
    assert Constant(warmup_images=0).learning_rate(0.5, 0, batch=10, images=100) == 0.5
    assert Cosine(warmup_images=200).learning_rate(1.0, 90, batch=10, images=100) == pytest.approx(0.5)


def test_steps_multiply_at_each_milestone_from_its_update_on():
    at = [100, 290, 300, 590, 600, 2000]
    steps = {"milestones_images": (300, 600), "factor": 0.2}
    assert rates("step", at, **steps) == pytest.approx([2.0, 2.0, 0.4, 0.4, 0.08, 0.08])
    assert rates("step", at[:3], milestones_images=(300,)) == pytest.approx([2.0, 2.0, 0.2])
    assert rates("step", [40], **steps) == pytest.approx([1.0])


def test_the_inverse_square_root_is_constant_first():
    at = [100, 400, 900, 1600]
    assert rates("inverse_sqrt", at, constant_images=400) == pytest.approx([2.0, 2.0, 4 / 3, 1.0])
    assert rates("inverse_sqrt", [40], constant_images=400) == pytest.approx([1.0])
