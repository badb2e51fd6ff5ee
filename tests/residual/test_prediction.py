"""Batch norms that are folded into convolutions leave outputs as they are."""

import torch
from torch import nn
from torch.testing import assert_close

from residual import Chain, FrozenBatchNorm2d, Project
from residual.prediction import fold_norms


def test_folded_norms_leave_the_output_as_it_is() -> None:
    first, frozen = nn.BatchNorm2d(6), FrozenBatchNorm2d(4)
    for norm in (first, frozen):
        for value in norm.state_dict().values():
            value.copy_(torch.rand(value.shape) + 0.5)
    net = Chain(a=Project(4, 6, bias=False), b=first, c=nn.ReLU(), d=nn.Conv2d(6, 4, 3), e=frozen).eval()
    x = torch.randn(2, 4, 5, 5)
    expected = net(x)
    fold_norms(net)
    assert [type(node) for node in (net.b, net.e)] == [nn.Identity] * 2
    assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def test_only_norms_after_a_convolution_that_nothing_reads_are_folded() -> None:
    net = Chain(
        a=nn.BatchNorm2d(4), b=nn.Conv2d(4, 4, 1), c=nn.BatchNorm2d(4), d=nn.Conv2d(4, 4, 1), e=nn.BatchNorm2d(4)
    )
    net.eval().c.train()
    net.d.register_forward_hook(lambda *_: None)
    fold_norms(net)
    assert [name for name, node in net.named_children() if isinstance(node, nn.BatchNorm2d)] == ["a", "c", "e"]
