"""Distillation: what the student learns, its folder, and the teachers that are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import train
from diffusion import DDPM, Condition, DPMSolverPP2M, Flow, NetworkDenoiser, choose_sampler
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from tasks.comparison import QualityConfig
from tasks.distillation import DistillationConfig, DistillationRun, DistillationTask
from tasks.grid_evaluation import SampleConfig
from tests.tasks.small import digits, shaken, small_run
from training.config import TrainConfig
from training.random import GlobalRandom
from training.task import Batch

BATCH = 16


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with random weights, classes and a label for none."""
    folder = tmp_path_factory.mktemp("teacher")
    shaken(small_run(objective=DDPM(schedule="cosine", prediction="v")).build(digits())).diffusion.save(folder)
    return folder


def distilled(teacher: Path, **fields: Any) -> DistillationTask:
    settings = DistillationConfig(**fields)
    train = TrainConfig(precision="float32")
    return DistillationRun(teacher=str(teacher), distillation=settings, train=train).build(digits())


def numbers() -> GlobalRandom:
    return GlobalRandom(0, 0, "task", BATCH, slice(None), "cpu")


def loss(task: DistillationTask) -> torch.Tensor:
    images = digits()
    assert images.labels is not None
    stored = torch.from_numpy(images.read(np.arange(BATCH)))
    seen = Batch(images.pixel_format.to_unit(stored), torch.from_numpy(images.labels[:BATCH]))
    return task.loss(task.model, task.prepare(seen, numbers()), numbers())


@pytest.mark.parametrize(("steps", "jump"), [(4, 1), (4, 2), (4, 4)])
def test_the_target_is_the_image_of_the_student_after_steps_of_the_teacher(
    steps: int, jump: int, teacher: Path
) -> None:
    task, random = distilled(teacher, steps=steps, substeps=2, jump=jump, label_dropout=0.0), numbers()
    task.model.load_state_dict({name: weight + 0.01 for name, weight in task.model.state_dict().items()})
    model, images = load_model(teacher), digits()
    formulation, times = model.formulation, model.formulation.times(2 * steps, "trailing")
    first, noise = random.integers(steps), random.normal(1, 8, 8)
    assert len(set(first.tolist())) == steps
    of_teacher, of_student = (NetworkDenoiser(net, formulation) for net in (model.net, task.model))
    expected = []
    for k, start in enumerate(first.tolist()):
        assert images.labels is not None
        condition = Condition(torch.from_numpy(images.labels[k : k + 1]))
        clean = images.pixel_format.to_unit(torch.from_numpy(images.read(np.array([k]))))
        x = formulation.level(times[2 * start][None]).noisy(clean, noise[k : k + 1])
        end = min(start + jump, steps)
        with torch.no_grad():
            predict = lambda x, time: of_teacher(x, time[None], condition).clamp(-1, 1)  # noqa: B023, E731
            *_, target = DPMSolverPP2M()(predict, formulation, x, times[2 * start : 2 * end + 1], [])
            if end < steps:
                target = of_student(target, times[2 * end][None], condition)
            expected.append((of_student(x, times[2 * start][None], condition) - target).square().mean())
    assert_close(loss(task), torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("field", ["steps", "substeps", "jump", "guidance", "label_dropout"])
def test_every_field_matters(field: str, teacher: Path) -> None:
    given = {"steps": 4, "substeps": 2, "jump": 2, "guidance": 2.0, "label_dropout": 0.5}
    other = {field: {"steps": 5, "substeps": 3, "jump": 3}.get(field, 0.9)}
    tasks = [distilled(teacher, **(given | changed)) for changed in ({}, other)]
    assert not torch.equal(*map(loss, tasks))
    assert set(given) == set(DistillationConfig.__dataclass_fields__)


def test_the_student_alone_is_trained_and_starts_as_the_teacher(teacher: Path) -> None:
    task, model = distilled(teacher, steps=2), load_model(teacher)
    for mine, its in zip(task.model.parameters(), model.net.parameters(), strict=True):
        assert_close(mine, its)
    loss(task).mean().backward()
    assert all(weight.grad is not None for weight in task.model.parameters())
    assert isinstance(task.diffusion, DiffusionModel)
    assert (task.diffusion.classes, task.diffusion.null) == (model.classes, model.null)


@pytest.mark.slow
def test_a_run_is_resumed_and_its_folder_draws_in_one_step(unconditional: Path, tmp_path: Path) -> None:
    flags = [
        *("--task", "distillation", "--teacher", str(unconditional), "--distillation.steps", "2"),
        *("--data.labels", "false", "--data.cache", str(tmp_path / "cache"), "--run", str(tmp_path / "run")),
        *("--train.batch", "16", "--sample.num", "2", "--train.precision", "float32"),
    ]
    for images in (16, 32):
        train.main([*flags, "--train.images", str(images)])
    found, start = load_model(tmp_path / "run"), load_model(unconditional)
    assert found.images_seen == 32
    assert found.formulation == start.formulation
    drawn = [model.draw([0, 1], None, steps=1, sampler="euler_ancestral") for model in (found, start)]
    assert not torch.equal(*drawn)
    assert choose_sampler("euler_ancestral", found.formulation, 1).learned_variance is False


def save(model: DiffusionModel, folder: Path) -> str:
    model.save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps=0 "),
        ({"substeps": 0}, "substeps=0 "),
        ({"steps": 1001}, "steps=1001 "),
        ({"jump": 0}, "jump=0 "),
        ({"steps": 4, "jump": 5}, r"jump=5 .*steps, 4"),
        ({"label_dropout": 1.0}, r"label_dropout=1\.0"),
        ({"label_dropout": float("nan")}, "label_dropout=nan"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationConfig(**fields)


def start(fields: dict[str, Any]) -> DistillationTask:
    """As train.py starts a run."""
    run = DistillationRun(**fields)
    run.check_init()
    return run.build(digits())


def test_what_a_student_cannot_learn_from_is_refused(teacher: Path, tmp_path: Path) -> None:
    model = load_model(teacher)
    unlabelled = save(replace(model, null_label=False), tmp_path / "unlabelled")
    flow = save(replace(model, formulation=Flow()), tmp_path / "flow")
    noise = save(replace(model, formulation=DDPM()), tmp_path / "noise")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"teacher": str(tmp_path / "absent")}, "teacher=.*absent"),
        ({"teacher": noise}, r"teacher=.*predicts the noise.*v or x0"),
        ({"distillation": DistillationConfig(guidance=float("inf"))}, r"teacher=.*guidance=inf"),
        ({"distillation": DistillationConfig(steps=500)}, r"teacher=.*steps=2000 .*1000"),
        ({"teacher": unlabelled, "distillation": DistillationConfig(guidance=2.0)}, r"guidance=2 .*without labels"),
        ({"sample": SampleConfig(sampler="plms")}, "sample: .*plms"),
        ({"teacher": flow, "sample": SampleConfig(sampler="ddim")}, r"sample: sampler=ddim .*ddpm"),
        ({"quality": QualityConfig(steps=0)}, "quality: steps=0 "),
        ({"quality": QualityConfig(judge="judge")}, r"quality\.judge=judge .*data\.validation"),
        ({"init": "runs/x"}, "init=runs/x"),
    ]
    for fields, message in cases:
        with pytest.raises(ValueError, match=message):
            start({"teacher": str(teacher), **fields})
    with pytest.raises(ValueError, match=r"teacher=.*classes=\('zero'.*have None"):
        DistillationRun(teacher=str(teacher)).build(digits(labels=False))
