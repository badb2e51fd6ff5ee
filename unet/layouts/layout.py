"""Layout of a diffusion U-Net in another library, and checks of what its network can express."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from residual.weights import layout
from residual.weights.layout import Layout, inexpressible
from unet.config import Skeleton, UNetConfig


@dataclass(frozen=True, kw_only=True)
class UNetLayout(Layout):
    """A layout of a diffusion U-Net."""

    config_class: type = UNetConfig
    """class of the configs whose networks have this layout"""
    signature_key: str
    """a name that is in every state dict of this layout, and in no state dict of another one"""
    used_by: str
    """the publications or programs whose files have this layout"""
    constants: Callable[[Any], dict[str, Tensor]] = lambda config: {}
    """tensors without trained values that the state dicts also hold"""
    with_size_of: Callable[[Any, Mapping[str, Tensor]], Any] = lambda config, theirs: config
    """the config with the image size that the names imply, if they do"""


def require(network: str, config: UNetConfig, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """As `residual.weights.layout.require`; without classes, `label_embedding` may have any value."""
    ignored = {"label_embedding"} if config.classes is None else set()
    layout.require(network, config, {name: values for name, values in fixed.items() if name not in ignored})


def require_same_blocks(network: str, skeleton: Skeleton) -> None:
    """Raises ValueError unless all levels have the same number of blocks."""
    if len({level.blocks for level in skeleton.levels}) > 1:
        value = f"blocks_per_level={skeleton.blocks_per_level}"
        raise inexpressible(network, value, "it has one number of blocks for all levels")


def require_resample(network: str, skeleton: Skeleton, allowed: tuple[str, ...]) -> str:
    """The value of `resample` that all levels have. Raises ValueError unless it is one and allowed."""
    kinds = {level.resample for level in skeleton.levels[:-1]} or {skeleton.levels[0].resample}
    if len(kinds) > 1 or not kinds <= set(allowed):
        reason = f"it has {' or '.join(allowed)}, the same on all levels"
        raise inexpressible(network, f"resample={skeleton.resample!r}", reason)
    return kinds.pop()


def require_first_width(network: str, skeleton: Skeleton) -> None:
    """Raises ValueError unless the first convolution is as wide as the first level."""
    if skeleton.levels[0].channels != skeleton.base_channels:
        reason = "its first convolution is as wide as its first level: start with 1"
        raise inexpressible(network, f"channel_multipliers={skeleton.channel_multipliers}", reason)


def require_groups(network: str, config: UNetConfig) -> None:
    """Raises ValueError unless the network's number of groups divides every width."""
    for block in (*config.skeleton.encoder(), *config.skeleton.decoder()):
        for c in (block.c_in, block.c_out):
            groups = config.groups if config.group_channels == 1 else min(config.groups, c // config.group_channels)
            if groups == 0 or c % groups:
                reason = f"its GroupNorm of {c} channels has {groups} groups"
                raise inexpressible(network, f"groups={config.groups}", reason)
