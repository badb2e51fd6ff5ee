"""Branches of ResNet and related networks. Modules have the names of the published weights.

`norm(channels)` and `act()` build the norms and the activations. Convolutions followed by a norm have no bias.
"""

from collections.abc import Callable
from typing import Literal

from torch import nn

from residual.block import Chain, Project, Residual
from residual.norm import Dropout
from residual.squeeze import SplitAttention

Norm = Callable[[int], nn.Module]
Act = Callable[[], nn.Module]
StridePlace = Literal["3x3", "1x1"]


def conv3x3(c_in: int, c_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3×3 convolution without bias, padded so that only the stride changes the size."""
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, groups=groups, bias=False)


def basic_branch(
    c_in: int,
    c_out: int,
    stride: int = 1,
    *,
    norm: Norm = nn.BatchNorm2d,
    norm2: Norm | None = None,
    act: Act = nn.ReLU,
) -> Chain:
    """Two 3×3 convolutions (He et al. 2015, figure 5, left). `norm2` builds the second norm (default: `norm`)."""
    return Chain(
        conv1=conv3x3(c_in, c_out, stride),
        bn1=norm(c_out),
        act1=act(),
        conv2=conv3x3(c_out, c_out),
        bn2=(norm2 or norm)(c_out),
    )


def bottleneck_branch(
    c_in: int,
    width: int,
    c_out: int,
    stride: int = 1,
    *,
    groups: int = 1,
    stride_in: StridePlace = "3x3",
    norm: Norm = nn.BatchNorm2d,
    norm2: Norm | None = None,
    act: Act = nn.ReLU,
) -> Chain:
    """1×1 convolution to `width` channels, 3×3, 1×1 to `c_out` (He et al. 2015, figure 5, right; ResNeXt with groups).

    `stride_in` is the convolution with the stride: the first 1×1 (the paper, “v1”) or the 3×3 (torchvision and timm,
    “v1.5”). Weights load into both, but weights trained under one are wrong under the other.
    """
    first, second = _strides(stride, stride_in)
    return Chain(
        conv1=Project(c_in, width, first, bias=False),
        bn1=norm(width),
        act1=act(),
        conv2=conv3x3(width, width, second, groups),
        bn2=(norm2 or norm)(width),
        act2=act(),
        conv3=Project(width, c_out, bias=False),
        bn3=norm(c_out),
    )


def split_attention_branch(
    c_in: int,
    width: int,
    c_out: int,
    stride: int = 1,
    *,
    norm: Norm = nn.BatchNorm2d,
    act: Act = nn.ReLU,
) -> Chain:
    """ResNeSt's bottleneck (Zhang et al. 2020): split attention instead of the 3×3 convolution.

    A stride is realised by averaging 3×3 pixels after the attention.
    """
    return Chain(
        conv1=Project(c_in, width, bias=False),
        bn1=norm(width),
        act1=act(),
        conv2=SplitAttention(width, norm=norm, act=act),
        pool=nn.AvgPool2d(3, stride, padding=1) if stride > 1 else None,
        conv3=Project(width, c_out, bias=False),
        bn3=norm(c_out),
    )


def preact_basic_branch(
    c_in: int,
    c_out: int,
    stride: int = 1,
    *,
    dropout: float = 0.0,
    norm: Norm = nn.BatchNorm2d,
    norm2: Norm | None = None,
    act: Act = nn.ReLU,
) -> Chain:
    """Two convolutions, each after norm and activation (He et al. 2016; wide ResNets: Zagoruyko 2016, with dropout)."""
    return Chain(
        norm1=norm(c_in),
        act1=act(),
        conv1=conv3x3(c_in, c_out, stride),
        norm2=(norm2 or norm)(c_out),
        act2=act(),
        dropout=Dropout(dropout) if dropout else None,
        conv2=conv3x3(c_out, c_out),
    )


def preact_bottleneck_branch(
    c_in: int,
    width: int,
    c_out: int,
    stride: int = 1,
    *,
    stride_in: StridePlace = "3x3",
    norm: Norm = nn.BatchNorm2d,
    norm2: Norm | None = None,
    act: Act = nn.ReLU,
) -> Chain:
    """The bottleneck with norm and activation before each convolution (He et al. 2016).

    The authors' resnet-1k-layers has the stride in the first 1×1, timm's `resnetv2` in the 3×3.
    """
    first, second = _strides(stride, stride_in)
    return Chain(
        norm1=norm(c_in),
        act1=act(),
        conv1=Project(c_in, width, first, bias=False),
        norm2=(norm2 or norm)(width),
        act2=act(),
        conv2=conv3x3(width, width, second),
        norm3=norm(width),
        act3=act(),
        conv3=Project(width, c_out, bias=False),
    )


def _strides(stride: int, place: StridePlace) -> tuple[int, int]:
    """The strides of a bottleneck's first two convolutions."""
    if place not in ("3x3", "1x1"):
        raise ValueError(f"no stride_in {place!r}; one of: 3x3, 1x1")
    return (stride, 1) if place == "1x1" else (1, stride)


def preact_block(branch: Chain, shortcut: nn.Module | None = None) -> nn.Module:
    """The residual block of a pre-activation branch. A given shortcut is applied after the branch's `norm1` and `act1`.

    The blocks of resnet-1k-layers for CIFAR, of wide ResNets and of timm's `resnetv2` do the same. An identity shortcut
    takes the input itself.
    """
    if shortcut is None:
        return Residual(branch)
    nodes = dict(branch.named_children())
    shared = {name: nodes.pop(name) for name in ("norm1", "act1")}
    return Chain(**shared, sum=Residual(Chain(**nodes), shortcut))


def projection(
    c_in: int, c_out: int, stride: int = 1, *, norm: Norm | None = None, pool: nn.Module | None = None
) -> Chain:
    """A shortcut that changes width or size: a 1×1 convolution, then an optional norm (He et al. 2015, option B).

    With `pool`, the pool changes the size instead of the convolution (He et al. 2019, ResNet-D).
    """
    conv = Project(c_in, c_out, stride if pool is None else 1, bias=False)
    return Chain(pool=pool, conv=conv, norm=None if norm is None else norm(c_out))


def edsr_branch(channels: int, act: Act = nn.ReLU) -> Chain:
    """Two 3×3 convolutions with bias and no norm (Lim et al. 2017, EDSR, figure 2)."""
    conv1, conv2 = (nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(2))
    return Chain(conv1=conv1, act1=act(), conv2=conv2)


def highway_branch(channels: int, act: Act = nn.ReLU) -> Chain:
    """One 3×3 convolution with bias and its activation (Srivastava et al. 2015). The merge is `Gate(channels)`."""
    return Chain(conv=nn.Conv2d(channels, channels, kernel_size=3, padding=1), act=act())


def dense_branch(
    c_in: int, growth: int, bottleneck: int | None = None, *, norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU
) -> Chain:
    """The branch of a DenseNet layer, which computes `growth` new channels. The merge is `Concat()`.

    It is one 3×3 convolution after norm and activation. With `bottleneck`, a 1×1 convolution to that many channels
    comes first (Huang et al. 2017, DenseNet-B: 4 · growth).
    """
    first = Chain(norm1=norm(c_in), act1=act())
    if bottleneck is None:
        return first.then(conv1=conv3x3(c_in, growth))
    return first.then(
        conv1=Project(c_in, bottleneck, bias=False),
        norm2=norm(bottleneck),
        act2=act(),
        conv2=conv3x3(bottleneck, growth),
    )
