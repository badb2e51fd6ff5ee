"""Evaluations, trackers and pictures that fail while a run goes on: reported, tried again, without a trace."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from accelerate.tracking import GeneralTracker

from tasks.grid_evaluation import SampleConfig
from tests.tasks.small import digits, small_run
from tests.training.test_loop import rows
from tests.training.toy import BATCH, ToyEvaluation, accelerator, config, hashes, resolved, train
from training import best, log
from training.log import failures, read
from training.loop import fit
from training.run_folder import RunFolder
from training.run_report import write_report
from training.task import Figure

EACH = {"eval_every_images": 2 * BATCH, "images": 6 * BATCH}
INJECTED = OSError(5, "Input/output error")


@pytest.fixture(autouse=True)
def _without_curves(monkeypatch) -> None:
    """Drawing them takes most of the time of a short run."""
    monkeypatch.setattr("training.evaluator.draw_curves", lambda *arguments: None)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run without faults."""
    folder = tmp_path_factory.mktemp("straight")
    train(folder, **EACH)
    return folder


def failing(function, at=(), error: Exception = INJECTED):
    """`function`, which raises in the calls with these numbers, from 1; without numbers in all of them."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        if not at or len(calls) in at:
            raise error
        return function(*arguments, **options)

    return call


def failed(run: Path) -> dict[int, dict[str, str]]:
    """The failures in the log, by images seen."""
    return {row["images"]: row["failed"] for row in read(run / "log.jsonl") if "failed" in row}


@pytest.mark.parametrize("error", [INJECTED, ValueError("judge\nof 3 lines"), torch.OutOfMemoryError("no memory")])
def test_an_evaluation_that_fails_once_leaves_a_line_and_no_trace(tmp_path, straight, monkeypatch, capsys, error):
    monkeypatch.setattr(ToyEvaluation, "run", failing(ToyEvaluation.run, {2}, error))
    assert train(tmp_path, **EACH).evaluated == [16, 48]
    assert hashes(tmp_path) == hashes(straight)
    assert set(failed(tmp_path)) == {32}
    assert [row for row in rows(tmp_path) if "failed" not in row] == [
        row for row in rows(straight) if row["images"] != 32 or "evaluated" not in row
    ]
    printed = capsys.readouterr()
    assert printed.out.count("NOT MEASURED: the sum after 32 images: ") == 1
    assert "NOT MEASURED: the sum failed 1 time" in printed.out.partition("finished:")[2]
    assert ("Traceback" in printed.err) == (error is INJECTED), "of an error that is not explained"


def test_an_evaluation_that_always_fails_is_named_at_the_end_and_on_the_page(tmp_path, straight, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(ToyEvaluation, "run", failing(ToyEvaluation.run))
        assert train(tmp_path, **EACH).finished
    assert hashes(tmp_path) == hashes(straight)
    assert failed(tmp_path) == {images: {"sum": "OSError: [Errno 5] Input/output error"} for images in (16, 32, 48)}
    (line,) = failures(read(tmp_path / "log.jsonl"))
    assert "sum failed 3 times" in line
    assert f"NOT MEASURED: {line}" in capsys.readouterr().out.partition("finished:")[2]
    assert line in write_report(tmp_path, {}).read_text()
    assert train(tmp_path, **EACH).evaluated == [48], "the same command tries it again"
    assert train(tmp_path, **EACH).evaluated == []


def test_a_plan_that_fails_is_made_again(tmp_path, straight, monkeypatch):
    monkeypatch.setattr(ToyEvaluation, "plan", failing(lambda *arguments: None, {1}))
    assert train(tmp_path, **EACH).evaluated == [32, 48]
    assert hashes(tmp_path) == hashes(straight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_not_measured(tmp_path, monkeypatch, capsys, value):
    monkeypatch.setattr(ToyEvaluation, "run", lambda evaluation, model, context: {"average": value})
    for _ in range(2):  # the same command repeats the evaluation
        assert train(tmp_path, images=BATCH).finished
        assert f"average is {value}" in capsys.readouterr().out
    assert not any(row.get("evaluated") or "average" in row for row in read(tmp_path / "log.jsonl"))


def test_averages_that_are_not_finite_end_the_run(tmp_path, monkeypatch):
    def run(evaluation, model, context):
        model.first.weight.data.fill_(float("nan"))
        return {"average": float("nan")}

    monkeypatch.setattr(ToyEvaluation, "run", run)
    with pytest.raises(ValueError, match=r"training diverged: .*weight is nan"):
        train(tmp_path, images=BATCH)


@pytest.mark.parametrize("where", ["evaluator.draw_curves", "loop.write_report", "evaluator.best.keep"])
def test_curves_pages_and_best_models_that_fail_are_reported(tmp_path, straight, monkeypatch, capsys, where):
    monkeypatch.setattr(ToyEvaluation, "figures", {"average": Figure("sum", best="lowest")})
    monkeypatch.setattr(f"training.{where}", failing(best.keep))
    assert train(tmp_path, **EACH).finished
    assert hashes(tmp_path) == hashes(straight)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Input/output error" in line]
    assert len(lines) == 3, "one for each evaluation"


class Recording(GeneralTracker):
    """A tracker that remembers the images seen, and raises in some calls."""

    name = "wandb"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.log = failing(lambda values, step: self.steps.append(step), {2, 3}, ConnectionError("no route"))


def test_a_tracker_that_fails_is_reported_once_and_gets_later_numbers(tmp_path, straight, monkeypatch, capsys):
    tracker = Recording()
    monkeypatch.setattr(log, "filter_trackers", lambda *arguments: [tracker])
    assert train(tmp_path, **EACH).finished
    assert tracker.steps == [8, 24, 32, 32, 40, 48, 48]
    assert hashes(tmp_path) == hashes(straight)
    assert capsys.readouterr().out.count("wandb lacks numbers of this run") == 1


def test_a_grid_that_cannot_be_drawn_leaves_no_trace(tmp_path, monkeypatch):
    def trained(path: Path) -> dict[str, str]:
        settings = config(images=2 * BATCH, eval_every_images=BATCH).train
        run = small_run(train=settings, sample=SampleConfig(num=1, steps=1))
        with closing(RunFolder(path)) as folder:
            folder.open(run, resolved(run))
            assert fit(run.build(digits()), digits(), run, folder, accelerator(run))
        return hashes(path)

    straight = trained(tmp_path / "straight")
    monkeypatch.setattr("tasks.grid_evaluation.draw_samples", failing(open))
    assert trained(tmp_path / "without") == straight
    assert [set(names) for names in failed(tmp_path / "without").values()] == [{"grid"}] * 2
