"""Table of published U-Nets."""

from typing import Any

from residual.model_info import ModelInfo
from unet.config import UNetConfig
from unet.edm2_config import EDM2Config


def _square(
    side: int,
    base_channels: int,
    channel_multipliers: tuple[float, ...],
    attention_levels: tuple[int, ...],
    blocks_per_level: int = 2,
    **fields: Any,
) -> UNetConfig:
    return UNetConfig(
        size=(side, side),
        base_channels=base_channels,
        channel_multipliers=channel_multipliers,
        attention_levels=attention_levels,
        blocks_per_level=blocks_per_level,
        **fields,
    )


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
_CONDITIONAL: dict[str, Any] = {"classes": 1000}
_UPSAMPLER: dict[str, Any] = _ADM | _CONDITIONAL | {"in_channels": 6}
_SONG: dict[str, Any] = {
    "augment_channels": 9,
    "group_channels": 4,
    "conditioning": "add",
    "label_embedding": "linear_first",
    "decoder_attention": "last",
    "residual_scale": 0.5**0.5,
    "eps": 1e-6,
    "init": "xavier",
}
_DDPMPP: dict[str, Any] = _SONG | {"resample": "block_project", "time_embedding": "ddpm"}
_NCSNPP: dict[str, Any] = _SONG | {"resample": "block_fir", "time_embedding": "fourier", "input_skips": True}
_EDM_ADM: dict[str, Any] = {
    "head_channels": 64,
    "group_channels": 4,
    "conditioning": "scale_shift",
    "resample": "block",
    "time_embedding": "adm",
    "label_embedding": "linear",
}
_FOUR_LEVELS, _SIX_LEVELS = (1, 2, 3, 4), (1, 1, 2, 2, 4, 4)
# side, base_channels, channel_multipliers, attention_levels, blocks_per_level
_CIFAR = (32, 128, (2, 2, 2), (1,), 4)
_FFHQ = (64, 128, (1, 2, 2, 2), (2,), 4)

_IDDPM_SOURCE = "Nichol and Dhariwal 2021, improved-diffusion"
_ADM_SOURCE = "Dhariwal and Nichol 2021, guided-diffusion"
_EDM_SOURCE = "Karras et al. 2022, EDM"
_FFHQ_SOURCE = f"{_EDM_SOURCE}; also AFHQv2, there with dropout 0.25"

