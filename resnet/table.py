"""The ResNets of the zoo, as data."""

from resnet.config import ResNetConfig
from resnet.entry import Entry

RESNETS: dict[str, Entry] = {
    "resnet18": Entry(ResNetConfig(blocks=(2, 2, 2, 2)), 11_689_512),
    "resnet50": Entry(ResNetConfig(block="bottleneck", blocks=(3, 4, 6, 3)), 25_557_032),
    "resnet20": Entry(
        ResNetConfig(
            num_classes=10,
            blocks=(3, 3, 3),
            widths=(16, 32, 64),
            stem="conv3",
            stem_channels=16,
            shortcut="A",
            pad_side="split",
        ),
        269_722,
        32,
    ),
}
