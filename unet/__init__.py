"""The diffusion U-Net, its published shapes, and its weights under the names of other libraries."""

from unet.config import UNetConfig
from unet.layouts.diffusers import config_of as diffusers_config
from unet.model import UNet
from unet.presets import list_presets, preset

__all__ = ["UNet", "UNetConfig", "diffusers_config", "list_presets", "preset"]
