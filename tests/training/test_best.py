"""RUN/best: the averaged model of the best evaluation, whatever ends a run in between."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from storage import write
from tests.training.toy import BATCH, ToyEvaluation, ToyTask, newest, train
from training import best, disk_space
from training.log import RunLog
from training.memory import model_bytes, saved_bytes
from training.task import Figure

VALUES = {16: 3.0, 32: 1.0, 48: 1.0, 64: 7.0}
EACH = {"eval_every_images": 2 * BATCH, "images": 6 * BATCH}
LOWEST, HIGHEST = Figure("sum", best="lowest"), Figure("sum", best="highest")


@pytest.fixture(autouse=True)
def _measured(monkeypatch) -> None:
    """Evaluations have a leading figure with the values above."""
    monkeypatch.setattr(ToyEvaluation, "figures", {"average": LOWEST})
    monkeypatch.setattr(ToyEvaluation, "run", lambda self, model, context: {"average": VALUES[context.images_seen]})
    monkeypatch.setattr("training.evaluator.draw_curves", lambda *arguments: None)


def record(run: Path) -> dict:
    return json.loads((run / "best" / "best.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "best" / "model.safetensors")


@pytest.mark.parametrize(("figure", "images"), [(LOWEST, 32), (HIGHEST, 16)])
def test_the_averaged_model_of_the_best_figure_is_kept(tmp_path, monkeypatch, figure, images):
    monkeypatch.setattr(ToyEvaluation, "figures", {"average": figure})
    train(tmp_path, **EACH, checkpoint_every_images=2 * BATCH, keep_last=9)
    found = record(tmp_path)
    assert (found["figure"], found["value"], found["images_seen"]) == ("average", VALUES[images], images)
    average = load_file(tmp_path / "checkpoints" / f"{images:09d}" / "ema.safetensors")
    torch.testing.assert_close(weights(tmp_path), average, rtol=0, atol=0)


def test_without_a_leading_figure_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyEvaluation, "figures", {})
    train(tmp_path, **EACH)
    assert not (tmp_path / "best").exists()


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        _measured.__wrapped__(patch)
        folder = tmp_path_factory.mktemp("straight")
        train(folder, **EACH)
        return weights(folder)


@pytest.mark.parametrize("update", [3, 5])
def test_a_death_at_any_update_changes_nothing(tmp_path, straight, update):
    class Dying(ToyTask):
        def after_update(self, model):
            if len(self.batches) == update:
                raise RuntimeError("died")

    settings = {**EACH, "checkpoint_every_images": 3 * BATCH}
    with pytest.raises(RuntimeError, match="died"):
        train(tmp_path, Dying(), **settings)
    assert train(tmp_path, **settings).finished
    assert record(tmp_path)["images_seen"] == 32
    torch.testing.assert_close(weights(tmp_path), straight, rtol=0, atol=0)


class Killed(BaseException):
    """Ends a run as a signal does that nothing catches."""


@pytest.mark.parametrize("rename", [2, 3])
def test_a_kill_while_it_is_written_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, straight, rename):
    """The process dies before the first model is renamed to make room for the second, or before the second is."""
    left, rename_file = [rename], write.os.rename

    def dying(source, target):
        left[0] -= "best" in Path(source).name
        if left[0] == 0 and "best" in Path(source).name:
            raise Killed
        return rename_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(write.os, "rename", dying)
        with pytest.raises(Killed):
            train(tmp_path, **EACH)
    assert train(tmp_path, **EACH).finished
    torch.testing.assert_close(weights(tmp_path), straight, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tmp-")] == []


def test_a_kill_before_the_line_of_the_log_repeats_the_evaluation(tmp_path, monkeypatch, straight):
    write_line = RunLog.write

    def dying(log, images_seen, update, numbers, **marks):
        if marks.get("evaluated") and images_seen == 32:
            raise Killed
        write_line(log, images_seen, update, numbers, **marks)

    settings = {**EACH, "checkpoint_every_images": 2 * BATCH}
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", dying)
        with pytest.raises(Killed):
            train(tmp_path, **settings)
    assert record(tmp_path)["images_seen"] == 32
    assert train(tmp_path, **settings).finished
    assert record(tmp_path)["images_seen"] == 32
    torch.testing.assert_close(weights(tmp_path), straight, rtol=0, atol=0)


def test_on_a_full_disk_training_goes_on_with_the_previous_one(tmp_path, monkeypatch, capsys):
    replace_folder = best.replace_folder

    def full(target, fill):
        if (target / "best.json").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_folder(target, fill)

    monkeypatch.setattr(best, "replace_folder", full)
    assert train(tmp_path, **EACH).finished
    assert record(tmp_path)["images_seen"] == 16
    lines = [line for line in capsys.readouterr().out.splitlines() if "disk is full" in line]
    assert [line[: len("NOT KEPT as the best model after 32")] for line in lines] == [
        f"NOT KEPT as the best model after {images}" for images in (32, 48)
    ]


def test_its_disk_space_is_needed_at_the_start(tmp_path, monkeypatch):
    model = ToyTask().model
    needed = saved_bytes(model, 2, checkpoints=2) + model_bytes(model)
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(disk_space.DiskFull, match=r"the best model"):
        train(tmp_path)


def test_a_figure_under_other_conditions_is_not_compared(tmp_path, monkeypatch, capsys):
    train(tmp_path, **EACH)
    assert record(tmp_path)["value"] == 1
    monkeypatch.setattr(ToyEvaluation, "conditions", {"steps": 5})
    train(tmp_path, **EACH | {"images": 8 * BATCH})
    assert (record(tmp_path)["value"], record(tmp_path)["conditions"]) == (7, {"steps": 5})
    assert "another steps" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, '{"value": "low"}'])
def test_a_folder_without_a_readable_record_is_moved_aside(tmp_path, capsys, text):
    train(tmp_path, **EACH | {"images": 2 * BATCH})
    (tmp_path / "best" / "best.json").unlink()
    if text is not None:
        (tmp_path / "best" / "best.json").write_text(text)
    train(tmp_path, **EACH | {"images": 4 * BATCH})
    assert record(tmp_path)["images_seen"] == 32
    assert (tmp_path / "damaged-best" / "model.safetensors").is_file()
    assert "moved to damaged-best" in capsys.readouterr().out


def test_a_run_that_begins_anew_does_not_compare_with_an_older_one(tmp_path, capsys):
    train(tmp_path, **EACH)
    for path in newest(tmp_path).parent.iterdir():
        write.remove(path)
    (tmp_path / "log.jsonl").unlink()
    train(tmp_path, **EACH | {"images": 2 * BATCH})
    assert record(tmp_path)["images_seen"] == 16
    assert (tmp_path / "damaged-best").is_dir()
