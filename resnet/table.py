"""Published networks as data: name, config, parameters, 10⁹ multiply-adds, published result, source."""

from collections.abc import Mapping
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
    preact_imagenet_resnet,
    resnest,
    wide_resnet,
)
from resnet.config.highway import HighwayConfig

Config = ClassifierConfig | EDSRConfig
Row = tuple[Config, int, float, str]

# torchvision: stride in the 3x3 ("v1.5"). Top-1 of the first and, if published, the second set of weights.
_TORCHVISION: dict[str, Row] = {
    "resnet18": (imagenet_resnet(18), 11_689_512, 1.814, "69.758 %"),
    "resnet34": (imagenet_resnet(34), 21_797_672, 3.664, "73.314 %"),
    "resnet50": (imagenet_resnet(50), 25_557_032, 4.089, "76.130 %, 80.858 %"),
    "resnet101": (imagenet_resnet(101), 44_549_160, 7.801, "77.374 %, 81.886 %"),
    "resnet152": (imagenet_resnet(152), 60_192_808, 11.514, "78.312 %, 82.284 %"),
}
_RESNEXT: dict[str, Row] = {
    "resnext50_32x4d": (imagenet_resnet(50, groups=32, group_width=4), 25_028_904, 4.230, "77.618 %, 81.198 %"),
    "resnext101_32x8d": (imagenet_resnet(101, groups=32, group_width=8), 88_791_336, 16.414, "79.312 %, 82.834 %"),
    "resnext101_64x4d": (imagenet_resnet(101, groups=64, group_width=4), 83_455_272, 15.460, "83.246 %"),
}
_WIDE: dict[str, Row] = {
    "wide_resnet50_2": (imagenet_resnet(50, group_width=128), 68_883_240, 11.398, "78.468 %, 81.602 %"),
    "wide_resnet101_2": (imagenet_resnet(101, group_width=128), 126_886_696, 22.753, "78.848 %, 82.510 %"),
}
# timm: all but pre-activation and ResNeSt initialise the last norm of each branch with zeros.
_D: dict[str, Any] = {"stem": "deep", "shortcut": "D", "zero_init": True}
_RESNET_D: dict[str, Row] = {
    "resnet18d": (imagenet_resnet(18, **_D), 11_708_744, 2.054, ""),
    "resnet26d": (imagenet_resnet(26, **_D), 16_014_408, 2.582, "76.698 %"),
    "resnet34d": (imagenet_resnet(34, **_D), 21_816_904, 3.903, ""),
    "resnet50d": (imagenet_resnet(50, **_D), 25_576_264, 4.329, "80.546 %"),
    "resnet101d": (imagenet_resnet(101, **_D), 44_568_392, 8.041, "83.020 % at 320 px"),
    "resnet152d": (imagenet_resnet(152, **_D), 60_212_040, 11.753, "83.684 % at 320 px"),
}
_GROUP_NORM: dict[str, Row] = {
    "resnet50_gn": (imagenet_resnet(50, norm="group", zero_init=True), 25_557_032, 4.089, "80.074 %"),
}
_SE: dict[str, Any] = {"se_reduction": 16, "zero_init": True}
_SE_RESNET: dict[str, Row] = {
    "seresnet18": (imagenet_resnet(18, **_SE), 11_779_624, 1.814, ""),
    "seresnet34": (imagenet_resnet(34, **_SE), 21_960_416, 3.664, ""),
    "seresnet50": (imagenet_resnet(50, **_SE), 28_088_024, 4.092, "80.260 %"),
    "seresnet101": (imagenet_resnet(101, **_SE), 49_326_872, 7.806, ""),
    "seresnet152": (imagenet_resnet(152, **_SE), 66_821_848, 11.520, ""),
    "seresnext50_32x4d": (imagenet_resnet(50, groups=32, group_width=4, **_SE), 27_559_896, 4.233, ""),
}
_RESNEST: dict[str, Row] = {
    "resnest14d": (resnest(14), 10_611_688, 2.749, "75.516 %"),
    "resnest26d": (resnest(26), 17_069_448, 3.623, "78.476 %"),
    "resnest50d": (resnest(50), 27_483_240, 5.371, "80.958 %"),
}
_RESNEST_101: dict[str, Row] = {"resnest101e": (resnest(101, stem_channels=128), 48_275_016, 13.321, "82.916 %")}
_RESNEST_200: dict[str, Row] = {"resnest200e": (resnest(200, stem_channels=128), 70_201_544, 35.520, "83.880 %")}
_RESNEST_269: dict[str, Row] = {"resnest269e": (resnest(269, stem_channels=128), 110_929_480, 77.349, "84.542 %")}
_PREACT: dict[str, Row] = {
    "resnetv2_50": (preact_imagenet_resnet(50), 25_549_352, 4.089, "80.410 %"),
    "resnetv2_101": (preact_imagenet_resnet(101), 44_541_480, 7.801, "82.042 %"),
    "resnetv2_152": (preact_imagenet_resnet(152), 60_185_128, 11.514, ""),
}
# CIFAR-10: error of a single model.
_A: dict[str, Any] = {"shortcut": "A_split"}
_CIFAR: dict[str, Row] = {
    "resnet20": (cifar_resnet(20, **_A), 269_722, 0.041, "8.75 %"),
    "resnet32": (cifar_resnet(32, **_A), 464_154, 0.069, "7.51 %"),
    "resnet44": (cifar_resnet(44, **_A), 658_586, 0.097, "7.17 %"),
    "resnet56": (cifar_resnet(56, **_A), 853_018, 0.125, "6.97 %"),
    "resnet110": (cifar_resnet(110, **_A), 1_727_962, 0.253, "6.43 % (6.61 ± 0.16)"),
    "resnet1202": (cifar_resnet(1202, **_A), 19_421_274, 2.829, "7.93 %"),
}
_PLAIN: dict[str, Row] = {
    "plain20": (cifar_resnet(20, shortcut="none"), 269_722, 0.041, ""),
    "plain32": (cifar_resnet(32, shortcut="none"), 464_154, 0.069, ""),
    "plain44": (cifar_resnet(44, shortcut="none"), 658_586, 0.097, ""),
    "plain56": (cifar_resnet(56, shortcut="none"), 853_018, 0.125, ""),
    "plain110": (cifar_resnet(110, shortcut="none"), 1_727_962, 0.253, "above 60 %"),
}
_CIFAR_PREACT_A: dict[str, Row] = {
    "preact_resnet110": (cifar_resnet(110, "preact_basic", shortcut="A"), 1_727_962, 0.253, "6.37 %"),
}
_V1: dict[str, Any] = {"stride_in": "1x1"}
_CIFAR_PREACT: dict[str, Row] = {
    "preact_resnet164": (cifar_resnet(164, "preact_bottleneck", **_V1), 1_703_258, 0.245, "5.46 %"),
    "preact_resnet1001": (cifar_resnet(1001, "preact_bottleneck", **_V1), 10_327_706, 1.488, "4.92 %"),
}
_WRN: dict[str, Row] = {
    "wrn_16_4": (wide_resnet(16, 4), 2_748_890, 0.393, ""),
    "wrn_16_8": (wide_resnet(16, 8), 10_961_370, 1.548, ""),
    "wrn_28_10": (wide_resnet(28, 10), 36_479_194, 5.243, "4.00 %"),
    "wrn_40_4": (wide_resnet(40, 4), 8_949_210, 1.299, ""),
}
_WIDTHS: dict[str, Any] = {"widths": (64, 128, 256), "stem_channels": 64}
_CIFAR_RESNEXT: dict[str, Row] = {
    "resnext29_8x64d": (cifar_resnet(29, "bottleneck", groups=8, **_WIDTHS), 34_426_698, 5.387, "3.69 % (bearpaw)"),
    "resnext29_16x64d": (cifar_resnet(29, "bottleneck", groups=16, **_WIDTHS), 68_155_210, 10.689, "3.53 % (bearpaw)"),
}
# torchvision: top-1 on ImageNet.
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_LARGE: dict[str, Any] = _IMAGENET | {"growth": 48, "stem_channels": 96}
_DENSENET: dict[str, Row] = {
    "densenet121": (DenseNetConfig(blocks_per_stage=(6, 12, 24, 16), **_IMAGENET), 7_978_856, 2.834, "74.434 %"),
    "densenet161": (DenseNetConfig(blocks_per_stage=(6, 12, 36, 24), **_LARGE), 28_681_000, 7.728, "77.138 %"),
    "densenet169": (DenseNetConfig(blocks_per_stage=(6, 12, 32, 32), **_IMAGENET), 14_149_480, 3.360, "75.600 %"),
    "densenet201": (DenseNetConfig(blocks_per_stage=(6, 12, 48, 32), **_IMAGENET), 20_013_928, 4.291, "76.896 %"),
}
# CIFAR-10 with augmentation: error of a single model.
_DENSENET_CIFAR: dict[str, Row] = {
    "densenet_40_12": (cifar_densenet(40, 12, compressed=False), 1_019_722, 0.265, "5.24 %"),
    "densenet_bc_100_12": (cifar_densenet(100, 12, compressed=True), 769_162, 0.288, "4.51 %"),
    "densenet_bc_190_40": (cifar_densenet(190, 40, compressed=True), 25_624_430, 9.302, "3.46 %"),
    "densenet_bc_250_24": (cifar_densenet(250, 24, compressed=True), 15_324_406, 5.419, "3.62 %"),
}
# CIFAR-10: error. The layers of highway19 are those of the authors' cifar10_network.prototxt, with 10 instead of 100
# outputs. Of the network with 32 layers only the size was published, 1.25 million parameters. highway32 follows the
# same pattern with 9 layers per stage; its widths are chosen to give that size.
_HIGHWAY: dict[str, Row] = {
    "highway19": (
        HighwayConfig(blocks_per_stage=(4, 5, 5), widths=(32, 80, 128)),
        2_256_838,
        0.331,
        "7.54 % (7.72 ± 0.16)",
    )
}
_HIGHWAY_ASSUMED: dict[str, Row] = {
    "highway32": (HighwayConfig(blocks_per_stage=(9, 9, 9), widths=(32, 48, 64)), 1_255_270, 0.314, "8.80 %"),
}
# PSNR on DIV2K. Multiply-adds are for an input of 48 px.
_EDSR_WIDE: dict[str, Any] = {"channels": 256, "blocks": 32, "branch_scale": 0.1}
_EDSR: dict[str, Row] = {
    "edsr_baseline_x2": (EDSRConfig(scale=2), 1_369_859, 3.162, "34.61 dB"),
    "edsr_baseline_x3": (EDSRConfig(scale=3), 1_554_499, 3.607, "30.92 dB"),
    "edsr_baseline_x4": (EDSRConfig(scale=4), 1_517_571, 4.569, "28.95 dB"),
    "edsr_x2": (EDSRConfig(scale=2, **_EDSR_WIDE), 40_729_603, 93.847, "35.03 dB"),
    "edsr_x3": (EDSRConfig(scale=3, **_EDSR_WIDE), 43_680_003, 100.722, "31.26 dB"),
    "edsr_x4": (EDSRConfig(scale=4, **_EDSR_WIDE), 43_089_923, 115.782, "29.25 dB"),
}


