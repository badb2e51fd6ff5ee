"""How shortcut and branch become one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Add(nn.Module):
    """`act(scale · s + branch_scale · f)` for shortcut `s` and branch `f`.

    `act` is the activation after the sum (none in a U-Net, ReLU in a ResNet). With `scale = branch_scale = √½` the
    sum of two independent signals keeps their variance (Song et al. 2021, NCSN++); `branch_scale = h` makes the block
    an Euler step of length h.
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
    """`T · f + (1 - T) · s`, where T = σ(3×3 convolution of s): a highway layer (Srivastava et al. 2015, eq. 3).

    A negative `bias` starts the gate towards the shortcut, so that a deep network is trained from near the identity.
    """

    def __init__(self, channels: int, bias: float = -2.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]

    def forward(self, s: Float[Tensor, "b c h w"], f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.lerp(s, f, self.conv(s).sigmoid())


class Concat(nn.Module):
    """The channels of `s`, then those of `f`: a DenseNet layer is `Residual(branch, merge=Concat())`."""

    def forward(self, s: Float[Tensor, "b c1 h w"], f: Float[Tensor, "b c2 h w"]) -> Float[Tensor, "b c3 h w"]:
        return torch.cat([s, f], dim=1)
