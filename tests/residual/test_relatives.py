"""The merges and branches of DenseNet, Highway networks and EDSR."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from residual import Add, Concat, Gate, Residual, dense_branch, edsr_branch, highway_branch
from residual.count import parameters


def test_dense_layer_keeps_its_input_and_adds_growth_channels() -> None:
    block, x = Residual(dense_branch(8, 4), merge=Concat()), torch.randn(2, 8, 5, 6)
    y = block(x)
    assert y.shape == (2, 12, 5, 6)
    assert_close(y[:, :8], x, rtol=0, atol=0)
    assert_close(y[:, 8:], block.branch(x), rtol=0, atol=0)


def test_dense_bottleneck_narrows_the_middle() -> None:
    plain, narrow = dense_branch(48, 12), dense_branch(48, 12, bottleneck=24)
    assert parameters(plain) == 2 * 48 + 48 * 12 * 9
    assert parameters(narrow) == 2 * 48 + 48 * 24 + 2 * 24 + 24 * 12 * 9
    assert [name for name, _ in plain.named_children()] == ["norm1", "act1", "conv1"]
    assert [name for name, _ in narrow.named_children()] == ["norm1", "act1", "conv1", "norm2", "act2", "conv2"]


def test_norm_and_activation_factories_are_used() -> None:
    for bottleneck, widths in ((None, [8]), (16, [8, 16])):
        branch = dense_branch(8, 4, bottleneck, norm=lambda channels: nn.GroupNorm(4, channels), act=nn.SiLU)
        assert [m.num_channels for m in branch.modules() if isinstance(m, nn.GroupNorm)] == widths
        assert sum(isinstance(m, nn.SiLU) for m in branch.modules()) == len(widths)
    for branch in (edsr_branch(4, nn.SiLU), highway_branch(4, nn.SiLU)):
        assert [type(m) for m in branch.modules() if not list(m.parameters())] == [nn.SiLU]


@pytest.mark.parametrize(("bias", "expected"), [(-1e4, "shortcut"), (1e4, "branch")])
def test_saturated_gate_passes_one_path(bias: float, expected: str) -> None:
    block, x = Residual(highway_branch(6), merge=Gate(6, bias)), torch.randn(2, 6, 5, 5)
    s, f = block.parts(x)
    assert_close(block(x), s if expected == "shortcut" else f, rtol=0, atol=0)


def test_the_gate_is_computed_from_the_shortcut() -> None:
    block, x = Residual(highway_branch(6), merge=Gate(6)), torch.randn(2, 6, 5, 5)
    s, f = block.parts(x)
    t = torch.sigmoid(block.merge.conv(x))
    assert_close(block(x), t * f + (1 - t) * s)
    assert_close(block.merge.conv.bias, torch.full((6,), -2.0), rtol=0, atol=0)


def test_edsr_block_has_no_norm_and_scales_its_branch() -> None:
    block, x = Residual(edsr_branch(6), merge=Add(branch_scale=0.1)), torch.randn(2, 6, 5, 5)
    first, act, second = block.branch.children()
    assert_close(block(x), x + 0.1 * second(act(first(x))))
    assert parameters(block) == 2 * (6 * 6 * 9 + 6)
