"""Residual blocks and chains."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from residual import Add, AddEmbedding, Chain, Identity, Project, Residual, unet_branch, unet_shortcut
from residual.resample import AveragePool, Nearest


def filled(module: nn.Module) -> nn.Module:
    """Sets random weights, so that no zero weight hides an error."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    return module


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.takes_emb = True

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return x * emb


def test_block_equals_sum_of_its_parts() -> None:
    block = Residual(Chain(emb=Scaled(), act=nn.Tanh()), nn.Linear(3, 3))
    x, emb = torch.randn(2, 3), torch.randn(2, 3)
    s, f = block.parts(x, emb)
    assert_close(s, block.shortcut(x), rtol=0, atol=0)
    assert_close(f, torch.tanh(x * emb), rtol=0, atol=0)
    assert_close(block(x, emb), s + f, rtol=0, atol=0)


def test_shortcut_and_merge_default_to_identity_and_sum() -> None:
    block = Residual(nn.Linear(3, 3))
    assert isinstance(block.shortcut, Identity)
    assert isinstance(block.merge, Add)


def test_merge_receives_shortcut_and_branch() -> None:
    class Concat(nn.Module):
        def forward(self, s: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
            return torch.cat([s, f], dim=1)

    x = torch.randn(2, 3)
    assert_close(Residual(nn.Tanh(), merge=Concat())(x), torch.cat([x, x.tanh()], dim=1), rtol=0, atol=0)


def test_gradient_contains_the_identity() -> None:
    """dL/dx = dL/dy (I + J), with J the Jacobian of the branch (He et al. 2016, eq. 5)."""
    block = filled(Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))).double()
    x, g = torch.randn(4, dtype=torch.double), torch.randn(4, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(block.branch, x)
    whole = torch.autograd.functional.jacobian(block, x)
    assert_close(g @ whole, g + g @ jacobian, rtol=1e-10, atol=1e-12)


def test_emb_is_passed_only_to_nodes_that_take_it() -> None:
    chain = Chain(first=nn.Tanh(), second=Scaled(), third=Residual(Scaled()), fourth=Residual(nn.Tanh()))
    x, emb = torch.randn(2, 3), torch.randn(2, 3)
    h = x.tanh() * emb
    h = h + h * emb
    assert chain.takes_emb
    assert_close(chain(x, emb), h + h.tanh())
    assert not Chain(first=nn.Tanh()).takes_emb


def test_absent_nodes_are_left_out() -> None:
    assert [name for name, _ in Chain(a=nn.Tanh(), b=None, c=nn.ReLU()).named_children()] == ["a", "c"]


@pytest.mark.parametrize("name", ["half", "type", "forward", "training"])
def test_a_node_cannot_take_the_name_of_a_module_attribute(name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        Chain(**{name: nn.Tanh()})


def test_add_scales_both_parts_and_activates_after() -> None:
    s, f = torch.randn(5), torch.randn(5)
    assert_close(Add()(s, f), s + f, rtol=0, atol=0)
    assert_close(Add(scale=0.5)(s, f), 0.5 * s + f)
    assert_close(Add(branch_scale=0.1)(s, f), s + 0.1 * f)
    assert_close(Add(nn.ReLU())(s, f), (s + f).relu())
    assert repr(Add(scale=0.5)).startswith("Add(")
    assert "scale=0.5" in repr(Add(scale=0.5))


def test_scaling_by_root_half_keeps_the_variance() -> None:
    torch.manual_seed(0)
    s, f = torch.randn(2, 200_000)
    assert Add(scale=0.5**0.5, branch_scale=0.5**0.5)(s, f).var().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
def test_new_block_equals_its_shortcut(conditioning: str) -> None:
    block = Residual(unet_branch(8, 8, 4, conditioning=conditioning))
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    assert_close(block(x, emb), x, rtol=0, atol=0)


def reference_branch(branch: nn.Module, x: torch.Tensor, emb: torch.Tensor, conditioning: str) -> torch.Tensor:
    """The published formulas (Ho et al. 2020; Dhariwal and Nichol 2021)."""
    silu, norm = nn.functional.silu, nn.functional.group_norm
    n1, n2 = branch.norm1, branch.norm2
    h = branch.conv1(silu(norm(x, n1.num_groups, n1.weight, n1.bias, n1.eps)))
    if conditioning == "add":
        h = h + branch.emb.project(emb)[:, :, None, None]
        h = norm(h, n2.num_groups, n2.weight, n2.bias, n2.eps)
    else:
        scale, shift = branch.norm2.project(emb)[:, :, None, None].chunk(2, dim=1)
        h = norm(h, n2.num_groups, n2.weight, n2.bias, n2.eps) * (1 + scale) + shift
    return branch.conv2(silu(h))


@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
def test_branch_equals_the_published_formula(conditioning: str) -> None:
    branch = filled(unet_branch(8, 12, 4, conditioning=conditioning))
    x, emb = torch.randn(2, 8, 4, 6), torch.randn(2, 4)
    assert_close(branch(x, emb), reference_branch(branch, x, emb, conditioning), rtol=1e-5, atol=1e-5)


def test_branch_without_embedding_takes_no_emb() -> None:
    block = filled(Residual(unet_branch(8, 8)))
    assert not block.takes_emb
    assert block(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


@pytest.mark.parametrize(("resample", "side"), [(AveragePool, 2), (Nearest, 8)])
def test_branch_and_shortcut_resample_to_the_same_size(resample: type[nn.Module], side: int) -> None:
    block = Residual(unet_branch(8, 12, 4, resample=resample()), unet_shortcut(8, 12, resample()))
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    assert block(x, emb).shape == (2, 12, side, side)
    assert_close(block(x, emb), block.shortcut.project(resample()(x)))


def test_dropout_drops_in_training_only() -> None:
    branch = filled(unet_branch(8, 8, 4, dropout=0.5))
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    assert not torch.equal(branch(x, emb), branch(x, emb))
    branch.eval()
    assert_close(branch(x, emb), branch(x, emb), rtol=0, atol=0)


def test_shortcut_has_only_the_nodes_it_needs() -> None:
    assert isinstance(unet_shortcut(8, 8), Identity)
    assert isinstance(unet_shortcut(8, 4), Project)
    assert [name for name, _ in unet_shortcut(8, 8, AveragePool()).named_children()] == ["resample"]


def test_project_is_a_1x1_convolution() -> None:
    x = torch.randn(2, 3, 4, 4)
    project = Project(3, 5, stride=2, bias=False)
    assert project.bias is None
    assert_close(project(x), torch.einsum("oc,bchw->bohw", project.weight[:, :, 0, 0], x[:, :, ::2, ::2]))


def test_add_embedding_adds_one_number_per_channel() -> None:
    node, x, emb = AddEmbedding(3, 4), torch.randn(2, 3, 2, 2), torch.randn(2, 4)
    assert_close(node(x, emb), x + (emb @ node.project.weight.T + node.project.bias)[:, :, None, None])
