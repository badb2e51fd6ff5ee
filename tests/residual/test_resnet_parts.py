"""Shortcuts, merges, norms and branches of ResNet and related networks."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from residual import (
    Add,
    Chain,
    Concat,
    DropPath,
    FrozenBatchNorm2d,
    Gate,
    NormAct,
    Residual,
    SplitAttention,
    SqueezeExcite,
    ZeroPad,
    basic_branch,
    bottleneck_branch,
    edsr_branch,
    preact_basic_branch,
    preact_block,
    preact_bottleneck_branch,
    projection,
    split_attention_branch,
)
from residual.count import parameters


def images(channels: int = 8, n: int = 2, size: int = 6) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def random(module: nn.Module) -> nn.Module:
    """The module in eval mode, with weights and statistics that are neither zero nor one."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5)
        elif tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.5, 1.5) if name.endswith(("weight", "var")) else nn.init.normal_(tensor)
    return module.eval()


def test_zero_padding_at_the_end_or_on_both_sides() -> None:
    x = images(4)
    end, split = ZeroPad(4, 10, stride=2)(x), ZeroPad(4, 10, stride=2, side="split")(x)
    assert end.shape == split.shape == (2, 10, 3, 3)
    assert_close(end[:, :4], x[:, :, ::2, ::2], rtol=0, atol=0)
    assert_close(split[:, 3:7], x[:, :, ::2, ::2], rtol=0, atol=0)
    assert end[:, 4:].abs().sum() == split[:, :3].abs().sum() == split[:, 7:].abs().sum() == 0
    assert_close(ZeroPad(4, 7, side="split")(x)[:, 1:5], x, rtol=0, atol=0)
    with pytest.raises(ValueError, match="8 channels cannot be padded to 4: project them"):
        ZeroPad(8, 4)


def test_gate_interpolates_shortcut_and_branch() -> None:
    s, f = images(), images().flip(0)
    gate = random(Gate(8))
    share = gate.conv(s).sigmoid()
    assert_close(gate(s, f), share * f + (1 - share) * s)
    nn.init.zeros_(gate.conv.weight)
    for bias, expected in ((-100.0, s), (100.0, f), (0.0, (s + f) / 2)):
        nn.init.constant_(gate.conv.bias, bias)
        assert_close(gate(s, f), expected, rtol=0, atol=1e-6)
    assert set(Gate(8).conv.bias.tolist()) == {-2.0}
    assert set(Gate(8, bias=-1.0).conv.bias.tolist()) == {-1.0}


def test_concatenation_adds_the_branch_channels() -> None:
    x, branch = images(), nn.Conv2d(8, 3, kernel_size=1)
    y = Residual(branch, merge=Concat())(x)
    assert_close(y[:, :8], x, rtol=0, atol=0)
    assert_close(y[:, 8:], branch(x), rtol=0, atol=0)


def test_frozen_batch_norm_equals_batch_norm_in_eval() -> None:
    batch = random(nn.BatchNorm2d(8, eps=1e-3))
    frozen = FrozenBatchNorm2d(8, eps=1e-3)
    state = {key: tensor for key, tensor in batch.state_dict().items() if key != "num_batches_tracked"}
    frozen.load_state_dict(state)
    x = images()
    assert_close(frozen.train()(x), batch(x), rtol=0, atol=0)
    assert list(frozen.parameters()) == []
    assert not torch.equal(FrozenBatchNorm2d(8)(x), FrozenBatchNorm2d(8, eps=0.1)(x))


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    drop, x = DropPath(0.25), torch.ones(4000, 1, 1, 2)
    torch.manual_seed(0)
    y = drop(x)
    assert_close(y[..., 0], y[..., 1], rtol=0, atol=0)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(x) is x
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"probability={wrong} of dropping a branch must be at least 0 and"):
            DropPath(wrong)


