"""`Step` on its own, without a folder."""

from contextlib import closing
from pathlib import Path

import torch
from torch import nn
from torch.testing import assert_close

from tests.training.test_loop import losses
from tests.training.toy import BATCH, ToyTask, accelerator, config, images, tensors, train
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
