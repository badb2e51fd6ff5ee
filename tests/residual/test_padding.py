"""What convolutions see beyond the image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from residual import NearestConv, StridedConv
from residual.block import PaddedConv2d, extend, set_borders
from unet import UNet, UNetConfig

MODES = {"reflect": ("reflect", "reflect"), "periodic": ("wrap", "wrap"), "periodic_width": ("reflect", "wrap")}
"""above and below, left and right"""
TINY = UNetConfig(
    in_channels=1, out_channels=1, size=(8, 12), base_channels=8, channel_multipliers=(1, 1), blocks_per_level=1
)


@pytest.mark.parametrize("borders", MODES)
def test_images_continue_as_numpy_continues_them(borders) -> None:
    x, vertical, horizontal = torch.randn(2, 3, 5, 4), *MODES[borders]
    expected = np.pad(np.pad(x, ((0, 0), (0, 0), (3, 1), (0, 0)), vertical), ((0, 0),) * 3 + ((1, 2),), horizontal)
    assert_close(extend(x, (1, 2, 3, 1), borders), torch.from_numpy(expected))


@pytest.mark.parametrize("borders", MODES)
@pytest.mark.parametrize("kind", ["3x3", "strided", "strided at the end", "doubling"])
def test_convolutions_see_the_continued_image(kind, borders) -> None:
    conv = {
        "3x3": lambda: PaddedConv2d(2, 3, 3, padding=1),
        "strided": lambda: StridedConv(2, 3),
        "strided at the end": lambda: StridedConv(2, 3, padding="end"),
        "doubling": lambda: NearestConv(2, 3),
    }[kind]()
    set_borders(conv, borders)
    x = torch.randn(2, 2, 6, 4)
    seen = F.interpolate(x, scale_factor=2.0, mode="nearest") if kind == "doubling" else x
    amounts = (0, 1, 0, 1) if kind == "strided at the end" else (1, 1, 1, 1)
    expected = F.conv2d(extend(seen, amounts, borders), conv.weight, conv.bias, conv.stride)
    assert_close(conv(x), expected)


@pytest.mark.parametrize(
    ("borders", "resample"),
    [("zeros", "conv"), ("reflect", "block"), ("periodic_width", "conv_same"), ("periodic", "conv")],
)
def test_a_periodic_network_moves_with_its_images(borders, resample) -> None:
    """An image that leaves on one side comes in on the other: the output does the same."""
    net = UNet(replace(TINY, padding=borders, resample=resample)).double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, t = torch.randn(1, 1, 8, 12).double(), torch.tensor([3.0])
    for axis, periodic in ((2, borders == "periodic"), (3, borders in ("periodic", "periodic_width"))):
        moved = net(x.roll(2, axis), t).roll(-2, axis)
        assert torch.allclose(moved, net(x, t), atol=1e-9) == periodic


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"padding": "periodic", "resample": "block_fir"}, "padding='periodic'.*block_fir"),
        ({"padding": "reflect", "input_skips": True}, "padding='reflect'.*input_skips"),
        ({"padding": "reflect", "size": (8, 2)}, r"padding='reflect'.*size=\(8, 2\)"),
        ({"padding": "periodic_width", "size": (2, 8)}, r"padding='periodic_width'.*size=\(2, 8\)"),
    ],
)
def test_padding_that_cannot_be_is_refused(changes, named) -> None:
    with pytest.raises(ValueError, match=named):
        replace(TINY, **changes)
    assert replace(TINY, padding="periodic", size=(2, 2)).padding == "periodic"
    assert replace(TINY, padding="periodic_width", size=(8, 2)).padding == "periodic_width"


def test_other_projects_have_zeros_only() -> None:
    with pytest.raises(ValueError, match="padding='periodic'"):
        UNet(replace(TINY, padding="periodic")).export_weights("diffusers")
