"""Networks by kind, published networks by name."""

from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, overload

import torch

from residual.count import check_weight_bytes
from residual.model_info import ModelInfo, refuse_pretrained
from residual.names import require_known
from residual.weights.config import change_config
from residual.weights.pretrained import local_folder, model_class
from unet.config import UNetConfig
from unet.edm2 import EDM2UNet
from unet.edm2_config import EDM2Config
from unet.layouts.diffusers import find_network
from unet.model import UNet
from unet.presets import PRESETS

NETWORKS: dict[str, tuple[type[UNetConfig | EDM2Config], type[UNet | EDM2UNet]]] = {
    "unet": (UNetConfig, UNet),
    "edm2": (EDM2Config, EDM2UNet),
}
"""networks by kind: the class of the config and that of the network"""


def list_presets(pattern: str = "*") -> list[str]:
    """Names of published networks that match a pattern such as "adm-*" (`*`: anything, `?`: any character)."""
    return [name for name in PRESETS if fnmatchcase(name, pattern)]


def preset_info(name: str) -> ModelInfo[UNetConfig | EDM2Config]:
    """Config, counts and source of a published network. Raises ValueError for an unknown name, with the closest."""
    return PRESETS[require_known("preset", name, PRESETS)]


def preset(name: str, **changes: Any) -> UNetConfig | EDM2Config:
    """Config of a published network, with the dropout of its training. `changes` replace fields of it.

    Raises ValueError for an unknown name or field, with the closest ones, and for a value of another type.
    """
    config = preset_info(name).config
    refuse_pretrained(name, changes)
    for field in changes:
        require_known(f"field of {name}", field, [field.name for field in fields(config)])
    return change_config(config, changes)


def create_model(name: str, **changes: Any) -> UNet | EDM2UNet:
    """The network of a preset, freshly initialised, in training mode. `changes` replace fields of its config.

    Raises ValueError for an unknown name or field, with the closest ones, and as `build` does.
    """
    return build(preset(name, **changes))


@overload
def build(config: UNetConfig, max_bytes: int = 2**40) -> UNet: ...
@overload
def build(config: EDM2Config, max_bytes: int = 2**40) -> EDM2UNet: ...
@overload
def build(config: UNetConfig | EDM2Config, max_bytes: int = 2**40) -> UNet | EDM2UNet: ...
def build(config: UNetConfig | EDM2Config, max_bytes: int = 2**40) -> UNet | EDM2UNet:
    """The network of a config, freshly initialised, on the default device.

    Raises ValueError, before memory is taken, if its weights would take more than `max_bytes`.
    """

    def make() -> UNet | EDM2UNet:
        return dict(NETWORKS.values())[type(config)](config)  # type: ignore[arg-type]

    if torch.get_default_device().type != "meta":
        check_weight_bytes(make, max_bytes)
    return make()


def from_pretrained(folder_or_hub_id: str | Path) -> UNet | EDM2UNet:
    """The network of a model folder, of the class named in its config.json, on the CPU and in eval mode.

    A folder of diffusers (a `UNet2DModel` or a pipeline around one) gives a `UNet`. Raises ValueError for a folder of
    another package's model, and as `UNet.from_pretrained` does.
    """
    folder = local_folder(folder_or_hub_id)
    return network_class(folder).from_pretrained(folder)


def network_class(folder: Path) -> type[UNet | EDM2UNet]:
    """The class of the network in a model folder. Raises ValueError for a folder of another package's model."""
    if find_network(folder) is not None:
        return UNet
    return model_class(folder, [network for _, network in NETWORKS.values()])
