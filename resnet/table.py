"""Published networks as data: name, config, parameters, 10⁹ multiply-adds, published result, source."""

from typing import Any

from residual.model_info import ModelInfo
from resnet.config.classifier import ClassifierConfig
from resnet.config.densenet import DenseNetConfig
from resnet.config.edsr import EDSRConfig
from resnet.config.families import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    cifar_densenet,
    cifar_resnet,
    imagenet_resnet,
    wide_resnet,
)
from resnet.config.highway import HighwayConfig

Config = ClassifierConfig | EDSRConfig
Row = tuple[Config, int, float, str]

_D: dict[str, Any] = {"stem": "deep", "shortcut": "D", "zero_init": True}
_RESNEST: dict[str, Any] = {"block": "split_attention", "stem": "deep", "shortcut": "D"}
_V2: dict[str, Any] = {"block": "preact_bottleneck", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_SE: dict[str, Any] = {"se_reduction": 16, "zero_init": True}
_A: dict[str, Any] = {"shortcut": "A_split"}
_V1: dict[str, Any] = {"stride_in": "1x1"}
_CIFAR_X: dict[str, Any] = {"block": "bottleneck", "widths": (64, 128, 256), "stem_channels": 64}
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_LARGE: dict[str, Any] = _IMAGENET | {"growth": 48, "stem_channels": 96}
_EDSR_WIDE: dict[str, Any] = {"channels": 256, "blocks": 32, "branch_scale": 0.1}

# Source and side of the images in pixels -> name -> config, parameters, 10⁹ multiply-adds, published result.
_ROWS: dict[tuple[str, int], dict[str, Row]] = {
    # torchvision: stride in the 3x3 ("v1.5"). Top-1 of the first and, if published, the second set of weights.
    ("He et al. 2015; torchvision", 224): {
        "resnet18": (imagenet_resnet(18), 11_689_512, 1.814, "69.758 %"),
        "resnet34": (imagenet_resnet(34), 21_797_672, 3.664, "73.314 %"),
        "resnet50": (imagenet_resnet(50), 25_557_032, 4.089, "76.130 %, 80.858 %"),
        "resnet101": (imagenet_resnet(101), 44_549_160, 7.801, "77.374 %, 81.886 %"),
        "resnet152": (imagenet_resnet(152), 60_192_808, 11.514, "78.312 %, 82.284 %"),
    },
    ("Xie et al. 2017; torchvision", 224): {
        "resnext50_32x4d": (imagenet_resnet(50, groups=32, group_width=4), 25_028_904, 4.230, "77.618 %, 81.198 %"),
        "resnext101_32x8d": (imagenet_resnet(101, groups=32, group_width=8), 88_791_336, 16.414, "79.312 %, 82.834 %"),
        "resnext101_64x4d": (imagenet_resnet(101, groups=64, group_width=4), 83_455_272, 15.460, "83.246 %"),
    },
    ("Zagoruyko and Komodakis 2016; torchvision", 224): {
        "wide_resnet50_2": (imagenet_resnet(50, group_width=128), 68_883_240, 11.398, "78.468 %, 81.602 %"),
        "wide_resnet101_2": (imagenet_resnet(101, group_width=128), 126_886_696, 22.753, "78.848 %, 82.510 %"),
    },
    # timm: all but pre-activation and ResNeSt initialise the last norm of each branch with zeros.
    ("He et al. 2019; timm", 224): {
        "resnet18d": (imagenet_resnet(18, **_D), 11_708_744, 2.054, ""),
        "resnet26d": (imagenet_resnet(26, **_D), 16_014_408, 2.582, "76.698 %"),
        "resnet34d": (imagenet_resnet(34, **_D), 21_816_904, 3.903, ""),
        "resnet50d": (imagenet_resnet(50, **_D), 25_576_264, 4.329, "80.546 %"),
        "resnet101d": (imagenet_resnet(101, **_D), 44_568_392, 8.041, "83.020 % at 320 px"),
        "resnet152d": (imagenet_resnet(152, **_D), 60_212_040, 11.753, "83.684 % at 320 px"),
    },
    ("Wu and He 2018; timm", 224): {
        "resnet50_gn": (imagenet_resnet(50, norm="group", zero_init=True), 25_557_032, 4.089, "80.074 %"),
    },
    ("Hu et al. 2018; timm", 224): {
        "seresnet18": (imagenet_resnet(18, **_SE), 11_779_624, 1.814, ""),
        "seresnet34": (imagenet_resnet(34, **_SE), 21_960_416, 3.664, ""),
        "seresnet50": (imagenet_resnet(50, **_SE), 28_088_024, 4.092, "80.260 %"),
        "seresnet101": (imagenet_resnet(101, **_SE), 49_326_872, 7.806, ""),
        "seresnet152": (imagenet_resnet(152, **_SE), 66_821_848, 11.520, ""),
        "seresnext50_32x4d": (imagenet_resnet(50, groups=32, group_width=4, **_SE), 27_559_896, 4.233, ""),
    },
    ("Zhang et al. 2020; timm", 224): {
        "resnest14d": (imagenet_resnet(14, **_RESNEST), 10_611_688, 2.749, "75.516 %"),
        "resnest26d": (imagenet_resnet(26, **_RESNEST), 17_069_448, 3.623, "78.476 %"),
        "resnest50d": (imagenet_resnet(50, **_RESNEST), 27_483_240, 5.371, "80.958 %"),
    },
    ("Zhang et al. 2020; timm", 256): {
        "resnest101e": (imagenet_resnet(101, stem_channels=128, **_RESNEST), 48_275_016, 13.321, "82.916 %")
    },
    ("Zhang et al. 2020; timm", 320): {
        "resnest200e": (imagenet_resnet(200, stem_channels=128, **_RESNEST), 70_201_544, 35.520, "83.880 %")
    },
    ("Zhang et al. 2020; timm", 416): {
        "resnest269e": (imagenet_resnet(269, stem_channels=128, **_RESNEST), 110_929_480, 77.349, "84.542 %")
    },
    ("He et al. 2016; timm", 224): {
        "resnetv2_50": (imagenet_resnet(50, **_V2), 25_549_352, 4.089, "80.410 %"),
        "resnetv2_101": (imagenet_resnet(101, **_V2), 44_541_480, 7.801, "82.042 %"),
        "resnetv2_152": (imagenet_resnet(152, **_V2), 60_185_128, 11.514, ""),
    },
    # CIFAR-10: error of a single model.
    ("He et al. 2015, section 4.2; akamaster", 32): {
        "resnet20": (cifar_resnet(20, **_A), 269_722, 0.041, "8.75 %"),
        "resnet32": (cifar_resnet(32, **_A), 464_154, 0.069, "7.51 %"),
        "resnet44": (cifar_resnet(44, **_A), 658_586, 0.097, "7.17 %"),
        "resnet56": (cifar_resnet(56, **_A), 853_018, 0.125, "6.97 %"),
        "resnet110": (cifar_resnet(110, **_A), 1_727_962, 0.253, "6.43 % (6.61 ± 0.16)"),
        "resnet1202": (cifar_resnet(1202, **_A), 19_421_274, 2.829, "7.93 %"),
    },
    ("He et al. 2015, section 4.2", 32): {
        "plain20": (cifar_resnet(20, shortcut="none"), 269_722, 0.041, ""),
        "plain32": (cifar_resnet(32, shortcut="none"), 464_154, 0.069, ""),
        "plain44": (cifar_resnet(44, shortcut="none"), 658_586, 0.097, ""),
        "plain56": (cifar_resnet(56, shortcut="none"), 853_018, 0.125, ""),
        "plain110": (cifar_resnet(110, shortcut="none"), 1_727_962, 0.253, "above 60 %"),
    },
    ("He et al. 2016", 32): {
        "preact_resnet110": (cifar_resnet(110, "preact_basic", shortcut="A"), 1_727_962, 0.253, "6.37 %"),
    },
    ("He et al. 2016; resnet-1k-layers", 32): {
        "preact_resnet164": (cifar_resnet(164, "preact_bottleneck", **_V1), 1_703_258, 0.245, "5.46 %"),
        "preact_resnet1001": (cifar_resnet(1001, "preact_bottleneck", **_V1), 10_327_706, 1.488, "4.92 %"),
    },
    ("Zagoruyko and Komodakis 2016; wide-residual-networks", 32): {
        "wrn_16_4": (wide_resnet(16, 4), 2_748_890, 0.393, ""),
        "wrn_16_8": (wide_resnet(16, 8), 10_961_370, 1.548, ""),
        "wrn_28_10": (wide_resnet(28, 10), 36_479_194, 5.243, "4.00 %"),
        "wrn_40_4": (wide_resnet(40, 4), 8_949_210, 1.299, ""),
    },
    ("Xie et al. 2017; ResNeXt", 32): {
        "resnext29_8x64d": (cifar_resnet(29, groups=8, **_CIFAR_X), 34_426_698, 5.387, "3.69 % (bearpaw)"),
        "resnext29_16x64d": (cifar_resnet(29, groups=16, **_CIFAR_X), 68_155_210, 10.689, "3.53 % (bearpaw)"),
    },
    # torchvision: top-1 on ImageNet.
    ("Huang et al. 2017; torchvision", 224): {
        "densenet121": (DenseNetConfig(blocks_per_stage=(6, 12, 24, 16), **_IMAGENET), 7_978_856, 2.834, "74.434 %"),
        "densenet161": (DenseNetConfig(blocks_per_stage=(6, 12, 36, 24), **_LARGE), 28_681_000, 7.728, "77.138 %"),
        "densenet169": (DenseNetConfig(blocks_per_stage=(6, 12, 32, 32), **_IMAGENET), 14_149_480, 3.360, "75.600 %"),
        "densenet201": (DenseNetConfig(blocks_per_stage=(6, 12, 48, 32), **_IMAGENET), 20_013_928, 4.291, "76.896 %"),
    },
    # CIFAR-10 with augmentation: error of a single model.
    ("Huang et al. 2017; liuzhuang13/DenseNet", 32): {
        "densenet_40_12": (cifar_densenet(40, 12, compressed=False), 1_019_722, 0.265, "5.24 %"),
        "densenet_bc_100_12": (cifar_densenet(100, 12, compressed=True), 769_162, 0.288, "4.51 %"),
        "densenet_bc_190_40": (cifar_densenet(190, 40, compressed=True), 25_624_430, 9.302, "3.46 %"),
        "densenet_bc_250_24": (cifar_densenet(250, 24, compressed=True), 15_324_406, 5.419, "3.62 %"),
    },
    # CIFAR-10: error. The layers of highway19 are those of the authors' cifar10_network.prototxt, with 10 instead of
    # 100 outputs. Of the network with 32 layers only the size was published, 1.25 million parameters. highway32
    # follows the same pattern with 9 layers per stage; its widths are chosen to give that size.
    ("Srivastava et al. 2015; highway-networks", 32): {
        "highway19": (HighwayConfig(), 2_256_838, 0.331, "7.54 % (7.72 ± 0.16)")
    },
    ("Srivastava et al. 2015; widths assumed", 32): {
        "highway32": (HighwayConfig(blocks_per_stage=(9, 9, 9), widths=(32, 48, 64)), 1_255_270, 0.314, "8.80 %"),
    },
    # PSNR on DIV2K. Multiply-adds are for an input of 48 px.
    ("Lim et al. 2017; EDSR-PyTorch", 48): {
        "edsr_baseline_x2": (EDSRConfig(scale=2), 1_369_859, 3.162, "34.61 dB"),
        "edsr_baseline_x3": (EDSRConfig(scale=3), 1_554_499, 3.607, "30.92 dB"),
        "edsr_baseline_x4": (EDSRConfig(scale=4), 1_517_571, 4.569, "28.95 dB"),
        "edsr_x2": (EDSRConfig(scale=2, **_EDSR_WIDE), 40_729_603, 93.847, "35.03 dB"),
        "edsr_x3": (EDSRConfig(scale=3, **_EDSR_WIDE), 43_680_003, 100.722, "31.26 dB"),
        "edsr_x4": (EDSRConfig(scale=4, **_EDSR_WIDE), 43_089_923, 115.782, "29.25 dB"),
    },
}
MODELS = {
    name: ModelInfo(config, parameters, giga_multiply_adds, source, result, size_px)
    for (source, size_px), rows in _ROWS.items()
    for name, (config, parameters, giga_multiply_adds, result) in rows.items()
}
