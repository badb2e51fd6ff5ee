"""Sizes that the levels cannot halve: `UNetConfig.pad`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diffusion import DDPM
from pictures.tiles import Tiles
from pipelines.diffusion import DiffusionModel
from pipelines.superresolution import diffusion_upscaler
from residual.block import extend
from tests.tasks.small import digits, small_run
from training.data import Images
from unet import EDM2Config, UNet, UNetConfig, preset
from unet.adapt import adapt_weights
from unet.layouts import UNET_LAYOUTS

TINY = UNetConfig(
    in_channels=2, out_channels=1, size=(9, 13), base_channels=8, channel_multipliers=(1, 1, 1), blocks_per_level=1
)
PADDED = replace(TINY, pad=True)
T = torch.tensor([3.0])


def filled(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    net = UNet(config)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3)
    return net.eval()


@pytest.mark.parametrize("padding", ["zeros", "reflect", "periodic_width", "periodic"])
def test_images_are_continued_to_the_next_size_and_cut(padding: str) -> None:
    net = filled(replace(PADDED, padding=padding, learned_variance=True))
    x = torch.randn(1, 2, 9, 13)
    expected = net(extend(x, (1, 2, 1, 2), padding), T)[:, :, 1:10, 1:14]
    assert_close(net(x, T), expected, rtol=0, atol=0)


def test_other_sizes_are_as_without() -> None:
    net, x = filled(PADDED), torch.randn(1, 2, 8, 12)
    plain = filled(replace(TINY, size=(8, 12)))
    assert_close(net(x, T), plain(x, T), rtol=0, atol=0)


def test_a_width_that_is_halved_stays_periodic_beside_a_height_that_is_not() -> None:
    net = filled(replace(PADDED, padding="periodic_width", size=(9, 12))).double()
    x = torch.randn(1, 2, 9, 12).double()
    assert_close(net(x.roll(4, 3), T).roll(-4, 3), net(x, T))


def test_the_pyramid_has_images_of_the_size(tmp_path) -> None:
    net = filled(replace(PADDED, pyramid=True, resample="block_fir"))
    assert net(torch.randn(1, 2, 9, 13), T).shape == (1, 1, 9, 13)
    net.save_pretrained(tmp_path)
    assert UNet.from_pretrained(tmp_path).config == net.config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"padding": "reflect", "size": (4, 13)}, r"padding='reflect'.*size=\(4, 13\)"),
        ({"padding": "periodic", "size": (1, 13)}, r"size=\(1, 13\).*pad=True.*1 px"),
    ],
)
def test_images_that_are_too_small_to_continue_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(PADDED, **changes)
    assert replace(PADDED, padding="reflect", size=(5, 13)).size == (5, 13)


def test_errors_of_sizes_name_the_option() -> None:
    with pytest.raises(ValueError, match=r"size=\(9, 13\).*pad=true"):
        UNet(TINY)
    with pytest.raises(ValueError, match=r"0x3 px"):
        filled(PADDED)(torch.zeros(1, 2, 0, 3), T)
    assert "pad" not in (EDM2Config().size_error(9, 13) or "pad")


@pytest.mark.parametrize(
    ("layout", "name"), [("diffusers", "ddpm-cifar10"), ("adm", "adm-imagenet64"), ("edm", "edm-cifar10-ddpmpp")]
)
def test_other_projects_do_not_pad(layout: str, name: str) -> None:
    config = preset(name)
    UNET_LAYOUTS[layout].check(config)
    with pytest.raises(ValueError, match="pad=True"):
        UNET_LAYOUTS[layout].check(replace(config, pad=True))


def test_weights_serve_with_and_without() -> None:
    plain = replace(TINY, size=(8, 12))
    weights = filled(plain).state_dict()
    adapted, messages = adapt_weights(weights, plain, PADDED)
    assert adapted == weights
    assert messages == []


def test_models_draw_any_size() -> None:
    model = DiffusionModel(UNet(replace(PADDED, in_channels=1)), DDPM())
    assert model.draw([0], None, steps=1).shape == (1, 1, 9, 13)
    assert model.sized(7, 5).draw([0], None, steps=1).shape == (1, 1, 7, 5)
    with pytest.raises(ValueError, match=r"size=9x13.*model\.pad.*multiples of 4"):
        DiffusionModel(UNet(replace(TINY, size=(8, 12))), DDPM()).sized(9, 13)


def test_tiles_of_any_size_enlarge() -> None:
    model = DiffusionModel(UNet(replace(PADDED, size=(8, 8))), DDPM(), upscale=2)
    diffusion_upscaler(model).with_tiles(Tiles(5, 1)).check()


def test_runs_train_on_any_size() -> None:
    images = Images(digits().read(np.arange(9))[:, :, :7])
    with pytest.raises(ValueError, match=r"7x8 px.*pad=true"):
        small_run().build(images)
    assert small_run(model=replace(small_run().model, pad=True)).build(images).shape == (1, 7, 8)
