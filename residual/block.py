"""The residual block `merge(shortcut(x), branch(x, emb))`, with its shortcuts, merges and other small parts."""

from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

C = TypeVar("C", bound="Chain")
Padding = Literal["zeros", "reflect", "periodic_width", "periodic"]
"""how images are continued for convolutions; see `PaddedConv2d`"""


class Chain(nn.Module):
    """Named modules, called one after the other. `emb` is passed only to the nodes that take it.

    A node whose attribute `takes_emb` is true is called as `node(x, emb)`. The attribute is read once, when the chain
    is built, so a node may be replaced only by one of the same kind. Nodes that are `None` are left out.

    Raises ValueError for a name that `nn.Module` already uses (`half`, `type`, …).
    """

    def __init__(self, **nodes: nn.Module | None) -> None:
        super().__init__()
        for name, node in nodes.items():
            if hasattr(self, name):
                raise ValueError(f"a node cannot be called {name!r}: every torch module has an attribute of that name")
            if node is not None:
                self.add_module(name, node)
        self._conditioned = frozenset(name for name, node in self.named_children() if getattr(node, "takes_emb", False))
        self.takes_emb = bool(self._conditioned)

    def then(self: C, **nodes: nn.Module | None) -> C:
        """A chain of the nodes of this one, followed by `nodes`: `branch.then(se=SqueezeExcite(64))`."""
        return type(self)(**dict(self.named_children()), **nodes)

    def forward(self, x: Tensor, emb: Float[Tensor, "b e"] | None = None) -> Tensor:
        for name, node in self._modules.items():
            x = node(x, emb) if name in self._conditioned else node(x)  # type: ignore[misc]
        return x


class Residual(nn.Module):
    """A residual block: `merge(shortcut(x), branch(x, emb))` (He et al. 2015, eq. 1 and 2).

    The default shortcut is the identity, the default merge a plain sum. Nodes that both paths share, such as a common
    pre-activation, stand before the block in a `Chain`.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, merge: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = Identity() if shortcut is None else shortcut
        self.merge = Add() if merge is None else merge
        self.takes_emb = bool(getattr(branch, "takes_emb", False))

    def parts(self, x: Tensor, emb: Float[Tensor, "b e"] | None = None) -> tuple[Tensor, Tensor]:
        """The inputs of the merge: the shortcut's output `s` and the branch's output `f`."""
        return self.shortcut(x), self.branch(x, emb) if self.takes_emb else self.branch(x)

    def forward(self, x: Tensor, emb: Float[Tensor, "b e"] | None = None) -> Tensor:
        return self.merge(*self.parts(x, emb))


class Identity(nn.Module):
    """A shortcut that returns its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Project(nn.Conv2d):
    """A 1×1 convolution, as a shortcut between two widths (He et al. 2015, eq. 2)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(c_in, c_out, kernel_size=1, stride=stride, bias=bias)


class ZeroPad(nn.Module):
    """A shortcut that keeps every `stride`-th pixel and pads with channels of zeros (He et al. 2015, option A).

    Two conventions are in use, and weights trained under one are wrong under the other: `side="end"` adds all zeros
    after the input's channels (fb.resnet.torch), `side="split"` half of them before (akamaster/pytorch_resnet_cifar10).
    Raises ValueError if the output would be narrower than the input.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1, side: Literal["end", "split"] = "end") -> None:
        super().__init__()
        if side not in ("end", "split"):
            raise ValueError(f"no side {side!r}; one of: end, split")
        if c_out < c_in:
            raise ValueError(f"{c_in} channels cannot be padded to {c_out}: project them")
        self.stride = stride
        self.before = (c_out - c_in) // 2 if side == "split" else 0
        self.after = c_out - c_in - self.before

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"{self.before} before, {self.after} after, stride={self.stride}"


