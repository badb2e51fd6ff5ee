"""How shortcut and branch become one."""

import torch
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
