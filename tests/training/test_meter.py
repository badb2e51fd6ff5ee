import math
import time

import pytest
import torch

from tests.training.toy import accelerator, config
from training.meter import Meter, require_finite
from training.step import StepResult


def update(loss: float, norm: float, skipped: bool = False) -> StepResult:
    return StepResult(torch.tensor(loss), torch.tensor(norm), 0.1, loss, skipped)


def test_means_over_the_interval():
    engine, meter = accelerator(config()), Meter(torch.device("cpu"))
    for loss in (1.0, 2.0, 6.0):
        meter.add(update(loss, loss * 10))
    assert meter.means(engine) == {"loss": 3.0, "gradient_norm": 30.0}
    meter.restart(0.0)
    meter.add(update(5.0, 7.0))
    assert meter.means(engine) == {"loss": 5.0, "gradient_norm": 7.0}


def test_skipped_updates_count_for_the_time_only():
    engine, meter = accelerator(config()), Meter(torch.device("cpu"))
    meter.add(update(math.nan, math.nan, skipped=True))
    assert meter.means(engine) == {}
    assert meter.speed(batch=8, waited_seconds=0.0)["images_per_second"] > 0
    meter.add(update(5.0, 7.0))
    assert meter.means(engine) == {"loss": 5.0, "gradient_norm": 7.0}


def test_sums_are_carried_on():
    engine, meter, later = accelerator(config()), Meter(torch.device("cpu")), Meter(torch.device("cpu"))
    meter.add(update(0.1, 0.7))
    later.restore(meter.updates, meter.sums(engine), engine)
    for one in (meter, later):
        one.add(update(0.2, 0.3))
    assert later.means(engine) == meter.means(engine)


def test_sums_of_another_number_of_processes():
    engine, meter = accelerator(config()), Meter(torch.device("cpu"))
    meter.restore(2, [(1.0, 10.0), (3.0, 30.0)], engine)
    assert meter.means(engine) == {"loss": 1.0, "gradient_norm": 10.0}
    meter.restore(9, [], engine)
    assert meter.updates == 2, "a checkpoint without sums"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf)])
def test_divergence(loss, norm):
    engine, meter = accelerator(config()), Meter(torch.device("cpu"))
    meter.add(update(1.0, 1.0))
    meter.add(update(loss, norm))
    shown = rf"loss is {loss:.4g}, gradient_norm is {norm:.4g}"
    with pytest.raises(ValueError, match=rf"in the last 2 updates {shown}\. .*--fresh"):
        require_finite(f"in the last {meter.updates} updates", meter.means(engine))


def test_speed_counts_training_time_only():
    meter = Meter(torch.device("cpu"))
    meter.add(update(1.0, 1.0))
    with meter.pause():
        time.sleep(0.3)
    time.sleep(0.05)
    speed = meter.speed(batch=8, waited_seconds=0.02)
    assert 8 / 0.3 < speed["images_per_second"] < 8 / 0.05
    assert 0.02 / 0.3 < speed["data_wait"] < 0.02 / 0.05
