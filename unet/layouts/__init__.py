"""Our U-Nets' weights under the names of other libraries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from residual.names import require_known
from residual.weights.keymap import export_state, import_state
from residual.weights.layout import Layout, read_state
from unet.config import UNetConfig
from unet.layouts import adm, diffusers, edm, edm2


@dataclass(frozen=True, kw_only=True)
class UNetLayout(Layout):
    """A layout of a diffusion U-Net."""

    mark: str
    """a name that only this layout's state dicts have"""
    constants: Callable[[UNetConfig], dict[str, Tensor]] = lambda config: {}
    """tensors that their state dicts hold besides the weights, always the same"""
    network: str = "UNet"
    """the class of ours that has these weights"""
    sized: Callable[[UNetConfig, Mapping[str, Tensor]], UNetConfig] = lambda config, theirs: config
    """the config with the size of image that the names tell, if they do"""


LAYOUTS = {
    "diffusers": UNetLayout(
        diffusers.places,
        diffusers.TABLE,
        diffusers.config_of,
        diffusers.current_names,
        mark="time_embedding.linear_1.weight",
    ),
    "adm": UNetLayout(adm.places, adm.table("n three d"), adm.check, mark="input_blocks.0.0.weight"),
    "adm-new-order": UNetLayout(adm.places, adm.table("three n d"), adm.check, mark="input_blocks.0.0.weight"),
    "edm": UNetLayout(
        edm.places,
        edm.TABLE,
        edm.check,
        edm.without_prefix,
        mark="map_layer0.weight",
        constants=edm.filters,
        sized=edm.sized,
    ),
    "edm2": UNetLayout(edm2.places, edm2.TABLE, edm2.check, mark="unet.emb_noise.weight", network="EDM2UNet"),
}
_OUR_MARKS = {"embedding.linear1.weight": "UNet", "embedding.noise.weight": "EDM2UNet"}


def import_weights(
    config: UNetConfig,
    state_dict: Mapping[str, Tensor] | str | Path,
    ours: Mapping[str, Tensor],
    layout: str,
    network: str = "UNet",
) -> dict[str, Tensor]:
    """Our state dict from a state dict in another layout, or from a safetensors file of one.

    `ours` gives our names and shapes, `network` the class they belong to. Raises ValueError for a layout that the class
    does not have, for names of another layout (the likely ones are named), for a config that the layout's network
    cannot express, with the difference if names or shapes do not fit, and for a pickle.
    """
    chosen = _layout(layout, network)
    given = read_state(state_dict)
    theirs = chosen.clean(given)
    if chosen.mark not in theirs and (likely := _likely(given)):
        raise ValueError(f"layout {layout!r} does not fit: the names look like {likely}")
    chosen.check(config)
    constant = chosen.constants(config)
    if other := [name for name in constant if name in theirs and not _equal(theirs[name], constant[name])]:
        raise ValueError(f"{other[0]} is another filter than this network has (resample={config.resample!r})")
    weights = {name: tensor for name, tensor in theirs.items() if name not in constant}
    return import_state(chosen.places(config), chosen.table, weights, ours)


def export_weights(
    config: UNetConfig, ours: Mapping[str, Tensor], layout: str, network: str = "UNet"
) -> dict[str, Tensor]:
    """The exact inverse of `import_weights`. Raises ValueError where the layout's network cannot express the config."""
    chosen = _layout(layout, network)
    chosen.check(config)
    return export_state(chosen.places(config), chosen.table, ours) | chosen.constants(config)


def likely_layouts(theirs: Mapping[str, Tensor]) -> list[str]:
    """The layouts that a state dict may be in, by its names."""
    return [name for name, layout in LAYOUTS.items() if layout.mark in layout.clean(theirs)]


def config_of_weights(config: UNetConfig, theirs: Mapping[str, Tensor], layout: str) -> UNetConfig:
    """`config` with the channels, labels and size of the network that a state dict in another layout is of.

    Twice as many outputs as inputs are taken for a learned variance. Tensors that are not where `config` has them are
    for `import_weights` to name.
    """
    chosen = _layout(layout, "UNet")
    theirs = chosen.clean(theirs)
    config = chosen.sized(config, theirs)
    names = {place.ours: f"{place.theirs}.weight" for place in chosen.places(config)}
    stem, head, label = (names[name] for name in ("encoder.0.conv", "head.conv", "embedding.label"))
    if stem in theirs and head in theirs:
        inputs, outputs = theirs[stem].shape[1], theirs[head].shape[0]
        variance = outputs == 2 * inputs
        outputs = inputs if variance else outputs
        config = replace(config, in_channels=inputs, out_channels=outputs, learned_variance=variance)
    table = config.label_embedding == "table"
    classes = theirs[label].shape[0 if table else 1] if label in theirs else None
    return replace(config, classes=classes, null_label=not table)


def _equal(found: Tensor, constant: Tensor) -> bool:
    return found.shape == constant.shape and torch.equal(found.to(constant), constant)


def _layout(name: str, network: str) -> UNetLayout:
    names = [other for other, layout in LAYOUTS.items() if layout.network == network]
    if name in LAYOUTS and name not in names:
        raise ValueError(f"layout {name!r} is for {LAYOUTS[name].network}; {network} has {', '.join(names)}")
    return LAYOUTS[require_known("layout", name, names)]


def _likely(given: Mapping[str, Tensor]) -> str | None:
    """The layouts that these names look like, and the class that has them."""
    for mark, network in _OUR_MARKS.items():
        if mark in given:
            return f"those of our own {network}: load_state_dict takes them"
    if not (fits := likely_layouts(given)):
        return None
    return f"those of {' or '.join(map(repr, fits))}, for {LAYOUTS[fits[0]].network}"
