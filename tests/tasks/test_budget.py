"""The time budget of metrics: the trial, the number of images, and that it stays for the rest of the run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tasks import budget
from tasks.budget import RECORD, choose_count, seconds_per_image

FACTS = {"judge": "j", "steps": 18, "interval": (0.0, 1.0), "seconds": 2.0}


@pytest.mark.parametrize(
    ("affordable", "count", "text"),
    [
        (1000.0, 100, "100 images"),
        (42.9, 42, "42 of 100 images (the most that quality.seconds=2 allows)"),
        (3.0, 17, "17 of 100 images (the least for the judge, more than quality.seconds=2 allows)"),
    ],
)
def test_as_many_images_are_drawn_as_are_affordable(tmp_path, affordable, count, text):
    assert choose_count(100, 17, affordable, FACTS, tmp_path / "samples", record=True) == (count, text)
    record = json.loads((tmp_path / "samples" / RECORD).read_text())
    assert record["images"] == count


def test_the_number_stays_until_the_facts_change(tmp_path):
    choose_count(100, 17, 42, FACTS, tmp_path, record=True)
    assert choose_count(100, 17, 99, FACTS, tmp_path, record=True) == (42, "42 of 100 images (as before)")
    assert choose_count(100, 17, 99, FACTS | {"steps": 5}, tmp_path, record=False)[0] == 99
    assert choose_count(100, 17, 99, FACTS, tmp_path, record=True)[0] == 42, "nothing was recorded"
    assert choose_count(100, 17, 60, FACTS | {"seconds": 3.0}, tmp_path, record=True)[0] == 60
    assert choose_count(100, 17, 99, FACTS | {"seconds": 3.0}, tmp_path, record=True)[0] == 60


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 5}', '{"images": 5, "facts": {}}', '{"images": "many"}'])
def test_a_damaged_record_is_replaced(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    assert choose_count(100, 17, 42, FACTS, tmp_path, record=True)[0] == 42
    assert json.loads((tmp_path / RECORD).read_text())["images"] == 42


class Sampler:
    """In the place of a model: a step takes 0.1 s and a hundredth of that per image, on a clock of its own."""

    def __init__(self, first: float = 0.0) -> None:
        self.now, self.tried, self.first = 0.0, list[int](), first

    def denoising(self, images, labels, *, steps, device, **options):
        assert labels is None or len(labels) == len(images)
        yield torch.zeros(1)
        self.now += 0.1 + 0.001 * len(images) + self.first
        self.tried.append(len(images))
        self.first = 0.0
        yield torch.zeros(1)
        pytest.fail("one step is enough")


@pytest.mark.parametrize("labels", [None, list(range(250))])
def test_the_trial_times_a_step_of_the_largest_batch(monkeypatch, labels):
    model = Sampler(first=60)  # loading kernels
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: model.now))
    assert seconds_per_image(model.denoising, labels, 250, steps=18) == pytest.approx(18 * 0.35 / 250)
    assert model.tried == [1, 1, 8, 8, 64, 64, 250, 250]


def test_a_slow_step_is_not_tried_with_more_images(monkeypatch):
    model = Sampler()
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: 10 * model.now))
    assert seconds_per_image(model.denoising, None, 250, steps=2) == pytest.approx(2 * 1.01)
    assert model.tried == [1, 1]


def test_it_is_written_below_the_folder_of_evaluations_only(tmp_path):
    choose_count(100, 17, 42, FACTS, tmp_path / "samples", record=False)
    assert list(Path(tmp_path).iterdir()) == []
