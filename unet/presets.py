"""Table of published U-Nets."""

from typing import Any

from residual.model_info import ModelInfo
from unet.config import UNetConfig
from unet.edm2_config import EDM2Config


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

PRESETS: dict[str, ModelInfo[UNetConfig | EDM2Config]] = {
    "ddpm-cifar10": ModelInfo(
        _square(32, **_DDPM, channel_multipliers=(1, 2, 2, 2), attention_levels=(1,), dropout=0.1),
        35_746_307,
        6.22,
        "Ho et al. 2020, CIFAR-10; google/ddpm-cifar10-32",
    ),
    "ddpm-256": ModelInfo(
        _square(256, **_DDPM, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,)),
        113_673_219,
        248.51,
        "Ho et al. 2020, LSUN and CelebA-HQ; google/ddpm-{celebahq,church,bedroom,cat}-256",
    ),
    "diffusers-unconditional": ModelInfo(
        _square(
            64, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,), head_channels=8, time_embedding="adm"
        ),
        113_673_219,
        15.52,
        "the default of train_unconditional.py in diffusers",
    ),
    "iddpm-cifar10": ModelInfo(
        _square(32, **_IDDPM, blocks_per_level=3, attention_levels=(1, 2), dropout=0.3), 52_546_438, 8.39, _IDDPM_SOURCE
    ),
    "iddpm-imagenet64": ModelInfo(
        _square(64, **_IDDPM, blocks_per_level=3, channel_multipliers=(1, 2, 3, 4), attention_levels=(2, 3)),
        121_063_942,
        39.74,
        _IDDPM_SOURCE,
    ),
    "iddpm-imagenet64-cond": ModelInfo(
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
    "adm-imagenet64": ModelInfo(
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
    "adm-imagenet128": ModelInfo(
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
    "adm-imagenet256": ModelInfo(
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
    "adm-256-uncond": ModelInfo(
        _square(256, **_ADM, base_channels=256, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(3, 4, 5)),
        552_814_086,
        1119.83,
        f"{_ADM_SOURCE}; also LSUN, there with dropout 0.1",
    ),
    "adm-imagenet512": ModelInfo(
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
    "adm-upsampler-64-256": ModelInfo(
        _square(256, **_UPSAMPLER | _FOUR_HEADS, attention_levels=(3, 4, 5)), 311_795_910, 631.64, _ADM_SOURCE
    ),
    "adm-upsampler-128-512": ModelInfo(
        _square(512, **_UPSAMPLER, attention_levels=(4, 5)), 308_835_270, 2504.78, _ADM_SOURCE
    ),
    "edm-cifar10-ddpmpp": ModelInfo(_square(32, **_DDPMPP, **_CIFAR), 55_733_891, 21.19, _EDM_SOURCE),
    "edm-cifar10-ddpmpp-cond": ModelInfo(_square(32, **_DDPMPP, **_CIFAR, classes=10), 55_735_299, 21.19, _EDM_SOURCE),
    "edm-cifar10-ncsnpp": ModelInfo(_square(32, **_NCSNPP, **_CIFAR), 56_397_827, 21.24, _EDM_SOURCE),
    "edm-cifar10-ncsnpp-cond": ModelInfo(_square(32, **_NCSNPP, **_CIFAR, classes=10), 56_400_643, 21.24, _EDM_SOURCE),
    "edm-ffhq64-ddpmpp": ModelInfo(
        _square(64, **_DDPMPP, **_FFHQ), 61_805_571, 41.86, f"{_EDM_SOURCE}; also AFHQv2, there with dropout 0.25"
    ),
    "edm-ffhq64-ncsnpp": ModelInfo(
        _square(64, **_NCSNPP, **_FFHQ), 62_761_091, 42.0, f"{_EDM_SOURCE}; also AFHQv2, there with dropout 0.25"
    ),
    "edm-imagenet64": ModelInfo(
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


PRESETS |= {
    f"edm2-img{size}-{name}": ModelInfo(_edm2(size, name), *counts, "Karras et al. 2024, EDM2, ImageNet")
    for (size, name), counts in _EDM2_COUNTS.items()
}
