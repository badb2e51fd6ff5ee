"""A feature pyramid over any classifier of the zoo."""

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residual import Add, Project
from residual.names import require_known
from residual.weights.keymap import export_state, import_state
from residual.weights.layout import Layout, read_state
from resnet.checks import check_images
from resnet.classifier import Classifier
from resnet.layouts import fpn as names
from resnet.layouts import with_counters, without_prefix


class FPN(nn.Module):
    """Maps of equal width and rising stride, each of which knows what is coarser (Lin et al. 2017, figure 3).

    Every map is a residual sum: the shortcut is a 1×1 convolution of the backbone's level, the branch the coarser sum,
    enlarged. A 3×3 convolution follows. `body` is the backbone's own levels, not a copy; its classifier is not held.
    Raises ValueError for a backbone that is conditioned on a noise level.
    """

    def __init__(self, backbone: Classifier, channels: int = 256) -> None:
        super().__init__()
        if backbone.embedding is not None:
            raise ValueError("a feature pyramid has no noise level for its backbone: build that with noise=False")
        if channels < 1:
            raise ValueError(f"channels={channels} must be at least 1")
        self.config, self.layouts, self.channels = backbone.config, backbone.layouts, channels
        self.body = backbone.levels
        widths = [width for width, _ in backbone.feature_info[1:]]
        self.lateral = nn.ModuleList(Project(width, channels) for width in widths)
        self.merge = Add()
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in widths)
        for conv in (*self.lateral, *self.smooth):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b d _ _"]]:
        """The maps of the backbone's levels from 1 on, the finest first, and the last at half its size: P2 to P6.

        Raises ValueError for images that the backbone itself refuses.
        """
        check_images(x, self.config.in_channels, self.config.feature_info[-1][1])
        levels = []
        for level in self.body:
            levels.append(x := level(x))
        maps: list[Tensor] = []
        coarser: Tensor | None = None
        for level, lateral, smooth in zip(levels[:0:-1], self.lateral[::-1], self.smooth[::-1], strict=True):
            s = lateral(level)
            coarser = s if coarser is None else self.merge(s, F.interpolate(coarser, size=s.shape[2:], mode="nearest"))
            maps.insert(0, smooth(coarser))
        return [*maps, F.max_pool2d(maps[-1], kernel_size=1, stride=2)]

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        """Channels and total stride of each map."""
        strides = [stride for _, stride in self.config.feature_info[1:]]
        return [(self.channels, stride) for stride in (*strides, 2 * strides[-1])]

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str = "torchvision") -> list[str]:
        """Take the weights of torchvision's pyramid, old or new, or of a detector around it; or a safetensors file.

        Returns what was left out, a line each: the detector's other parts. Raises ValueError with the difference if
        names or shapes do not fit, and where torchvision cannot express the backbone.
        """
        body, ours = self._layout(layout), self.state_dict()
        theirs, lines = names.current_names(without_prefix(read_state(state_dict)))
        places = list(names.places(body, self.config, len(self.lateral)))
        theirs = with_counters(theirs, export_state(places, body.table, ours))
        self.load_state_dict(import_state(places, body.table, theirs, ours))
        return lines

    def export_weights(self, layout: str = "torchvision") -> dict[str, Tensor]:
        """The weights under torchvision's names: the exact inverse of `import_weights`."""
        body = self._layout(layout)
        return export_state(names.places(body, self.config, len(self.lateral)), body.table, self.state_dict())

    def _layout(self, name: str) -> Layout:
        require_known("layout", name, {"torchvision"} & self.layouts.keys())
        self.layouts[name].check(self.config)
        return self.layouts[name]


def fpn(backbone: Classifier, channels: int = 256) -> FPN:
    """A feature pyramid over a classifier: `fpn(create_model("resnet50", norm="frozen"))`. See `FPN`."""
    return FPN(backbone, channels)
