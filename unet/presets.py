"""Published U-Nets by name."""

from dataclasses import dataclass, field
from typing import Any

import torch

from residual.count import check_weight_bytes
from residual.names import require_known
from unet.config import UNetConfig
from unet.edm2 import EDM2_PRESETS, EDM2Config, EDM2UNet
from unet.model import UNet


@dataclass(frozen=True)
class Preset:
    """A published network: its config, its size, and where it was published."""

    config: UNetConfig | EDM2Config = field(repr=False)
    parameters: int
    giga_multiply_adds: float
    """of one forward pass per image of the config's size, in units of 10⁹"""
    source: str


def _square(side: int, **fields: Any) -> UNetConfig:
    return UNetConfig(size=(side, side), **fields)


_DDPM: dict[str, Any] = {
    "conditioning": "add",
    "resample": "conv_same",
    "eps": 1e-6,
    "time_embedding": "ddpm",
    "init": "xavier",
}
_IDDPM: dict[str, Any] = {
    "conditioning": "scale_shift",
    "resample": "conv",
    "time_embedding": "adm",
    "learned_variance": True,
    "null_label": False,
    "heads": 4,
}
_ADM: dict[str, Any] = _IDDPM | {"resample": "block", "heads": None, "head_channels": 64}
_FOUR_HEADS: dict[str, Any] = {"heads": 4, "head_channels": None}
_UPSAMPLER: dict[str, Any] = _ADM | {
    "in_channels": 6,
    "classes": 1000,
    "base_channels": 192,
    "channel_multipliers": (1, 1, 2, 2, 4, 4),
}
_SONG: dict[str, Any] = {
    "augment_channels": 9,
    "group_channels": 4,
    "conditioning": "add",
    "label_embedding": "linear_first",
    "decoder_attention": "last",
    "residual_scale": 0.5**0.5,
    "eps": 1e-6,
    "blocks_per_level": 4,
    "init": "xavier",
}
_DDPMPP: dict[str, Any] = _SONG | {"resample": "block_project", "time_embedding": "ddpm"}
_NCSNPP: dict[str, Any] = _SONG | {"resample": "block_fir", "time_embedding": "fourier", "input_skips": True}
_CIFAR: dict[str, Any] = {"channel_multipliers": (2, 2, 2), "attention_levels": (1,), "dropout": 0.13}
_FFHQ: dict[str, Any] = {"channel_multipliers": (1, 2, 2, 2), "attention_levels": (2,), "dropout": 0.05}

_IDDPM_SOURCE = "Nichol and Dhariwal 2021, improved-diffusion"
_ADM_SOURCE = "Dhariwal and Nichol 2021, guided-diffusion"
_EDM_SOURCE = "Karras et al. 2022, EDM"

