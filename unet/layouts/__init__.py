"""Converts weights of the U-Nets from and to the layouts of other libraries."""

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from residual.names import require_known
from residual.weights.keymap import export_state, import_state
from unet.config import UNetConfig
from unet.edm2_config import EDM2Config
from unet.layout_names import EDM2LayoutName, UNetLayoutName
from unet.layouts import adm, diffusers, edm, edm2
from unet.layouts.layout import UNetLayout

_LAYOUTS: dict[UNetLayoutName | EDM2LayoutName, UNetLayout] = {
    "diffusers": diffusers.LAYOUT,
    "adm": adm.LAYOUT,
    "adm-new-order": adm.NEW_ORDER,
    "edm": edm.LAYOUT,
    "edm2": edm2.LAYOUT,
}
UNET_LAYOUTS: dict[str, UNetLayout] = {name: _LAYOUTS[name] for name in get_args(UNetLayoutName)}
EDM2_LAYOUTS: dict[str, UNetLayout] = {name: _LAYOUTS[name] for name in get_args(EDM2LayoutName)}
LAYOUTS = UNET_LAYOUTS | EDM2_LAYOUTS
Config = UNetConfig | EDM2Config
State = Mapping[str, Tensor]


def import_weights(config: Config, given: State, ours: State, layout: str) -> dict[str, Tensor]:
    """Our state dict from a state dict in another layout.

    `ours` is the state dict of the config's network, for names and shapes. Raises ValueError for a layout that the
    network does not have, for names of another layout (the likely ones are named), for a config that the layout cannot
    express, and for names or shapes that do not fit (with the difference).
    """
    chosen = _layout(layout, config)
    theirs = chosen.clean(given)
    if chosen.signature_key not in theirs and (likely := likely_layouts(given)):
        raise ValueError(f"layout {layout!r} does not fit: {_described(likely)}")
    if chosen.signature_key not in theirs and given.keys() & ours.keys():
        raise ValueError(f"layout {layout!r} does not fit: the names are our own: load_state_dict takes them")
    chosen.check(config)
    constant = chosen.constants(config)
    if other := [name for name in constant if name in theirs and not _equal(theirs[name], constant[name])]:
        raise ValueError(
            f"{other[0]} is another filter than that of resample={config.skeleton.resample!r}; change resample"
        )
    weights = {name: tensor for name, tensor in theirs.items() if name not in constant}
    return import_state(chosen.places(config), chosen.table, weights, ours)


def export_weights(config: Config, ours: State, layout: str) -> dict[str, Tensor]:
    """The exact inverse of `import_weights`. Raises ValueError for a config that the layout cannot express."""
    chosen = _layout(layout, config)
    chosen.check(config)
    return export_state(chosen.places(config), chosen.table, ours) | chosen.constants(config)


def likely_layouts(state: State) -> list[str]:
    """The layouts that a state dict may be in, by its names."""
    return [name for name, layout in LAYOUTS.items() if layout.signature_key in layout.clean(state)]


def find_layout(layouts: Mapping[str, UNetLayout], state: State) -> str:
    """The one of `layouts` that a state dict is in, by its names.

    Raises ValueError if the names fit none of them, with the layout that they fit, or more than one.
    """
    likely = likely_layouts(state)
    if len(likely) == 1 and likely[0] in layouts:
        return likely[0]
    if likely:
        raise ValueError(f"{_described(likely)}; give one of them as the layout, to a network that has it")
    if not state:
        raise ValueError("there are no weights: the state dict is empty")
    for first in dict.fromkeys(f"{name.partition('.')[0]}." for name in state):
        part = {name.removeprefix(first): tensor for name, tensor in state.items() if name.startswith(first)}
        if likely := likely_layouts(part):
            raise ValueError(
                f"the names are of several networks; of those that begin with {first}, {_described(likely)}: "
                "give these alone"
            )
    raise ValueError(f"the names, such as {next(iter(state))!r}, fit none of the layouts {', '.join(layouts)}")


def config_of_weights(config: Config, state: State, layout: str) -> Config:
    """`config` with the channels, labels and image size of the network whose state dict is given in another layout.

    No layout has a head for the log-variance of the loss but EDM2's, so there is none.

    If the tensors do not have the shapes of `config`, twice as many outputs as inputs are taken for a learned variance,
    and all rows of a label table for classes. Missing tensors are left to `import_weights`. Configs of EDM2 are
    returned unchanged.
    """
    chosen = _layout(layout, config)
    return config if isinstance(config, EDM2Config) else _unet_config_of(config, chosen.clean(state), chosen)


def _unet_config_of(config: UNetConfig, theirs: State, layout: UNetLayout) -> UNetConfig:
    config = replace(layout.with_size_of(config, theirs), logvar_channels=None)
    names = {place.ours: f"{place.theirs}.weight" for place in layout.places(config)}
    ours = ("encoder.0.conv", "head.conv", "embedding.label", "embedding.augment")
    stem, head, label, augment = (theirs.get(names.get(name, "")) for name in ours)
    config = replace(config, augment_channels=None if augment is None else augment.shape[1])
    if stem is not None and head is not None:
        inputs, outputs = stem.shape[1], head.shape[0]
        if (inputs, outputs) != (config.in_channels, config.out_channels * (1 + config.learned_variance)):
            variance = outputs == 2 * inputs
            outputs = inputs if variance else outputs
            config = replace(config, in_channels=inputs, out_channels=outputs, learned_variance=variance)
    if label is None:
        return replace(config, classes=None)
    if config.label_embedding != "table":
        return replace(config, classes=label.shape[1])
    if config.classes is not None and len(label) == config.classes + config.null_label:
        return config
    return replace(config, classes=len(label), null_label=False)


def _equal(found: Tensor, constant: Tensor) -> bool:
    return found.shape == constant.shape and torch.equal(found.to(constant), constant)


def _layout(name: str, config: Config) -> UNetLayout:
    names = [other for other, layout in LAYOUTS.items() if isinstance(config, layout.config_class)]
    if name in LAYOUTS and name not in names:
        needed, given = LAYOUTS[name].config_class.__name__, type(config).__name__
        raise ValueError(f"layout {name!r} is for networks of {needed}; those of {given} have {', '.join(names)}")
    return LAYOUTS[require_known("layout", name, names)]


def _described(likely: list[str]) -> str:
    """The layouts that names fit, with whose files have them."""
    return "the names fit " + " or ".join(f"{name!r} ({LAYOUTS[name].used_by})" for name in likely)
