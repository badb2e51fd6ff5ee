"""Published U-Nets by name."""

import difflib
from dataclasses import dataclass
from typing import Any

from unet.config import UNetConfig


@dataclass(frozen=True)
class Preset:
    """A published network: its config and where it was published."""

    config: UNetConfig
    source: str


_DDPM: dict[str, Any] = {
    "conditioning": "add",
    "resample": "conv_same",
    "eps": 1e-6,
    "time_embedding": "ddpm",
    "init": "xavier",
}

_PRESETS = {
    "ddpm-cifar10": Preset(
        UNetConfig(**_DDPM, size=(32, 32), multipliers=(1, 2, 2, 2), attention=(1,), dropout=0.1),
        "Ho et al. 2020, CIFAR-10; google/ddpm-cifar10-32",
    ),
    "ddpm-256": Preset(
        UNetConfig(**_DDPM, size=(256, 256), multipliers=(1, 1, 2, 2, 4, 4), attention=(4,)),
        "Ho et al. 2020, LSUN and CelebA-HQ; google/ddpm-{celebahq,church,bedroom,cat}-256",
    ),
}


def list_presets() -> list[str]:
    """The names that `preset` knows."""
    return list(_PRESETS)


def preset(name: str) -> UNetConfig:
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


def source(name: str) -> str:
    """Where a preset was published."""
    preset(name)
    return _PRESETS[name].source
