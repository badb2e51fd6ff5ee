"""The diffusion U-Net, its published shapes, and its weights under the names of other libraries."""

from unet.config import UNetConfig
from unet.edm2 import EDM2Config, EDM2UNet
from unet.layouts.diffusers import config_of as diffusers_config
from unet.model import UNet
from unet.presets import build, list_presets, preset

__all__ = ["EDM2Config", "EDM2UNet", "UNet", "UNetConfig", "build", "diffusers_config", "list_presets", "preset"]
