"""A feature pyramid over any classifier of the zoo: `FPN(create_model("resnet50", norm="frozen"))`."""

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residual import Add, Project
from residual.names import require_known
from residual.weights.keymap import export_state, import_state
from residual.weights.layout import Layout, read_state
from residual.weights.read import plain_names
from resnet.checks import check_images
from resnet.classifier import Classifier
from resnet.layouts import fpn as names
from resnet.layouts import with_counters

LAYOUT = "torchvision"


class FPN(nn.Module):
    """Feature maps of equal width and increasing stride (Lin et al. 2017, figure 3).

    Every map is a residual sum: the shortcut is a 1×1 convolution of the backbone's level, the branch the enlarged
    coarser sum. A 3×3 convolution follows. `body` is the backbone's own levels, not a copy, without its classifier.
    Raises ValueError for a backbone that is conditioned on a noise level.
    """

    def __init__(self, backbone: Classifier, channels: int = 256) -> None:
        super().__init__()
        if backbone.embedding is not None:
            raise ValueError("a feature pyramid gives its backbone no timesteps: build the backbone with noise=False")
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
        """One map per level of the backbone from level 1, the finest first, and the last at half its size: P2 to P6.

        Raises ValueError for images that do not fit the backbone.
        """
        check_images(x, self.config.in_channels, self.config.min_size_px)
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

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str | None = None) -> list[str]:
        """Loads weights of torchvision's pyramid, or of a detector around it, from a state dict or a safetensors file.

        Returns a message if other parts of a detector were left out. Raises ValueError with the difference if names or
        shapes do not fit, and for a backbone that torchvision cannot express.
        """
        body, ours = self._layout(layout or LAYOUT), self.state_dict()
        state, notes = plain_names(read_state(state_dict))
        theirs, messages = names.current_names(state)
        places = list(names.places(body, self.config, len(self.lateral)))
        theirs = with_counters(theirs, export_state(places, body.table, ours))
        self.load_state_dict(import_state(places, body.table, theirs, ours))
        return notes + messages

    def export_weights(self, layout: str = LAYOUT) -> dict[str, Tensor]:
        """The weights as a state dict of torchvision. The exact inverse of `import_weights`."""
        body = self._layout(layout)
        return export_state(names.places(body, self.config, len(self.lateral)), body.table, self.state_dict())

    def _layout(self, name: str) -> Layout:
        require_known("layout", name, {LAYOUT} & self.layouts.keys())
        self.layouts[name].check(self.config)
        return self.layouts[name]
