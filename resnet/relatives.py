"""The relatives of ResNet in the zoo, as data: name, shape, parameters, 10⁹ multiply-adds, published result."""

from typing import Any

from resnet.densenet import DenseNetConfig
from resnet.edsr import EDSRConfig
from resnet.entry import Entry, entries
from resnet.families import IMAGENET_MEAN, IMAGENET_STD, cifar_densenet
from resnet.highway import HighwayConfig

# torchvision: top-1 on ImageNet.
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_LARGE: dict[str, Any] = _IMAGENET | {"growth": 48, "stem_channels": 96}
_DENSENET = {
    "densenet121": (DenseNetConfig(blocks=(6, 12, 24, 16), **_IMAGENET), 7_978_856, 2.834, "74.434 %"),
    "densenet161": (DenseNetConfig(blocks=(6, 12, 36, 24), **_LARGE), 28_681_000, 7.728, "77.138 %"),
    "densenet169": (DenseNetConfig(blocks=(6, 12, 32, 32), **_IMAGENET), 14_149_480, 3.360, "75.600 %"),
    "densenet201": (DenseNetConfig(blocks=(6, 12, 48, 32), **_IMAGENET), 20_013_928, 4.291, "76.896 %"),
}
# CIFAR-10 with augmentation: error of a single model.
_DENSENET_CIFAR = {
    "densenet_40_12": (cifar_densenet(40, 12, compressed=False), 1_019_722, 0.265, "5.24 %"),
    "densenet_bc_100_12": (cifar_densenet(100, 12, compressed=True), 769_162, 0.288, "4.51 %"),
    "densenet_bc_190_40": (cifar_densenet(190, 40, compressed=True), 25_624_430, 9.302, "3.46 %"),
    "densenet_bc_250_24": (cifar_densenet(250, 24, compressed=True), 15_324_406, 5.419, "3.62 %"),
}
# CIFAR-10: error. The layers of highway19 are those of the authors' cifar10_network.prototxt, with 10 classes where
# that has 100 outputs. Of 32 layers only the size was published, 1.25 million: here the same pattern, with 9 layers
# per stage and widths that give it.
_HIGHWAY = {
    "highway19": (HighwayConfig(blocks=(4, 5, 5), widths=(32, 80, 128)), 2_256_838, 0.331, "7.54 % (7.72 ± 0.16)")
}
_HIGHWAY_ASSUMED = {
    "highway32": (HighwayConfig(blocks=(9, 9, 9), widths=(32, 48, 64)), 1_255_270, 0.314, "8.80 %"),
}
# PSNR on DIV2K; multiply-adds are of a network's input, 48 px.
_WIDE: dict[str, Any] = {"channels": 256, "blocks": 32, "branch_scale": 0.1}
_EDSR = {
    "edsr_baseline_x2": (EDSRConfig(scale=2), 1_369_859, 3.162, "34.61 dB"),
    "edsr_baseline_x3": (EDSRConfig(scale=3), 1_554_499, 3.607, "30.92 dB"),
    "edsr_baseline_x4": (EDSRConfig(scale=4), 1_517_571, 4.569, "28.95 dB"),
    "edsr_x2": (EDSRConfig(scale=2, **_WIDE), 40_729_603, 93.847, "35.03 dB"),
    "edsr_x3": (EDSRConfig(scale=3, **_WIDE), 43_680_003, 100.722, "31.26 dB"),
    "edsr_x4": (EDSRConfig(scale=4, **_WIDE), 43_089_923, 115.782, "29.25 dB"),
}

RELATIVES: dict[str, Entry] = {
    **entries(_DENSENET, "Huang et al. 2017; torchvision"),
    **entries(_DENSENET_CIFAR, "Huang et al. 2017; liuzhuang13/DenseNet", 32),
    **entries(_HIGHWAY, "Srivastava et al. 2015; highway-networks", 32),
    **entries(_HIGHWAY_ASSUMED, "Srivastava et al. 2015; widths assumed", 32),
    **entries(_EDSR, "Lim et al. 2017; EDSR-PyTorch", 48),
}