_PRESETS: dict[str, Preset] = {
    "ddpm-cifar10": Preset(
        _square(32, **_DDPM, channel_multipliers=(1, 2, 2, 2), attention_levels=(1,), dropout=0.1),
        35_746_307,
        6.22,
        "Ho et al. 2020, CIFAR-10; google/ddpm-cifar10-32",
    ),
    "ddpm-256": Preset(
        _square(256, **_DDPM, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,)),
        113_673_219,
        248.51,
        "Ho et al. 2020, LSUN and CelebA-HQ; google/ddpm-{celebahq,church,bedroom,cat}-256",
    ),
    "diffusers-unconditional": Preset(
        _square(
            64, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,), head_channels=8, time_embedding="adm"
        ),
        113_673_219,
        15.52,
        "the default of train_unconditional.py in diffusers",
    ),
    "iddpm-cifar10": Preset(
        _square(32, **_IDDPM, blocks_per_level=3, attention_levels=(1, 2), dropout=0.3), 52_546_438, 8.39, _IDDPM_SOURCE
    ),
    "iddpm-imagenet64": Preset(
        _square(64, **_IDDPM, blocks_per_level=3, channel_multipliers=(1, 2, 3, 4), attention_levels=(2, 3)),
        121_063_942,
        39.74,
        _IDDPM_SOURCE,
    ),
    "iddpm-imagenet64-cond": Preset(
        _square(
            64,
            **_IDDPM,
            classes=1000,
            base_channels=192,
            blocks_per_level=3,
            channel_multipliers=(1, 2, 3, 4),
            attention_levels=(2, 3),
        ),
        273_049_350,
        89.09,
        _IDDPM_SOURCE,
    ),
    "adm-imagenet64": Preset(
        _square(
            64,
            **_ADM,
            classes=1000,
            base_channels=192,
            blocks_per_level=3,
            channel_multipliers=(1, 2, 3, 4),
            attention_levels=(1, 2, 3),
            dropout=0.1,
        ),
        295_904_454,
        109.68,
        _ADM_SOURCE,
    ),
    "adm-imagenet128": Preset(
        _square(
            128,
            **_ADM | _FOUR_HEADS,
            classes=1000,
            base_channels=256,
            channel_multipliers=(1, 1, 2, 3, 4),
            attention_levels=(2, 3, 4),
        ),
        421_529_606,
        306.93,
        _ADM_SOURCE,
    ),
    "adm-imagenet256": Preset(
        _square(
            256,
            **_ADM,
            classes=1000,
            base_channels=256,
            channel_multipliers=(1, 1, 2, 2, 4, 4),
            attention_levels=(3, 4, 5),
        ),
        553_838_086,
        1119.83,
        _ADM_SOURCE,
    ),
    "adm-256-uncond": Preset(
        _square(256, **_ADM, base_channels=256, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(3, 4, 5)),
        552_814_086,
        1119.83,
        f"{_ADM_SOURCE}; also LSUN, there with dropout 0.1",
    ),
    "adm-imagenet512": Preset(
        _square(
            512,
            **_ADM,
            classes=1000,
            base_channels=128,
            time_channels=256,
            channel_multipliers=(1, 2, 2, 4, 4, 8, 8),
            attention_levels=(4, 5, 6),
        ),
        558_997_638,
        1982.33,
        _ADM_SOURCE,
    ),
    "adm-upsampler-64-256": Preset(
        _square(256, **_UPSAMPLER | _FOUR_HEADS, attention_levels=(3, 4, 5)), 311_795_910, 631.64, _ADM_SOURCE
    ),
    "adm-upsampler-128-512": Preset(
        _square(512, **_UPSAMPLER, attention_levels=(4, 5)), 308_835_270, 2504.78, _ADM_SOURCE
    ),
    "edm-cifar10-ddpmpp": Preset(_square(32, **_DDPMPP, **_CIFAR), 55_733_891, 21.19, _EDM_SOURCE),
    "edm-cifar10-ddpmpp-cond": Preset(_square(32, **_DDPMPP, **_CIFAR, classes=10), 55_735_299, 21.19, _EDM_SOURCE),
    "edm-cifar10-ncsnpp": Preset(_square(32, **_NCSNPP, **_CIFAR), 56_397_827, 21.24, _EDM_SOURCE),
    "edm-cifar10-ncsnpp-cond": Preset(_square(32, **_NCSNPP, **_CIFAR, classes=10), 56_400_643, 21.24, _EDM_SOURCE),
    "edm-ffhq64-ddpmpp": Preset(
        _square(64, **_DDPMPP, **_FFHQ), 61_805_571, 41.86, f"{_EDM_SOURCE}; also AFHQv2, there with dropout 0.25"
    ),
    "edm-ffhq64-ncsnpp": Preset(
        _square(64, **_NCSNPP, **_FFHQ), 62_761_091, 42.0, f"{_EDM_SOURCE}; also AFHQv2, there with dropout 0.25"
    ),
    "edm-imagenet64": Preset(
        _square(
            64,
            classes=1000,
            base_channels=192,
            blocks_per_level=3,
            channel_multipliers=(1, 2, 3, 4),
            attention_levels=(1, 2, 3),
            head_channels=64,
            group_channels=4,
            conditioning="scale_shift",
            resample="block",
            time_embedding="adm",
            label_embedding="linear",
            dropout=0.1,
        ),
        295_899_267,
        109.66,
        _EDM_SOURCE,
    ),
}
# parameters, 10⁹ multiply-adds
_EDM2_SIZES = {
    "edm2-img64-xs": (124_710_949, 44.94),
    "edm2-img64-s": (280_209_381, 100.8),
    "edm2-img64-m": (497_803_173, 178.93),
    "edm2-img64-l": (777_492_325, 279.31),
    "edm2-img64-xl": (1_119_276_837, 401.96),
    "edm2-img512-xxs": (31_309_029, 11.35),
    "edm2-img512-xs": (124_713_253, 44.95),
    "edm2-img512-s": (280_212_837, 100.82),
    "edm2-img512-m": (497_807_781, 178.95),
    "edm2-img512-l": (777_498_085, 279.34),
    "edm2-img512-xl": (1_119_283_749, 401.99),
    "edm2-img512-xxl": (1_523_164_773, 546.9),
}
_PRESETS |= {
    name: Preset(EDM2_PRESETS[name], *size, "Karras et al. 2024, EDM2, ImageNet") for name, size in _EDM2_SIZES.items()
}


def list_presets(config_class: type | None = None) -> dict[str, Preset]:
    """Every published network that `preset` knows, by name, with its size and source.

    All, or those of one class of config (`UNetConfig`, `EDM2Config`).
    """
    return {name: p for name, p in _PRESETS.items() if config_class is None or isinstance(p.config, config_class)}


def preset(name: str) -> UNetConfig | EDM2Config:
    """The config of a published network, with the dropout it was trained with.

    Raises ValueError for an unknown name, with the nearest ones.
    """
    return _PRESETS[require_known("preset", name, _PRESETS)].config


def build(config: UNetConfig | EDM2Config, max_bytes: int = 2**40) -> UNet | EDM2UNet:
    """The network that a config describes, freshly initialised, on the default device.

    Raises ValueError, before memory is taken, if its weights would take more than `max_bytes`.
    """

    def make() -> UNet | EDM2UNet:
        return UNet(config) if isinstance(config, UNetConfig) else EDM2UNet(config)

    if torch.get_default_device().type != "meta":
        check_weight_bytes(make, max_bytes)
    return make()
