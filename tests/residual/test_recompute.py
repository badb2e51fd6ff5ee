"""A recomputed chain equals a plain one in outputs, gradients and running statistics."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from residual import AddEmbedding, Chain
from residual.recompute import Recomputed


def nodes() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5))
    return {"block": block, "emb": AddEmbedding(3, 4), "norm": nn.BatchNorm2d(3)}


def step(chain: Chain) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of parameters and input, and the state, after one forward and backward pass."""
    torch.manual_seed(1)
    x, emb = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    chain(x, emb).pow(3).sum().backward()
    assert x.grad is not None
    assert emb.grad is not None
    gradients = {name: p.grad for name, p in chain.named_parameters() if p.grad is not None}
    return gradients | {"x": x.grad, "e": emb.grad}, chain.state_dict()


@pytest.mark.parametrize("copied", [False, True])
def test_a_recomputed_chain_equals_a_plain_one(copied: bool) -> None:
    recomputed = Recomputed(**nodes())
    if copied:
        recomputed = copy.deepcopy(recomputed)
    for found, expected in zip(step(recomputed), step(Chain(**nodes())), strict=True):
        assert len(found) > 4
        assert_close(found, expected, rtol=0, atol=0)
    assert recomputed.get_submodule("norm").num_batches_tracked == 1


def test_then_keeps_the_kind() -> None:
    chain = Recomputed(a=nn.Tanh()).then(b=nn.Tanh())
    assert type(chain) is Recomputed
    assert [name for name, _ in chain.named_children()] == ["a", "b"]
