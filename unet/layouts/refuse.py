"""What a published network cannot express, said with the reason."""

from collections.abc import Mapping
from typing import Any

from residual.weights import layout
from residual.weights.layout import inexpressible
from unet.config import Level, UNetConfig, decoder_blocks, encoder_blocks


def require(network: str, config: UNetConfig, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """As `residual.weights.layout.require`; how labels are embedded does not matter where there are none."""
    ignored = {"label_embedding"} if config.classes is None else set()
    layout.require(network, config, {name: values for name, values in fixed.items() if name not in ignored})


def require_same_blocks(network: str, config: UNetConfig) -> None:
    """Raises ValueError unless all levels have the same number of blocks."""
    if len({level.blocks for level in config.levels}) > 1:
        raise inexpressible(
            network, f"blocks_per_level={config.blocks_per_level}", "it has one number of blocks for all levels"
        )


def resampling(network: str, config: UNetConfig, allowed: tuple[str, ...]) -> str:
    """The one way in which the levels are left. Raises ValueError if there are several, or the network lacks it."""
    kinds = {level.resample for level in config.levels[:-1]} or {config.levels[0].resample}
    if len(kinds) > 1 or not kinds <= set(allowed):
        reason = f"it has {' or '.join(allowed)}, the same on all levels"
        raise inexpressible(network, f"resample={config.resample!r}", reason)
    return kinds.pop()


def require_first_width(network: str, config: UNetConfig) -> None:
    """Raises ValueError unless the first convolution is as wide as the first level."""
    if config.levels[0].channels != config.base_channels:
        reason = "its first convolution is as wide as its first level: start with 1"
        raise inexpressible(network, f"channel_multipliers={config.channel_multipliers}", reason)


def require_groups(network: str, config: UNetConfig) -> None:
    """Raises ValueError unless the number of groups, as the network takes it from a width, divides every width."""
    for block in (*encoder_blocks(config), *decoder_blocks(config)):
        for c in (block.c_in, block.c_out):
            groups = config.groups if config.group_channels == 1 else min(config.groups, c // config.group_channels)
            if groups == 0 or c % groups:
                reason = f"its GroupNorm of {c} channels has {groups} groups"
                raise inexpressible(network, f"groups={config.groups}", reason)


def attending(config: UNetConfig) -> list[Level]:
    """The levels whose heads matter: those with attention, and the last, which the middle's attention is of."""
    levels = config.levels
    return [*(level for level in levels[:-1] if level.attention), levels[-1]]