# name -> config, parameters, 10⁹ multiply-adds, source
_UNETS: dict[str, tuple[UNetConfig, int, float, str]] = {
    "ddpm-cifar10": (
        _square(32, 128, (1, 2, 2, 2), (1,), **_DDPM, dropout=0.1),
        35_746_307,
        6.22,
        "Ho et al. 2020, CIFAR-10; google/ddpm-cifar10-32",
    ),
    "ddpm-256": (
        _square(256, 128, _SIX_LEVELS, (4,), **_DDPM),
        113_673_219,
        248.51,
        "Ho et al. 2020, LSUN and CelebA-HQ; google/ddpm-{celebahq,church,bedroom,cat}-256",
    ),
    "diffusers-unconditional": (
        _square(64, 128, _SIX_LEVELS, (4,), head_channels=8, time_embedding="adm"),
        113_673_219,
        15.52,
        "the default of train_unconditional.py in diffusers",
    ),
    "iddpm-cifar10": (
        _square(32, 128, (1, 2, 2, 2), (1, 2), 3, **_IDDPM, dropout=0.3),
        52_546_438,
        8.39,
        _IDDPM_SOURCE,
    ),
    "iddpm-imagenet64": (_square(64, 128, _FOUR_LEVELS, (2, 3), 3, **_IDDPM), 121_063_942, 39.74, _IDDPM_SOURCE),
    "iddpm-imagenet64-cond": (
        _square(64, 192, _FOUR_LEVELS, (2, 3), 3, **_IDDPM | _CONDITIONAL),
        273_049_350,
        89.09,
        _IDDPM_SOURCE,
    ),
    "adm-imagenet64": (
        _square(64, 192, _FOUR_LEVELS, (1, 2, 3), 3, **_ADM | _CONDITIONAL, dropout=0.1),
        295_904_454,
        109.68,
        _ADM_SOURCE,
    ),
    "adm-imagenet128": (
        _square(128, 256, (1, 1, 2, 3, 4), (2, 3, 4), **_ADM | _FOUR_HEADS | _CONDITIONAL),
        421_529_606,
        306.93,
        _ADM_SOURCE,
    ),
    "adm-imagenet256": (
        _square(256, 256, _SIX_LEVELS, (3, 4, 5), **_ADM | _CONDITIONAL),
        553_838_086,
        1119.83,
        _ADM_SOURCE,
    ),
    "adm-256-uncond": (
        _square(256, 256, _SIX_LEVELS, (3, 4, 5), **_ADM),
        552_814_086,
        1119.83,
        f"{_ADM_SOURCE}; also LSUN, there with dropout 0.1",
    ),
    "adm-imagenet512": (
        _square(512, 128, (1, 2, 2, 4, 4, 8, 8), (4, 5, 6), **_ADM | _CONDITIONAL, time_channels=256),
        558_997_638,
        1982.33,
        _ADM_SOURCE,
    ),
    "adm-upsampler-64-256": (
        _square(256, 192, _SIX_LEVELS, (3, 4, 5), **_UPSAMPLER | _FOUR_HEADS),
        311_795_910,
        631.64,
        _ADM_SOURCE,
    ),
    "adm-upsampler-128-512": (_square(512, 192, _SIX_LEVELS, (4, 5), **_UPSAMPLER), 308_835_270, 2504.78, _ADM_SOURCE),
    "edm-cifar10-ddpmpp": (_square(*_CIFAR, **_DDPMPP, dropout=0.13), 55_733_891, 21.19, _EDM_SOURCE),
    "edm-cifar10-ddpmpp-cond": (_square(*_CIFAR, **_DDPMPP, dropout=0.13, classes=10), 55_735_299, 21.19, _EDM_SOURCE),
    "edm-cifar10-ncsnpp": (_square(*_CIFAR, **_NCSNPP, dropout=0.13), 56_397_827, 21.24, _EDM_SOURCE),
    "edm-cifar10-ncsnpp-cond": (_square(*_CIFAR, **_NCSNPP, dropout=0.13, classes=10), 56_400_643, 21.24, _EDM_SOURCE),
    "edm-ffhq64-ddpmpp": (_square(*_FFHQ, **_DDPMPP, dropout=0.05), 61_805_571, 41.86, _FFHQ_SOURCE),
    "edm-ffhq64-ncsnpp": (_square(*_FFHQ, **_NCSNPP, dropout=0.05), 62_761_091, 42.0, _FFHQ_SOURCE),
    "edm-imagenet64": (
        _square(64, 192, _FOUR_LEVELS, (1, 2, 3), 3, **_EDM_ADM | _CONDITIONAL, dropout=0.1),
        295_899_267,
        109.66,
        _EDM_SOURCE,
    ),
}
# name -> base_channels, dropout
_EDM2_WIDTHS = {
    "xxs": (64, 0.0),
    "xs": (128, 0.0),
    "s": (192, 0.0),
    "m": (256, 0.1),
    "l": (320, 0.1),
    "xl": (384, 0.1),
    "xxl": (448, 0.1),
}
# image size, name -> parameters, 10⁹ multiply-adds; size 512 is for latents of 4 × 64 × 64
_EDM2_COUNTS = {
    (64, "xs"): (124_710_949, 44.94),
    (64, "s"): (280_209_381, 100.8),
    (64, "m"): (497_803_173, 178.93),
    (64, "l"): (777_492_325, 279.31),
    (64, "xl"): (1_119_276_837, 401.96),
    (512, "xxs"): (31_309_029, 11.35),
    (512, "xs"): (124_713_253, 44.95),
    (512, "s"): (280_212_837, 100.82),
    (512, "m"): (497_807_781, 178.95),
    (512, "l"): (777_498_085, 279.34),
    (512, "xl"): (1_119_283_749, 401.99),
    (512, "xxl"): (1_523_164_773, 546.9),
}


def _edm2(image_size: int, name: str) -> EDM2Config:
    channels = 4 if image_size == 512 else 3
    width, dropout = _EDM2_WIDTHS[name]
    return EDM2Config(in_channels=channels, out_channels=channels, classes=1000, base_channels=width, dropout=dropout)


PRESETS: dict[str, ModelInfo[UNetConfig | EDM2Config]] = {
    **{name: ModelInfo(*row) for name, row in _UNETS.items()},
    **{
        f"edm2-img{size}-{name}": ModelInfo(_edm2(size, name), *counts, "Karras et al. 2024, EDM2, ImageNet")
        for (size, name), counts in _EDM2_COUNTS.items()
    },
}
