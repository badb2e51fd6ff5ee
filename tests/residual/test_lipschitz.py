"""Branches with a bounded Lipschitz constant, and the inverse of their blocks."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from residual import Add, Chain, Project, Residual, edsr_branch, lipschitz_branch, norm_bound, preact_basic_branch
from residual.ode import NotConverged, invert
from tests.residual.test_block import filled


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("c_in", "c_out", "groups"), [(3, 5, 1), (4, 2, 1), (4, 6, 2)])
def test_norm_of_a_convolution_is_bounded(c_in: int, c_out: int, groups: int, stride: int) -> None:
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, groups=groups, bias=False).double()
    x = torch.zeros(1, c_in, 6, 6, dtype=torch.double)
    matrix = torch.autograd.functional.jacobian(conv, x).reshape(-1, x.numel())
    norm = torch.linalg.matrix_norm(matrix, 2)
    assert norm <= norm_bound(conv.weight) <= 3 * groups**0.5 * norm


def test_norm_of_a_linear_map_is_exact() -> None:
    weight = torch.diag(torch.tensor([1.0, -3.0, 2.0]))
    assert_close(norm_bound(weight), torch.tensor(3.0))


@pytest.mark.parametrize("act", [nn.ELU, nn.SiLU, lambda: nn.ELU(alpha=2.0)])
def test_distances_stay_within_the_bound(act: type[nn.Module]) -> None:
    branch = lipschitz_branch(filled(edsr_branch(6, act)), 0.8)
    x, y = torch.randn(2, 64, 6, 5, 5)
    y[:32] = x[:32] + 0.01 * y[:32]
    far = (x - y).flatten(1).norm(dim=1)
    with torch.no_grad():
        assert ((branch(x) - branch(y)).flatten(1).norm(dim=1) / far).max() <= 0.8
        ratio = (Residual(branch)(x) - Residual(branch)(y)).flatten(1).norm(dim=1) / far
    assert ratio.min() >= 0.2
    assert ratio.max() <= 1.8


def test_weights_within_their_limit_are_not_changed() -> None:
    branch = edsr_branch(4, nn.ELU)
    for layer in (branch.conv1, branch.conv2):
        nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(branch.conv2.weight)
    before = [branch.conv1.weight.clone(), branch.conv2.weight.clone()]
    lipschitz_branch(branch)
    assert_close([branch.conv1.weight, branch.conv2.weight], before, rtol=0, atol=0)
    branch(torch.randn(1, 4, 3, 3)).sum().backward()  # zero weights have finite gradients
    assert all(p.grad is not None and p.grad.isfinite().all() for p in branch.parameters())


def test_the_inverse_recovers_the_input() -> None:
    blocks = Chain(
        **{f"block{i}": Residual(lipschitz_branch(filled(edsr_branch(4, nn.ELU)))) for i in range(3)}
    ).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.double)
    with torch.no_grad():
        assert_close(invert(blocks, blocks(x)), x, rtol=0, atol=1e-8)
    half = Residual(nn.Tanh(), merge=Add(branch_scale=0.5))
    assert_close(invert(half, half(x)), x, rtol=0, atol=1e-8)


def test_the_inverse_is_differentiable_and_passes_the_embedding() -> None:
    class Product(nn.Module):
        takes_emb = True

        def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
            return (x * emb).sin()

    block = Residual(Product())
    y, emb = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    emb = 0.5 * emb.detach().tanh()
    assert torch.autograd.gradcheck(lambda y, emb: invert(block, y, emb), (y, emb.requires_grad_()))


def test_gradients_of_the_inverse_reach_limited_weights() -> None:
    branch = lipschitz_branch(filled(edsr_branch(2, nn.ELU))).double()
    y = torch.randn(2, 2, 3, 3, dtype=torch.double)
    x = y
    for _ in range(200):
        x = y - branch(x)
    inputs = list(branch.parameters())
    found = torch.autograd.grad(invert(Residual(branch), y).sin().sum(), inputs)
    assert_close(found, torch.autograd.grad(x.sin().sum(), inputs), rtol=0, atol=1e-6)


def test_a_block_without_an_inverse_is_not_inverted() -> None:
    class Opposite(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    with pytest.raises(NotConverged, match=r"inverse of second.*residual.*iterations.*lipschitz_branch"):
        invert(Chain(first=Residual(nn.Tanh()), second=Residual(Opposite())), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("branch", "bound", "named"),
    [
        (edsr_branch(4), 0.0, "bound=0 "),
        (edsr_branch(4), float("inf"), "bound=inf"),
        (preact_basic_branch(4, 4), 0.9, r"norm1: .*BatchNorm2d"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), 0.9, "1: .*Dropout"),
        (Chain(a=Chain(b=nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))), 0.9, r"a\.b: .*reflect"),
        (nn.Bilinear(2, 2, 2), 0.9, "branch: .*Bilinear"),
        (nn.Sequential(nn.ReLU()), 0.9, "no linear map"),
    ],
)
def test_branches_without_a_known_bound_are_refused(branch: nn.Module, bound: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        lipschitz_branch(branch, bound)


def test_blocks_that_cannot_be_inverted_are_refused() -> None:
    with pytest.raises(ValueError, match="shortcut Project"):
        invert(Residual(Project(4, 8), Project(4, 8)), torch.ones(1, 8, 2, 2))
    with pytest.raises(ValueError, match=r"drop is a Dropout.*training"):
        invert(Residual(Chain(act=nn.Tanh(), drop=nn.Dropout(0.1))), torch.ones(1, 8))
