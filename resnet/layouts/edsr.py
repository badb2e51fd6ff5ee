"""Weight names of EDSR-PyTorch, the authors' code."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from residual.weights.keymap import Place, Rule, Table, Transform
from resnet.config.edsr import EDSRConfig


def _inward(theirs: list[Tensor], heads: int) -> Tensor:
    weight_off, bias_off, weight_on, bias_on = theirs
    same = _diagonal(bias_on)
    if not (torch.equal(weight_off, same) and torch.equal(weight_on, same) and torch.equal(bias_off, -bias_on)):
        raise ValueError("sub_mean and add_mean of these weights do more than subtract a mean and add it back")
    return bias_on[:, None, None]


def _outward(mean: Tensor, heads: int) -> list[Tensor]:
    bias = mean[:, 0, 0]
    return [_diagonal(bias), -bias, _diagonal(bias), bias]


def _diagonal(bias: Tensor) -> Tensor:
    return torch.eye(len(bias)).to(bias)[:, :, None, None]


MEAN = Transform(_inward, _outward)
"""Their two frozen 1×1 convolutions subtract the mean and add it back. Ours stores the mean once."""

TABLE: Table = {
    "module": [Rule("", "")],
    "block": [Rule("branch.conv1", "body.0"), Rule("branch.conv2", "body.2")],
    "mean": [Rule("", ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"), MEAN)],
}


def places(config: EDSRConfig) -> Iterator[Place]:
    """Every block with its prefix. Theirs numbers the body's last convolution as one more block."""
    yield Place("mean", "mean", "")
    yield Place("module", "head", "head.0")
    for i in range(config.blocks):
        yield Place("block", f"body.branch.block{i}", f"body.{i}")
    yield Place("module", "body.branch.conv", f"body.{config.blocks}")
    for i in range(len(config.upsamplings)):
        yield Place("module", f"tail.up{i}.conv", f"tail.0.{2 * i}")
    yield Place("module", "tail.conv", "tail.1")


def scale_of(theirs: Mapping[str, Tensor], channels: int) -> int | None:
    """The scale of a network with these weights and this width; None if it cannot be determined."""
    shuffled = [len(theirs[name]) // channels for name in ("tail.0.0.weight", "tail.0.2.weight") if name in theirs]
    return {(4,): 2, (9,): 3, (4, 4): 4}.get(tuple(shuffled))