def _models(rows: Mapping[str, Row], source: str, size_px: int = 224) -> dict[str, ModelInfo[Config]]:
    return {
        name: ModelInfo(config, parameters, giga_multiply_adds, source, result, size_px)
        for name, (config, parameters, giga_multiply_adds, result) in rows.items()
    }


MODELS: dict[str, ModelInfo[Config]] = {
    **_models(_TORCHVISION, "He et al. 2015; torchvision"),
    **_models(_RESNEXT, "Xie et al. 2017; torchvision"),
    **_models(_WIDE, "Zagoruyko and Komodakis 2016; torchvision"),
    **_models(_RESNET_D, "He et al. 2019; timm"),
    **_models(_GROUP_NORM, "Wu and He 2018; timm"),
    **_models(_SE_RESNET, "Hu et al. 2018; timm"),
    **_models(_RESNEST, "Zhang et al. 2020; timm"),
    **_models(_RESNEST_101, "Zhang et al. 2020; timm", 256),
    **_models(_RESNEST_200, "Zhang et al. 2020; timm", 320),
    **_models(_RESNEST_269, "Zhang et al. 2020; timm", 416),
    **_models(_PREACT, "He et al. 2016; timm"),
    **_models(_CIFAR, "He et al. 2015, section 4.2; akamaster", 32),
    **_models(_PLAIN, "He et al. 2015, section 4.2", 32),
    **_models(_CIFAR_PREACT_A, "He et al. 2016", 32),
    **_models(_CIFAR_PREACT, "He et al. 2016; resnet-1k-layers", 32),
    **_models(_WRN, "Zagoruyko and Komodakis 2016; wide-residual-networks", 32),
    **_models(_CIFAR_RESNEXT, "Xie et al. 2017; ResNeXt", 32),
    **_models(_DENSENET, "Huang et al. 2017; torchvision"),
    **_models(_DENSENET_CIFAR, "Huang et al. 2017; liuzhuang13/DenseNet", 32),
    **_models(_HIGHWAY, "Srivastava et al. 2015; highway-networks", 32),
    **_models(_HIGHWAY_ASSUMED, "Srivastava et al. 2015; widths assumed", 32),
    **_models(_EDSR, "Lim et al. 2017; EDSR-PyTorch", 48),
}
