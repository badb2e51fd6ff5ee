"""Updates that are not finite are skipped, and the run goes back after too many; losses that are much larger."""

import json
from contextlib import closing

import pytest
import torch
from torch.testing import assert_close

from tests.training.test_loop import losses
from tests.training.toy import BATCH, ToyTask, hashes, loop, newest, train
from training.checkpoint import newest_before
from training.config import TrainConfig
from training.guard import Spikes
from training.state import state_tensors

EVERY = {"checkpoint_every_images": 2 * BATCH, "keep_last": 3}


def spoiled(*updates: int) -> ToyTask:
    task = ToyTask(dropout=0.3)
    task.spoil_at = updates
    return task


def rows(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def test_a_skipped_update_changes_nothing_and_names_its_images(tmp_path, capsys):
    runner = loop(tmp_path, task := spoiled(3))
    with closing(runner.folder), closing(runner.step):
        runner.begin()
        for _ in range(2):
            runner.step.update()
        before = [value.clone() for tensors in state_tensors(runner.step).values() for value in tensors.values()]
        result = runner.step.update()
        assert result.skipped
        assert (runner.step.updates, len(task.batches)) == (3, 3)
        after = [value for tensors in state_tensors(runner.step).values() for value in tensors.values()]
        assert_close(after, before, rtol=0, atol=0)
        numbers = runner.step.reader.get(2).numbers.tolist()
        assert runner.step.image_losses().not_finite == numbers
        assert not runner.step.update().skipped


def test_the_log_has_the_images_of_skipped_updates_and_means_of_the_others(tmp_path, capsys):
    train(tmp_path / "run", spoiled(4), log_every_images=2 * BATCH)
    train(tmp_path / "good", ToyTask(dropout=0.3), log_every_images=2 * BATCH, images=4 * BATCH)
    found = rows(tmp_path / "run")
    (skipped,) = [row for row in found if "skipped" in row]
    assert (skipped["update"], skipped["images"], len(skipped["image_numbers"])) == (4, 4 * BATCH, BATCH)
    assert f"images {', '.join(map(str, skipped['image_numbers']))}" in capsys.readouterr().out
    third = train(tmp_path / "three", ToyTask(dropout=0.3), images=3 * BATCH)
    assert third.finished
    assert losses(tmp_path / "run")[1] == losses(tmp_path / "three")[2], "the mean of the one that was not skipped"


def test_a_run_with_skipped_updates_resumes_with_the_same_bits(tmp_path):
    train(tmp_path / "straight", spoiled(4, 5), **EVERY)
    train(tmp_path / "pieces", spoiled(4), images=4 * BATCH, **EVERY)
    train(tmp_path / "pieces", spoiled(1), **EVERY)
    assert hashes(tmp_path / "pieces") == hashes(tmp_path / "straight")


@pytest.mark.parametrize("split", [None, 6], ids=["at once", "stopped between skipped updates"])
def test_too_many_skipped_updates_go_back_to_an_earlier_checkpoint(tmp_path, capsys, split):
    """Updates 5 to 7 are skipped: the run goes on with the weights after update 2, and the images of update 8."""
    settings = EVERY | {"max_skipped": 3}
    if split is None:
        train(tmp_path / "run", spoiled(5, 6, 7), images=8 * BATCH, **settings)
    else:
        train(tmp_path / "run", spoiled(5, 6), images=split * BATCH, **settings)
        train(tmp_path / "run", spoiled(1), images=8 * BATCH, **settings)
    assert "back to the weights after 16 images" in capsys.readouterr().out
    runner = loop(tmp_path / "expected", ToyTask(dropout=0.3), images=8 * BATCH)
    with closing(runner.folder), closing(runner.step):
        runner.begin()
        for _ in range(2):
            runner.step.update()
        runner.step.updates = 7
        runner.step.update()
        runner.save()
    found, expected = hashes(tmp_path / "run"), hashes(tmp_path / "expected")
    assert {name: found[name] for name in ("model.safetensors", "optimizer.safetensors")} == {
        name: expected[name] for name in ("model.safetensors", "optimizer.safetensors")
    }


@pytest.mark.parametrize("updates", [range(1, 99), range(5, 99)], ids=["from the first update", "after going back"])
def test_a_run_that_cannot_go_on_stops_and_keeps_its_checkpoints(tmp_path, updates):
    task = spoiled(*updates)
    with pytest.raises(ValueError, match=r"training diverged: 2 updates .*: loss is nan"):
        train(tmp_path, task, max_skipped=2, images=40 * BATCH, **EVERY)
    kept = int(newest(tmp_path).name) // BATCH
    assert kept == (0 if updates[0] == 1 else 6)
    assert len(task.batches) == (2 if updates[0] == 1 else 8), "the second time follows at once"


def test_a_run_that_ends_with_a_skipped_update_is_finished(tmp_path):
    assert train(tmp_path, spoiled(10)).finished
    assert newest(tmp_path).name == f"{10 * BATCH:09d}"


def test_the_newest_checkpoint_before_an_update_is_intact(tmp_path):
    train(tmp_path, **EVERY)
    root = tmp_path / "checkpoints"
    found = newest_before(root, 10)
    assert found is not None
    assert found.update == 8
    (found.folder / "model.safetensors").write_bytes(b"damaged")
    earlier = newest_before(root, 10)
    assert earlier is not None
    assert earlier.update == 6
    assert newest_before(root, 6) is None


def test_spikes_are_compared_with_the_largest_loss_of_the_window():
    spikes = Spikes(factor=10, window=3)
    assert [spikes.find(loss) for loss in (1.0, 50.0, 2.0, 499.0, 5000.0, 2.0, 2.0, 2.0, 21.0)] == [
        None, None, None, None, 499.0, None, None, None, 2.0,
    ]  # fmt: skip


def test_a_spike_names_the_images_with_the_largest_losses(tmp_path, capsys):
    class Spiked(ToyTask):
        def loss(self, model, batch, random):
            losses = super().loss(model, batch, random)
            factor = torch.ones_like(losses)
            factor[2] = 1e5 if random.update == 7 else 1
            return losses * factor

    runner = loop(tmp_path, Spiked())
    runner.guard._spikes.window = 5
    with closing(runner.folder):
        runner.run()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("update 8 has a loss")]
    number = runner.step.reader.images.take(
        torch.arange(7 * BATCH, 8 * BATCH).numpy(), 0, torch.empty(BATCH, 1, 8, 8, dtype=torch.uint8).numpy()
    )[2]
    assert f"largest losses: {number} (" in line


def test_the_limit_is_a_count():
    with pytest.raises(ValueError, match=r"max_skipped=-1"):
        TrainConfig(max_skipped=-1)
