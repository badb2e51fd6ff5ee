"""EDSR: a super-resolution network of residual blocks without norms."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residual import Add, Chain, Residual, ZeroConv2d, edsr_branch
from residual.names import require_known
from residual.resample import bicubic
from residual.weights.keymap import export_state, import_state
from residual.weights.layout import read_state
from residual.weights.pretrained import Pretrained
from residual.weights.read import plain_names
from resnet.checks import check_images
from resnet.config.edsr import EDSRConfig
from resnet.layout_names import EDSR_LAYOUT
from resnet.layouts import edsr as names

DIV2K_MEAN = (114.444, 111.4605, 103.02)
"""mean of red, green and blue in the training images, in 0 … 255: 0.4488, 0.4371 and 0.4040 times 255"""


class EDSR(Pretrained):
    """EDSR (Lim et al. 2017): residual blocks without norms inside one long residual sum, then pixel shuffle.

    Images are RGB in 0 … 255, as for the published weights. `mean` is subtracted first and added back last; with
    `config.residual` the bicubic enlargement is added instead.
    """

    config: EDSRConfig
    config_class = EDSRConfig
    later_fields = frozenset({"residual"})
    hub_tags = ("super-resolution",)
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
        last = ZeroConv2d(width, 3, kernel_size=3, padding=1) if config.residual else conv(width, 3)
        self.tail = Chain(**ups, conv=last)
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN)[:, None, None])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """The image, `config.scale` times as high and wide, not clipped to 0 … 255.

        The last sum is computed in float32: bf16 would round it to whole levels.

        Raises ValueError unless it has three channels.
        """
        check_images(x, channels=3, min_size_px=1)
        scale, (height, width) = self.config.scale, x.shape[2:]
        base = bicubic(x, (scale * height, scale * width)) if self.config.residual else self.mean.float()
        return self.tail(self.body(self.head(x - self.mean))) + base

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str | None = None) -> list[str]:
        """Loads weights of EDSR-PyTorch, the authors' code, from a state dict or a safetensors file.

        Weights of another scale are loaded without their upsampling, as the authors initialise ×3 and ×4 from ×2.
        Returns one message per part that was left out. Raises ValueError with the difference if names or shapes do not
        fit.
        """
        _check_layout(layout or EDSR_LAYOUT)
        theirs, messages = plain_names(read_state(state_dict))
        ours, kept = self.state_dict(), {}
        if (scale := names.scale_of(theirs, self.config.channels)) not in (None, self.config.scale):
            theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("tail.0.")}
            kept = {name: ours.pop(name) for name in list(ours) if name.startswith("tail.up")}
            messages.append(f"tail.0: left out, its scale is {scale} and this network's {self.config.scale}")
        found = import_state(names.places(self.config), names.TABLE, theirs, ours)
        self.load_state_dict(found | kept, assign=self.mean.is_meta)
        return messages

    def export_weights(self, layout: str = EDSR_LAYOUT) -> dict[str, Tensor]:
        """The weights as a state dict of EDSR-PyTorch. The exact inverse of `import_weights`."""
        _check_layout(layout)
        return export_state(names.places(self.config), names.TABLE, self.state_dict())


def _check_layout(name: str) -> None:
    require_known("layout", name, [EDSR_LAYOUT])