def test_squeeze_and_excitation_is_a_gate_per_channel() -> None:
    se, x = random(SqueezeExcite(32, reduction=4)), images(32)
    hidden = F.relu(x.mean((2, 3)) @ se.fc1.weight[:, :, 0, 0].T + se.fc1.bias)
    gates = torch.sigmoid(hidden @ se.fc2.weight[:, :, 0, 0].T + se.fc2.bias)
    assert_close(se(x), x * gates[:, :, None, None])


@pytest.mark.parametrize(("channels", "hidden"), [(64, 8), (256, 16), (192, 16), (176, 8), (16, 8)])
def test_squeezed_width_is_rounded(channels: int, hidden: int) -> None:
    assert SqueezeExcite(channels, 16).fc1.out_channels == hidden


@pytest.mark.parametrize("radix", [1, 2, 3])
def test_split_attention_weights_the_splits(radix: int) -> None:
    module, x = random(SplitAttention(6, radix=radix)), images(6, size=9)
    splits = F.relu(module.bn0(module.conv(x))).chunk(radix, dim=1)
    logits = module.fc2(F.relu(module.bn1(module.fc1(sum(splits).mean((2, 3), keepdim=True)))))
    shares = torch.stack(logits.chunk(radix, dim=1)).softmax(dim=0)
    assert_close(module(x), sum(share * split for share, split in zip(shares, splits, strict=True)))
    assert module.conv.groups == radix


def test_the_hidden_width_of_split_attention_is_at_least_32() -> None:
    assert [SplitAttention(c).fc1.out_channels for c in (8, 64, 128)] == [32, 32, 64]
    assert SplitAttention(64, radix=4).fc1.out_channels == 64


# Each branch against the same in torch's own functions, with the names that its published weights have.
def basic(b: Chain, x: Tensor) -> Tensor:
    return b.bn2(b.conv2(F.relu(b.bn1(b.conv1(x)))))


def bottleneck(b: Chain, x: Tensor) -> Tensor:
    return b.bn3(b.conv3(F.relu(b.bn2(b.conv2(F.relu(b.bn1(b.conv1(x))))))))


def split(b: Chain, x: Tensor) -> Tensor:
    return b.bn3(b.conv3(F.avg_pool2d(b.conv2(F.relu(b.bn1(b.conv1(x)))), 3, 2, 1)))


def preact_basic(b: Chain, x: Tensor) -> Tensor:
    return b.conv2(F.relu(b.norm2(b.conv1(F.relu(b.norm1(x))))))


def preact_bottleneck(b: Chain, x: Tensor) -> Tensor:
    return b.conv3(F.relu(b.norm3(b.conv2(F.relu(b.norm2(b.conv1(F.relu(b.norm1(x)))))))))


BRANCHES: list[tuple[Chain, Callable[[Chain, Tensor], Tensor]]] = [
    (basic_branch(8, 12, 2), basic),
    (bottleneck_branch(8, 4, 12, 2, groups=2), bottleneck),
    (bottleneck_branch(8, 4, 12, 2, stride_in="1x1"), bottleneck),
    (split_attention_branch(8, 4, 12, 2), split),
    (preact_basic_branch(8, 12, 2, dropout=0.5), preact_basic),
    (preact_bottleneck_branch(8, 4, 12, 2, stride_in="1x1"), preact_bottleneck),
    (preact_bottleneck_branch(8, 4, 12, 2), preact_bottleneck),
]


@pytest.mark.parametrize(("branch", "written_out"), BRANCHES)
def test_branch_equals_its_formula(branch: Chain, written_out: Callable[[Chain, Tensor], Tensor]) -> None:
    x = images(8, size=9)
    random(branch)
    assert branch(x).shape == (2, 12, 5, 5)
    assert_close(branch(x), written_out(branch, x), rtol=0, atol=0)
    assert not [
        key
        for key, p in branch.named_parameters()
        if key.startswith("conv") and key.endswith("bias") and "fc" not in key and "bn" not in key
    ]


def test_position_of_the_stride() -> None:
    def strides(branch: Chain) -> list[int]:
        return [getattr(branch, f"conv{i}").stride[0] for i in (1, 2, 3)]

    for build in (bottleneck_branch, preact_bottleneck_branch):
        assert strides(build(8, 4, 8, 2)) == [1, 2, 1]
        assert strides(build(8, 4, 8, 2, stride_in="1x1")) == [2, 1, 1]


