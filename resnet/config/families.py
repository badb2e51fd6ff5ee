"""Builds configs from depths, per family."""

from typing import Any

from resnet.config.densenet import DenseNetConfig
from resnet.config.resnet import BLOCK_TRAITS, BlockKind, ResNetConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)
"""of CIFAR-10, as fb.resnet.torch and what follows it have them"""
_IMAGENET_BLOCKS: dict[int, tuple[BlockKind, tuple[int, ...]]] = {
    14: ("bottleneck", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    26: ("bottleneck", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
    269: ("bottleneck", (3, 30, 48, 8)),
}


def imagenet_resnet(depth: int, **fields: Any) -> ResNetConfig:
    """A ResNet for images of 224 px (He et al. 2015, table 1; depths of ResNeSt: Zhang et al. 2020).

    Raises ValueError for an unknown depth.
    """
    if depth not in _IMAGENET_BLOCKS:
        raise ValueError(f"depth={depth} is not one of {', '.join(map(str, _IMAGENET_BLOCKS))}")
    block, blocks = _IMAGENET_BLOCKS[depth]
    shape = {"block": block, "blocks_per_stage": blocks, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return ResNetConfig(**shape | fields)


def cifar_resnet(depth: int, block: BlockKind = "basic", **fields: Any) -> ResNetConfig:
    """A ResNet of three stages for images of 32 px (He et al. 2015, section 4.2).

    Its depth is 6n + 2 with basic blocks and 9n + 2 with bottlenecks. Raises ValueError for another depth, with the
    nearest ones.
    """
    convolutions = BLOCK_TRAITS[ResNetConfig(block=block).block].convolutions
    blocks = _depth_to_blocks(depth, convolutions, 2)
    shape: dict[str, Any] = {"num_classes": 10, "widths": (16, 32, 64), "stem": "conv3", "stem_channels": 16}
    return ResNetConfig(block=block, blocks_per_stage=blocks, **shape | fields)


def wide_resnet(depth: int, factor: int, **fields: Any) -> ResNetConfig:
    """A wide ResNet for images of 32 px (Zagoruyko and Komodakis 2016): `factor` times as wide, of depth 6n + 4.

    Raises ValueError for another depth, with the nearest ones.
    """
    widths = tuple(factor * width for width in (16, 32, 64))
    _depth_to_blocks(depth, 2, 4)
    return cifar_resnet(depth - 2, "preact_basic", **{"widths": widths} | fields)


def cifar_densenet(depth: int, growth: int, compressed: bool) -> DenseNetConfig:
    """A DenseNet of three equal stages for images of 32 px (Huang et al. 2017).

    Plain of depth 3n + 4, or `compressed` with bottlenecks (DenseNet-BC) of depth 6n + 4. Mean and deviation are those
    of CIFAR-10. Raises ValueError for another depth, with the nearest ones.
    """
    shape: dict[str, Any] = {"num_classes": 10, "growth": growth, "stem": "conv3", "mean": CIFAR_MEAN, "std": CIFAR_STD}
    if compressed:
        return DenseNetConfig(blocks_per_stage=_depth_to_blocks(depth, 2, 4), stem_channels=2 * growth, **shape)
    blocks = _depth_to_blocks(depth, 1, 4)
    return DenseNetConfig(blocks_per_stage=blocks, stem_channels=16, bottleneck=None, compression=1.0, **shape)


def _depth_to_blocks(depth: int, convolutions: int, others: int) -> tuple[int, int, int]:
    """Blocks per stage, given the convolutions per block and the number of layers outside of blocks."""
    step = 3 * convolutions
    number, rest = divmod(depth - others, step)
    if rest or number < 1:
        below = max(1, number) * step + others
        near = f"{below} or {below + step}" if number >= 1 else f"{below}"
        raise ValueError(f"depth={depth} is not {step}n + {others} with n >= 1; the nearest is {near}")
    return number, number, number
