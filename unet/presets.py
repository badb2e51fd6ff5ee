"""Published U-Nets by name."""

import difflib
from dataclasses import dataclass
from typing import Any

from unet.config import UNetConfig
from unet.edm2 import EDM2_PRESETS, EDM2Config, EDM2UNet
from unet.model import UNet


@dataclass(frozen=True)
class Preset:
    """A published network: its config and where it was published."""

    config: UNetConfig | EDM2Config
    source: str


_DDPM: dict[str, Any] = {
    "conditioning": "add",
    "resample": "conv_same",
    "eps": 1e-6,
    "time_embedding": "ddpm",
    "init": "xavier",
}

_PRESETS: dict[str, Preset] = {
    "ddpm-cifar10": Preset(
        UNetConfig(**_DDPM, size=(32, 32), multipliers=(1, 2, 2, 2), attention=(1,), dropout=0.1),
        "Ho et al. 2020, CIFAR-10; google/ddpm-cifar10-32",
    ),
    "ddpm-256": Preset(
        UNetConfig(**_DDPM, size=(256, 256), multipliers=(1, 1, 2, 2, 4, 4), attention=(4,)),
        "Ho et al. 2020, LSUN and CelebA-HQ; google/ddpm-{celebahq,church,bedroom,cat}-256",
    ),
}
_PRESETS |= {name: Preset(config, "Karras et al. 2024, ImageNet; " + name) for name, config in EDM2_PRESETS.items()}


def list_presets(config_class: type | None = None) -> list[str]:
    """The names that `preset` knows, all or those of one class of config (`UNetConfig`, `EDM2Config`)."""
    return [name for name, p in _PRESETS.items() if config_class is None or isinstance(p.config, config_class)]


def preset(name: str) -> UNetConfig | EDM2Config:
    """The config of a published network, with the dropout it was trained with.

    Raises ValueError for an unknown name, with the nearest ones.
    """
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=3, cutoff=0.3)
        raise ValueError(
            f"no preset {name!r}; "
            + (f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(_PRESETS)}")
        )
    return _PRESETS[name].config


def build(config: UNetConfig | EDM2Config) -> UNet | EDM2UNet:
    """The network that a config describes, freshly initialised."""
    return UNet(config) if isinstance(config, UNetConfig) else EDM2UNet(config)


def source(name: str) -> str:
    """Where a preset was published."""
    preset(name)
    return _PRESETS[name].source
