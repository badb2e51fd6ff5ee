"""Norms, embeddings, attention, resampling, counting."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from residual import (
    AveragePool,
    CrossAttention,
    LabelEmbedding,
    Nearest,
    NearestConv,
    NormAct,
    Residual,
    SelfAttention,
    SinusoidalEmbedding,
    StridedConv,
    attention_branch,
    group_count,
    head_count,
    native,
)
from residual.attention import attend
from residual.count import multiply_adds, parameters


@given(st.integers(1, 600), st.integers(1, 64))
def test_group_count_is_the_largest_divisor(channels: int, groups: int) -> None:
    count = group_count(channels, groups)
    assert channels % count == 0
    assert count <= groups
    assert not any(channels % more == 0 for more in range(count + 1, min(channels, groups) + 1))


def test_multiples_of_32_have_32_groups() -> None:
    assert {group_count(c) for c in range(32, 1025, 32)} == {32}
    assert (group_count(48), group_count(80), group_count(7)) == (24, 20, 7)


def test_groups_of_at_least_four_channels_equal_edms_rule() -> None:
    widths = range(4, 513, 4)
    assert [group_count(c, group_channels=4) for c in widths if c <= 128] == [c // 4 for c in widths if c <= 128]
    assert group_count(3, group_channels=4) == 1


def test_nonpositive_group_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="channels=0, groups=32 and group_channels=1 must be at least 1"):
        group_count(0)


def test_norm_act_without_embedding_equals_group_norm_and_silu() -> None:
    node, x = NormAct(8, groups=4, eps=1e-3), torch.randn(2, 8, 3, 3)
    nn.init.normal_(node.weight)
    assert_close(node(x), F.silu(F.group_norm(x, 4, node.weight, node.bias, 1e-3)))
    assert set(node.state_dict()) == {"weight", "bias"}
    assert_close(NormAct(8, act=None)(x), F.group_norm(x, 8))
    assert_close(NormAct(8, act=nn.ReLU)(x), F.group_norm(x, 8).relu())


def test_norm_act_scales_then_shifts() -> None:
    node, x, emb = NormAct(8, 5, groups=4, act=None), torch.randn(2, 8, 3, 3), torch.randn(2, 5)
    scale, shift = node.project(emb).chunk(2, dim=1)
    expected = F.group_norm(x, 4) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    assert_close(node(x, emb), expected)


@pytest.mark.parametrize(("convention", "flip", "shift"), [("ddpm", False, 1), ("adm", True, 0)])
def test_timestep_conventions_equal_the_published_ones_exactly(convention, flip, shift) -> None:
    t = torch.tensor([0, 1, 500, 999])
    expected = get_timestep_embedding(t, 128, flip_sin_to_cos=flip, downscale_freq_shift=shift)
    assert_close(SinusoidalEmbedding(128, convention)(t), expected, rtol=0, atol=0)
    assert convention in repr(SinusoidalEmbedding(128, convention))


def test_timestep_features_stay_float32_in_a_half_precision_network() -> None:
    node, t = SinusoidalEmbedding(64), torch.tensor([999.5], dtype=torch.float64)
    assert node.bfloat16()(t).dtype == torch.float32
    assert node(t)[0, 0].item() == pytest.approx(math.sin(999.5), abs=1e-6)


@pytest.mark.parametrize("channels", [5, 2])
def test_odd_or_small_timestep_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"even number of channels, at least 4, not {channels}"):
        SinusoidalEmbedding(channels)


def test_null_label_is_an_added_row() -> None:
    with_null, without = LabelEmbedding(10, 4), LabelEmbedding(10, 4, null=False)
    assert (with_null.num_embeddings, with_null.null) == (11, 10)
    assert (without.num_embeddings, without.null) == (10, None)
    label = torch.tensor([0, 10])
    assert_close(with_null(label), with_null.weight[label], rtol=0, atol=0)
    with pytest.raises(ValueError, match="classes=0"):
        LabelEmbedding(0, 4)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_equals_softmax_of_scaled_products(heads: int) -> None:
    node, x = SelfAttention(8, heads=heads), torch.randn(2, 8, 3, 5)
    nn.init.normal_(node.out.weight)
    q, k, v = node.qkv(x).flatten(2).reshape(2, 3, heads, 8 // heads, 15).unbind(1)
    weights = torch.einsum("bndi,bndj->bnij", q, k).div((8 // heads) ** 0.5).softmax(dim=-1)
    h = torch.einsum("bnij,bndj->bndi", weights, v).reshape(2, 8, 3, 5)
    assert_close(node(x), node.out(h), rtol=1e-5, atol=1e-5)
    assert f"heads={heads}" in repr(node)


@pytest.mark.parametrize("sharpness", [1.0, 6.0])
@pytest.mark.parametrize(
    ("side", "kernels", "dtype"),
    [(8, True, torch.float32), (8, False, torch.bfloat16), (9, True, torch.bfloat16)],
    ids=["short", "off", "long"],
)
def test_attention_trained_in_bf16_is_as_accurate_for_few_pixels(
    side: int, kernels: bool, dtype: torch.dtype, sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = (sharpness * torch.randn(2, 2, side**2, 16).bfloat16() for _ in range(3))
    k = torch.where(torch.rand(2, 2, side**2, 1) < 0.5, q, k)  # sharp where a key equals its query
    calls, usual = list[torch.dtype](), F.scaled_dot_product_attention

    def gradients(attention: Callable[..., Tensor], of: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(of).requires_grad_() for tensor in (q, k, v)]
        y = attention(*leaves)
        return [each.double() for each in (y, *torch.autograd.grad(y.square().sum(), leaves))]

    def counted(*inputs: Tensor) -> Tensor:
        calls.append(inputs[0].dtype)
        return usual(*inputs)

    monkeypatch.setattr(native, "library", object() if kernels else None)
    exact, plain = gradients(usual, torch.float64), gradients(usual, torch.bfloat16)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for found, theirs, expected in zip(gradients(attend, torch.bfloat16), plain, exact, strict=True):
        assert (found - expected).norm() <= 1.1 * (theirs - expected).norm()
    assert calls == [dtype]


@pytest.mark.parametrize("heads", [1, 4])
def test_cross_attention_equals_softmax_over_the_items_that_exist(heads: int) -> None:
    node, x, context = CrossAttention(8, 6, heads=heads), torch.randn(3, 8, 3, 5), torch.randn(3, 4, 6)
    assert_close(node(x, context), torch.zeros_like(x), rtol=0, atol=0)
    nn.init.normal_(node.out.weight)
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    q = node.q(x).flatten(2).reshape(3, heads, 8 // heads, 15)
    k, v = node.kv(context).mT.reshape(3, 2, heads, 8 // heads, 4).unbind(1)
    scores = torch.einsum("bndi,bndj->bnij", q, k).div((8 // heads) ** 0.5)
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1).nan_to_num()
    h = torch.einsum("bnij,bndj->bndi", weights, v).reshape(3, 8, 3, 5)
    assert_close(node(x, context, mask), node.out(h), rtol=1e-5, atol=1e-5)
    assert_close(node(x, context, mask)[:1], node(x[:1], context[:1]), rtol=1e-5, atol=1e-5)
    assert f"heads={heads}" in repr(node)


def test_padding_has_no_effect_and_no_gradient() -> None:
    node, x = CrossAttention(8, 6, head_channels=4), torch.randn(2, 8, 3, 5)
    nn.init.normal_(node.out.weight)
    context, mask = torch.randn(2, 4, 6, requires_grad=True), torch.tensor([[True, True, False, False], [False] * 4])
    y = node(x, context, mask)
    assert_close(node(x, torch.where(mask[:, :, None], context, 100.0), mask), y, rtol=0, atol=0)
    y.square().sum().backward()
    assert context.grad is not None
    assert context.grad.isfinite().all()
    assert not context.grad[~mask].any()
    with pytest.raises(ValueError, match="context_channels=0"):
        CrossAttention(8, 0)


def test_new_attention_block_equals_its_shortcut() -> None:
    x = torch.randn(2, 8, 3, 5)
    assert_close(Residual(attention_branch(8, SelfAttention(8)))(x), x, rtol=0, atol=0)


def test_the_norm_before_attention_has_no_activation() -> None:
    x = torch.randn(2, 8, 3, 5)
    assert_close(attention_branch(8, nn.Identity())(x), F.group_norm(x, 8))


def test_heads_by_count_or_by_width() -> None:
    assert (head_count(64), head_count(64, heads=4), head_count(64, head_channels=16)) == (1, 4, 4)
    with pytest.raises(ValueError, match="heads=3 does not divide 8 channels; one of: 1, 2, 4, 8"):
        head_count(8, heads=3)
    with pytest.raises(ValueError, match="head_channels=5 does not divide 8 channels"):
        SelfAttention(8, head_channels=5)
    with pytest.raises(ValueError, match="give heads or head_channels, not both"):
        head_count(8, heads=2, head_channels=4)


def test_pooling_inverts_nearest() -> None:
    x = torch.randn(2, 3, 4, 6)
    assert_close(AveragePool()(Nearest()(x)), x)
    assert_close(Nearest()(x)[:, :, 1::2, 1::2], x, rtol=0, atol=0)


def test_strided_convolution_pads_as_published() -> None:
    x = torch.randn(1, 3, 6, 4)
    both, end = StridedConv(3, 5), StridedConv(3, 5, padding="end")
    assert_close(both(x), F.conv2d(x, both.weight, both.bias, stride=2, padding=1), rtol=0, atol=0)
    shifted = F.conv2d(F.pad(x, (0, 1, 0, 1)), end.weight, end.bias, stride=2)
    assert_close(end(x), shifted, rtol=0, atol=0)
    assert end(x).shape == both(x).shape == (1, 5, 3, 2)


def test_nearest_convolution_equals_nearest_then_convolution() -> None:
    node, x = NearestConv(3, 5), torch.randn(1, 3, 2, 2)
    assert_close(node(x), F.conv2d(Nearest()(x), node.weight, node.bias, padding=1), rtol=0, atol=0)


def test_counts_are_exact() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), SelfAttention(8))
    assert parameters(net) == (27 + 1) * 8 + (8 + 1) * 24 + (8 + 1) * 8
    pixels = 16
    convolutions = pixels * (27 * 8 + 8 * 24 + 8 * 8)
    attention = 2 * pixels * pixels * 8
    assert multiply_adds(net, torch.empty(1, 3, 4, 4)) == convolutions + attention
