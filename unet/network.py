"""Base class of the U-Nets: their weights in the layouts of other libraries."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from residual.weights.layout import read_state
from residual.weights.pretrained import Pretrained
from residual.weights.read import plain_names
from unet.adapt import adapt_weights
from unet.layouts import config_of_weights, export_weights, find_layout, import_weights
from unet.layouts.layout import UNetLayout


class Network(Pretrained):
    """A diffusion U-Net, built from its config."""

    layouts: ClassVar[Mapping[str, UNetLayout]]
    """layouts of other libraries, by name"""

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str | None = None) -> list[str]:
        """Loads weights in another library's layout, from a state dict or a safetensors file.

        Without `layout` it is found by the names, which the two layouts of ADM share. Weights for other image channels,
        labels or a learned variance are adapted as in `unet.adapt`. Returns one message per adaptation.

        Raises ValueError for an unknown layout, for names of another layout (the likely one is named), for a config
        that the layout cannot express, for names or shapes that do not fit (with the difference), and for a pickle.
        """
        weights, messages = self.convert_weights(state_dict, layout)
        self.load_state_dict(weights, assign=next(self.parameters()).is_meta)
        return messages

    def convert_weights(
        self, state_dict: Mapping[str, Tensor] | str | Path, layout: str | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """The weights that `import_weights` would load, and its messages. The network is not changed."""
        state, notes = plain_names(read_state(state_dict))
        layout = layout or find_layout(self.layouts, state)
        source, expected = config_of_weights(self.config, state, layout), self.state_dict()
        if source != self.config:
            with torch.device("meta"):
                expected = type(self)(source).state_dict()
        weights, messages = adapt_weights(import_weights(source, state, expected, layout), source, self.config)
        return weights, notes + messages

    def export_weights(self, layout: str) -> dict[str, Tensor]:
        """The weights as a state dict in another library's layout. The exact inverse of `import_weights`.

        Raises ValueError for an unknown layout and for a config that the layout cannot express.
        """
        return export_weights(self.config, self.state_dict(), layout)