def test_weight_count_of_a_basic_branch() -> None:
    """9 c_in c_out + 9 c_out², against c_in w + 9 w² + w c_out for a bottleneck, without the norms."""
    assert parameters(basic_branch(64, 64)) == 2 * 9 * 64**2 + 2 * 2 * 64
    assert parameters(bottleneck_branch(256, 64, 256)) == 69_632 + 2 * (64 + 64 + 256)


def test_norm_and_activation_factories_are_used() -> None:
    group = partial(nn.GroupNorm, 2)
    for build in (basic_branch, preact_basic_branch, partial(bottleneck_branch, 8), partial(split_attention_branch, 8)):
        modules = [type(module) for module in build(8, 8, norm=group, act=nn.SiLU).modules()]
        assert nn.GroupNorm in modules
        assert nn.SiLU in modules
        assert nn.BatchNorm2d not in modules
        assert nn.ReLU not in modules


@pytest.mark.parametrize("build", [basic_branch, partial(bottleneck_branch, 8), partial(preact_bottleneck_branch, 8)])
def test_the_second_norm_may_take_the_embedding(build: Callable[..., Chain]) -> None:
    branch = build(8, 8, norm=partial(nn.GroupNorm, 2), norm2=partial(NormAct, emb_channels=3, act=None))
    x, emb = images(), torch.randn(2, 3)
    random(branch)
    assert branch.takes_emb
    assert not torch.allclose(branch(x, emb), branch(x, emb.flip(0)))
    block = preact_block(branch, projection(8, 8)) if "norm1" in dict(branch.named_children()) else Residual(branch)
    assert block(x, emb).shape == x.shape


def test_preact_block_shares_its_activation_with_a_projection() -> None:
    x, shortcut = images(), projection(8, 12, 2)
    identity, shared = preact_block(preact_basic_branch(8, 8)), preact_block(preact_basic_branch(8, 12, 2), shortcut)
    random(identity)
    random(shared)
    assert_close(identity(x), x + identity.branch(x), rtol=0, atol=0)
    h = F.relu(shared.norm1(x))
    assert_close(shared(x), shortcut.conv(h) + shared.sum.branch(h), rtol=0, atol=0)


def test_projections_with_norm_and_pool() -> None:
    x = images()
    plain, normed = random(projection(8, 12, 2)), random(projection(8, 12, 2, norm=nn.BatchNorm2d))
    assert_close(plain(x), F.conv2d(x, plain.conv.weight, stride=2), rtol=0, atol=0)
    assert_close(normed(x), normed.norm(F.conv2d(x, normed.conv.weight, stride=2)), rtol=0, atol=0)
    pooled = random(projection(8, 12, 2, pool=nn.AvgPool2d(2)))
    assert_close(pooled(x), F.conv2d(F.avg_pool2d(x, 2), pooled.conv.weight), rtol=0, atol=0)


def test_edsr_branch_has_no_norm() -> None:
    branch, x = edsr_branch(8), images()
    assert_close(branch(x), branch.conv2(F.relu(branch.conv1(x))), rtol=0, atol=0)
    assert parameters(branch) == 2 * (9 * 64 + 8)
    y = Residual(branch, merge=Add(branch_scale=0.1))(x)
    assert_close(y, x + 0.1 * branch(x))
    assert any(isinstance(module, nn.SiLU) for module in edsr_branch(8, act=nn.SiLU).modules())


def test_then_appends_nodes() -> None:
    branch, x = basic_branch(8, 8), images()
    longer = branch.then(se=SqueezeExcite(8), drop_path=None)
    assert list(dict(longer.named_children())) == ["conv1", "bn1", "act1", "conv2", "bn2", "se"]
    assert list(dict(branch.named_children()))[-1] == "bn2"
    random(longer)
    assert_close(longer(x), longer.se(branch(x)), rtol=0, atol=0)
