"""The ResNets and their descendants, as data: name, shape, parameters, 10⁹ multiply-adds, published result."""

from typing import Any

from resnet.config import ResNetConfig
from resnet.entry import Entry, entries
from resnet.families import cifar_resnet, imagenet_resnet, preact_imagenet_resnet, resnest, wide_resnet

Row = tuple[ResNetConfig, int, float, str]

# torchvision: stride in the 3x3 ("v1.5"). Top-1 of the first and, where there is one, the second set of weights.
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
# timm: all but pre-activation and ResNeSt start with the last norm of each branch at zero.
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
_RESNEST_E: dict[str, tuple[Row, int]] = {
    "resnest101e": ((resnest(101, stem_channels=128), 48_275_016, 13.321, "82.916 %"), 256),
    "resnest200e": ((resnest(200, stem_channels=128), 70_201_544, 35.520, "83.880 %"), 320),
    "resnest269e": ((resnest(269, stem_channels=128), 110_929_480, 77.349, "84.542 %"), 416),
}
_PREACT: dict[str, Row] = {
    "resnetv2_50": (preact_imagenet_resnet(50), 25_549_352, 4.089, "80.410 %"),
    "resnetv2_101": (preact_imagenet_resnet(101), 44_541_480, 7.801, "82.042 %"),
    "resnetv2_152": (preact_imagenet_resnet(152), 60_185_128, 11.514, ""),
}
# CIFAR-10: error of a single model.
_A: dict[str, Any] = {"shortcut": "A", "pad_side": "split"}
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


RESNETS: dict[str, Entry] = {
    **entries(_TORCHVISION, "He et al. 2015; torchvision"),
    **entries(_RESNEXT, "Xie et al. 2017; torchvision"),
    **entries(_WIDE, "Zagoruyko and Komodakis 2016; torchvision"),
    **entries(_RESNET_D, "He et al. 2019; timm"),
    **entries(_GROUP_NORM, "Wu and He 2018; timm"),
    **entries(_SE_RESNET, "Hu et al. 2018; timm"),
    **entries(_RESNEST, "Zhang et al. 2020; timm"),
    **{name: Entry(*row, "Zhang et al. 2020; timm", size) for name, (row, size) in _RESNEST_E.items()},
    **entries(_PREACT, "He et al. 2016; timm"),
    **entries(_CIFAR, "He et al. 2015, section 4.2; akamaster", 32),
    **entries(_PLAIN, "He et al. 2015, section 4.2", 32),
    **entries(_CIFAR_PREACT_A, "He et al. 2016", 32),
    **entries(_CIFAR_PREACT, "He et al. 2016; resnet-1k-layers", 32),
    **entries(_WRN, "Zagoruyko and Komodakis 2016; wide-residual-networks", 32),
    **entries(_CIFAR_RESNEXT, "Xie et al. 2017; ResNeXt", 32),
}
