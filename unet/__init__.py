"""Diffusion U-Nets, the published ones by name, and their weights in the layouts of other libraries."""

from typing import TYPE_CHECKING

from storage.lazy import import_when_used

if TYPE_CHECKING:
    from unet.config import UNetConfig
    from unet.edm2 import EDM2UNet
    from unet.edm2_config import EDM2Config
    from unet.layouts.diffusers import config_of as diffusers_config
    from unet.model import UNet
    from unet.registry import NETWORKS, build, create_model, from_pretrained, list_presets, preset, preset_info

__all__ = [
    "NETWORKS",
    "EDM2Config",
    "EDM2UNet",
    "UNet",
    "UNetConfig",
    "build",
    "create_model",
    "diffusers_config",
    "from_pretrained",
    "list_presets",
    "preset",
    "preset_info",
]

import_when_used(__name__)
