"""Our U-Net's weights under the names of other libraries."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from residual.keymap import Place, Table, export_state, import_state
from unet.config import UNetConfig
from unet.layouts import adm, diffusers, edm


@dataclass(frozen=True)
class Layout:
    """The names of another library: where each block stands, how its tensors are called, what cannot be expressed."""

    places: Callable[[UNetConfig], Iterator[Place]]
    table: Table
    check: Callable[[UNetConfig], Any]
    """raises ValueError, with the reason, for a config that the library's network cannot express"""
    mark: str
    """a name that only this layout's state dicts have"""
    clean: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda theirs: theirs
    """brings older spellings to the current one"""
    constants: Callable[[UNetConfig], dict[str, Tensor]] = lambda config: {}
    """tensors that their state dicts hold besides the weights, always the same"""


LAYOUTS = {
    "diffusers": Layout(
        diffusers.places,
        diffusers.TABLE,
        diffusers.config_of,
        "time_embedding.linear_1.weight",
        diffusers.current_names,
    ),
    "adm": Layout(adm.places, adm.table("n three d"), adm.check, "input_blocks.0.0.weight"),
    "adm-new-order": Layout(adm.places, adm.table("three n d"), adm.check, "input_blocks.0.0.weight"),
    "edm": Layout(edm.places, edm.TABLE, edm.check, "map_layer0.weight", edm.without_prefix, edm.filters),
}


def import_weights(
    config: UNetConfig, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], layout: str
) -> dict[str, Tensor]:
    """Our state dict from a state dict in another layout; `ours` gives our names and shapes."""
    chosen = _layout(layout)
    cleaned = chosen.clean(theirs)
    constant = chosen.constants(config)
    weights = {name: tensor for name, tensor in cleaned.items() if name not in constant}
    try:
        return import_state(chosen.places(config), chosen.table, weights, ours)
    except ValueError as error:
        likely = [name for name, other in LAYOUTS.items() if other.mark in other.clean(theirs)]
        if likely and layout not in likely:
            raise ValueError(f"layout {layout!r} does not fit; these names look like {likely[0]!r} ({error})") from None
        raise


def export_weights(config: UNetConfig, ours: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The exact inverse of `import_weights`. Raises ValueError where the layout's network cannot express the config."""
    chosen = _layout(layout)
    chosen.check(config)
    return export_state(chosen.places(config), chosen.table, ours) | chosen.constants(config)


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(LAYOUTS)}"
        raise ValueError(f"no layout {name!r}; {known}")
    return LAYOUTS[name]
