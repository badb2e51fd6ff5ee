"""EDSR, the super-resolution network that is nothing but residual blocks without norms."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residual import Add, Chain, Residual, edsr_branch
from residual.names import require_known
from residual.weights.keymap import export_state, import_state
from residual.weights.layout import read_state
from residual.weights.pretrained import Pretrained
from resnet.checks import check_images, check_positive
from resnet.layouts import edsr as names
from resnet.layouts import without_prefix

DIV2K_MEAN = (114.444, 111.4605, 103.02)
"""mean red, green and blue of the training images, 0 … 255: 0.4488, 0.4371 and 0.4040 of 255"""


@dataclass(frozen=True, kw_only=True)
class EDSRConfig:
    """Shape of an EDSR network. Raises ValueError for a scale that its upsampler does not have."""

    scale: int = 2
    """times the output is larger than the input: 2, 3 or 4"""
    channels: int = 64
    """width everywhere between head and tail"""
    blocks: int = 16
    """number of residual blocks"""
    branch_scale: float = 1.0
    """factor of every branch before its sum; 0.1 keeps wide networks stable"""

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise ValueError(f"scale={self.scale}: EDSR enlarges 2, 3 or 4 times")
        check_positive(self, ("channels", "blocks"))

    @property
    def upsamplings(self) -> tuple[int, ...]:
        """The factors of the pixel shuffles, one after the other: 4 is twice 2."""
        return (2, 2) if self.scale == 4 else (self.scale,)


class EDSR(Pretrained):
    """EDSR (Lim et al. 2017): residual blocks without norms inside one long residual sum, then pixel shuffle.

    Images are red, green and blue from 0 to 255, as in the published weights; `mean` is taken off first and added
    back last.
    """

    config_class = EDSRConfig
    hub_tags = ("super-resolution",)
    in_channels = 3
    outline: ClassVar[dict[str, str]] = {"head": "head", "body": "body", "tail": "tail"}
    """what a summary has a line for, and the name of its module"""
    mean: Tensor

    def __init__(self, config: EDSRConfig) -> None:
        super().__init__(config)
        width = config.channels
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        merge = partial(Add, branch_scale=config.branch_scale)
        blocks = {f"block{i}": Residual(edsr_branch(width), merge=merge()) for i in range(config.blocks)}
        ups = {
            f"up{i}": Chain(conv=conv(width, factor**2 * width), shuffle=nn.PixelShuffle(factor))
            for i, factor in enumerate(config.upsamplings)
        }
        self.head = conv(3, width)
        self.body = Residual(Chain(**blocks, conv=conv(width, width)))
        self.tail = Chain(**ups, conv=conv(width, 3))
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN)[:, None, None])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """The image, `config.scale` times as high and wide; values are not clipped to 0 … 255.

        Raises ValueError for another number of channels than three.
        """
        check_images(x, self.in_channels, 1)
        return self.tail(self.body(self.head(x - self.mean))) + self.mean

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str = "edsr-pytorch") -> list[str]:
        """Take the weights of EDSR-PyTorch, the authors' code, from a state dict or a safetensors file of one.

        Returns what was left out, a line each: weights of another scale come without their upsampling, as the authors
        start ×3 and ×4 from ×2. Raises ValueError with the difference if other names or shapes do not fit.
        """
        _check_layout(layout)
        theirs, ours = dict(without_prefix(read_state(state_dict))), self.state_dict()
        kept, said = {}, []
        if (scale := names.scale_of(theirs, self.config.channels)) not in (None, self.config.scale):
            theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("tail.0.")}
            kept = {name: ours.pop(name) for name in list(ours) if name.startswith("tail.up")}
            said.append(f"tail.0: left out, it enlarges {scale} times there and {self.config.scale} times here")
        found = import_state(names.places(self.config), names.TABLE, theirs, ours)
        self.load_state_dict(found | kept, assign=self.mean.is_meta)
        return said

    def export_weights(self, layout: str = "edsr-pytorch") -> dict[str, Tensor]:
        """The weights under the names of EDSR-PyTorch: the exact inverse of `import_weights`."""
        _check_layout(layout)
        return export_state(names.places(self.config), names.TABLE, self.state_dict())


def _check_layout(name: str) -> None:
    require_known("layout", name, ["edsr-pytorch"])
