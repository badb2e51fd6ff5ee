"""`Step` on its own, without a folder."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.training.test_loop import losses
from tests.training.toy import BATCH, Tight, ToyTask, accelerator, config, hashes, images, tensors, train
from training.step import Step


def test_a_step_trains_as_a_run_does(tmp_path: Path) -> None:
    train(tmp_path, micro_batch=4)
    settings = config(micro_batch=4)
    with closing(Step(ToyTask(), images(), settings, accelerator(settings))) as step:
        results = [step.update() for _ in range(10)]
    assert [result.loss.item() for result in results] == losses(tmp_path)
    assert {result.learning_rate for result in results} == {settings.optimizer.learning_rate}
    assert (step.updates, step.images_seen) == (10, 10 * BATCH)
    for file, model in (("model", step.trained), ("ema", step.ema.model)):
        for name, value in model.state_dict().items():
            assert_close(tensors(tmp_path, file)[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("first", [0, 1])
def test_memory_that_runs_out_halves_the_micro_batch_and_repeats_the_update(tmp_path, capsys, first) -> None:
    """Weights, averages, optimizer and buffers are bit for bit those of a run that began so (here: before update 1)."""
    train(tmp_path / "a", Tight(2, first, dropout=0.3), micro_batch=4)
    printed = capsys.readouterr().out
    assert "out of memory with 4 images in a forward pass: from now on 2, in 4 passes" in printed
    assert "train.batch=8 stays" in printed
    train(tmp_path / "b", ToyTask(dropout=0.3), micro_batch=4 if first else 2, images=(first or 10) * BATCH)
    if first:
        train(tmp_path / "b", ToyTask(dropout=0.3), micro_batch=2)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_memory_for_less_than_one_image_is_an_error_with_an_estimate(tmp_path) -> None:
    text = r"train\.micro_batch=1: .*about \d.*EMA, [1-9].* activations.*cpu has .*smaller model"
    with pytest.raises(ValueError, match=text):
        train(tmp_path, Tight(0))


def test_memory_that_runs_out_later_is_an_error_with_the_way_out(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"4 images in a forward pass .*train\.micro_batch=2; "):
        train(tmp_path, Tight(2, first=5), micro_batch=4)


class Projected(ToyTask):
    """Sets a weight to zero after every update."""

    def after_update(self, model: nn.Module) -> None:
        assert not torch.is_grad_enabled()
        assert model is self.model
        model.first.weight.zero_()  # type: ignore[operator,union-attr]


def test_weights_are_changed_after_the_update_and_before_averaging() -> None:
    settings = config(halflife_images=None)
    with closing(Step(Projected(), images(), settings, accelerator(settings))) as step:
        step.update()
    assert not step.trained.first.weight.any()  # type: ignore[operator,union-attr]
    assert not step.ema.model.first.weight.any()  # type: ignore[operator,union-attr]
    assert step.trained.last.weight.any()  # type: ignore[operator,union-attr]