class Add(nn.Module):
    """The merge `act(scale · s + branch_scale · f)` of shortcut `s` and branch `f`.

    `act` is the activation after the sum (none in a U-Net, ReLU in a ResNet). With `scale = branch_scale = √½`, the
    sum of two independent signals of equal variance keeps that variance (Song et al. 2021, NCSN++). With
    `branch_scale = h`, the block is an Euler step of length h.
    """

    def __init__(self, act: nn.Module | None = None, scale: float = 1.0, branch_scale: float = 1.0) -> None:
        super().__init__()
        self.act = act
        self.scale = scale
        self.branch_scale = branch_scale

    def forward(self, s: Tensor, f: Tensor) -> Tensor:
        if self.scale != 1.0:
            s = self.scale * s
        y = torch.add(s, f, alpha=self.branch_scale)
        return y if self.act is None else self.act(y)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, branch_scale={self.branch_scale:g}"


class Gate(nn.Module):
    """The merge `T · f + (1 - T) · s`, where T = σ(3×3 convolution of s) (Srivastava et al. 2015, eq. 3: highway).

    A negative `bias` starts the gate near the shortcut, so that a deep network starts near the identity.
    """

    def __init__(self, channels: int, bias: float = -2.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]

    def forward(self, s: Float[Tensor, "b c h w"], f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.lerp(s, f, self.conv(s).sigmoid())


class Concat(nn.Module):
    """The merge of a DenseNet layer: the channels of `s`, then those of `f`."""

    def forward(self, s: Float[Tensor, "b c1 h w"], f: Float[Tensor, "b c2 h w"]) -> Float[Tensor, "b c3 h w"]:
        return torch.cat([s, f], dim=1)


class PaddedConv2d(nn.Conv2d):
    """`nn.Conv2d` with other values than zeros beyond the image, by its attribute `borders`.

    `reflect` mirrors the image at its outermost pixels, `periodic` continues it on its other side, as on a torus.
    `periodic_width` does so to the left and right, as longitudes do, and mirrors above and below.
    """

    borders: Padding = "zeros"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        if self.borders == "zeros":
            return super().forward(x)
        top, left = map(int, self.padding)
        x = extend(x, (left, left, top, top), self.borders)
        return F.conv2d(x, self.weight, self.bias, self.stride, dilation=self.dilation, groups=self.groups)


def extend(
    x: Float[Tensor, "b c h w"], amounts: tuple[int, int, int, int], borders: Padding
) -> Float[Tensor, "b c h2 w2"]:
    """The images with so many more pixels on their left, on their right, above and below."""
    left, right, top, bottom = amounts
    if borders == "zeros":
        return F.pad(x, amounts)
    if borders == "periodic_width":
        return F.pad(F.pad(x, (left, right, 0, 0), mode="circular"), (0, 0, top, bottom), mode="reflect")
    return F.pad(x, amounts, mode="circular" if borders == "periodic" else "reflect")


def set_borders(network: nn.Module, borders: Padding) -> None:
    """Sets what lies beyond the images of every `PaddedConv2d` of a network."""
    for module in network.modules():
        if isinstance(module, PaddedConv2d):
            module.borders = borders


class ZeroConv2d(PaddedConv2d):
    """A convolution whose weights start at zero. As the last node of a branch, it makes a new block its shortcut."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class LearnedScale(nn.Module):
    """`α x` with a learned number α. As the last node of a branch that starts at 0, it makes a new block its shortcut.

    It is ReZero (Bachlechner et al. 2020, eq. 3) and, in networks without norms, SkipInit (De and Smith 2020).
    """

    def __init__(self, alpha: float = 0.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of each image with `probability` in training (Huang et al. 2016).

    It is the last node of a branch. Branches that are kept are divided by `1 - probability`, which keeps the mean.
    Raises ValueError unless 0 ≤ probability < 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability={probability} of dropping a branch must be at least 0 and below 1")
        self.probability = probability

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training:
            return x
        keep = 1 - self.probability
        return x * (torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"
