"""Helpers of single experiments, where their values are known."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from experiments import continual, depth_time, new_class, robustness, skips, super_resolution
from experiments.nets import classifier, denoiser, trained
from experiments.run import Settings
from residual import Residual
from residual.lipschitz import NormLimit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The short form."""
    return Settings(short=True, seeds=1, out=tmp_path)


def test_a_loss_is_reached_at_the_first_window_below_it() -> None:
    losses = torch.arange(30.0, 0.0, -1.0)
    smooth = super_resolution.smooth(losses)
    assert smooth[0] == losses[:10].mean()
    assert super_resolution.reached(smooth, 25.5) == 10
    assert super_resolution.reached(smooth, 24.5) == 11
    assert super_resolution.reached(smooth, -1.0) == 30


def test_decibels_of_a_uniform_error() -> None:
    assert_close(super_resolution.decibels(torch.full((1, 1, 2, 2), 0.2), torch.zeros(1, 1, 2, 2)), 20.0)


def test_the_slope_is_the_order() -> None:
    assert_close(depth_time.slope((2, 4, 8), [1.0, 0.25, 0.0625]), -2.0)


def test_a_removed_skip_does_not_depend_on_the_encoder(settings: Settings) -> None:
    one = trained(denoiser(0, base_channels=8), 0, settings)
    net = skips.network(one)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    shapes = skips.skip_shapes(one, x)
    assert len(shapes) == len(net.decoder)
    before = net(x, 0.0)
    last = len(shapes) - 1  # its skip is the output of the stem, which passes nowhere else but to the next entry

    def halve(module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        channels = shapes[last][0]
        return (torch.cat([inputs[0][:, :-channels], 7 * inputs[0][:, -channels:]], dim=1), *inputs[1:])

    with skips.without_skip(net, last, shapes[last][0]):
        without = net(x, 0.0)
    handle = net.decoder[last].register_forward_pre_hook(halve)
    assert not torch.allclose(net(x, 0.0), before)
    with skips.without_skip(net, last, shapes[last][0]):
        assert torch.equal(net(x, 0.0), without)
    handle.remove()
    assert torch.equal(net(x, 0.0), before)


@pytest.mark.parametrize("kind", robustness.MERGES)
def test_networks_under_attack_have_the_parts_of_their_kind(kind: str, settings: Settings) -> None:
    net = trained(classifier(0), 0, settings).net
    robustness.change(net, kind)
    block = next(each for each in net.modules() if isinstance(each, Residual))
    limits = [each for each in block.modules() if isinstance(each, NormLimit)]
    assert bool(limits) == (kind == "spectral")
    s, f = torch.tensor([2.0]), torch.tensor([1.0])
    expected = {"plain": 1.0, "scaled": 3 * 0.5**0.5}.get(kind, 3.0)
    assert_close(block.merge(s, f), torch.tensor([expected]))


def test_the_images_of_a_task_are_its_digits(settings: Settings) -> None:
    x, label = continual.task(settings, 5, False, held_out=False)
    images = continual.images(settings, 5, False)
    assert set(label.tolist()) == set(range(5, 10))
    assert images.labels is not None
    assert images.labels.tolist() == label.tolist()
    assert_close(images.pixel_format.to_unit(torch.from_numpy(images.read(torch.arange(4).numpy()))), x[:4])
    inverted, _ = continual.task(settings, 5, True, held_out=False)
    assert torch.equal(inverted, -x)
    new = new_class.images(settings, new=True)
    assert new.labels is not None
    assert set(new.labels.tolist()) == {new_class.NEW}
    assert len(new) + len(new_class.images(settings, new=False)) == 899
