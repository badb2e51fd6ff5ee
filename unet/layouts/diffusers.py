"""diffusers' `UNet2DModel`: its names, and its arguments from our config and back."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from residual.keymap import Place, Rule, Table, linear_to_conv, stacked_to_conv
from unet.config import Block, UNetConfig, decoder_blocks, encoder_blocks

_RESIDUAL = [
    Rule("branch.norm1", "norm1"),
    Rule("branch.conv1", "conv1"),
    Rule("branch.emb.project", "time_emb_proj"),
    Rule("branch.norm2.project", "time_emb_proj"),
    Rule("branch.norm2", "norm2"),
    Rule("branch.conv2", "conv2"),
    Rule("shortcut", "conv_shortcut"),
]
_ATTENTION = [
    Rule("branch.norm", "group_norm"),
    Rule("branch.attention.qkv", ("to_q", "to_k", "to_v"), stacked_to_conv),
    Rule("branch.attention.out", "to_out.0", linear_to_conv()),
]
TABLE: Table = {
    "module": [Rule("", "")],
    "residual": _RESIDUAL,
    "attention": _ATTENTION,
}


def places(config: UNetConfig) -> Iterator[Place]:
    """Every block of the network with its prefix in diffusers' `UNet2DModel`."""
    yield Place("module", "embedding.linear1", "time_embedding.linear_1")
    yield Place("module", "embedding.linear2", "time_embedding.linear_2")
    yield Place("module", "embedding.label", "class_embedding")
    yield Place("module", "encoder.0.conv", "conv_in")
    counts = [0] * config.depth
    for i, block in enumerate(encoder_blocks(config), start=1):
        ours, theirs = f"encoder.{i}", f"down_blocks.{block.level}"
        if block.resample is None:
            yield Place("residual", f"{ours}.res", f"{theirs}.resnets.{counts[block.level]}")
            yield Place("attention", f"{ours}.attn", f"{theirs}.attentions.{counts[block.level]}")
            counts[block.level] += 1
        elif block.resample == "block":
            yield Place("residual", f"{ours}.down", f"{theirs}.downsamplers.0")
        else:
            yield Place("module", f"{ours}.down", f"{theirs}.downsamplers.0.conv")
    yield Place("residual", "middle.res1", "mid_block.resnets.0")
    yield Place("attention", "middle.attn", "mid_block.attentions.0")
    yield Place("residual", "middle.res2", "mid_block.resnets.1")
    counts = [0] * config.depth
    for i, block in enumerate(decoder_blocks(config)):
        ours, theirs = f"decoder.{i}", f"up_blocks.{config.depth - 1 - block.level}"
        yield Place("residual", f"{ours}.res", f"{theirs}.resnets.{counts[block.level]}")
        yield Place("attention", f"{ours}.attn", f"{theirs}.attentions.{counts[block.level]}")
        counts[block.level] += 1
        if block.resample == "block":
            yield Place("residual", f"{ours}.up", f"{theirs}.upsamplers.0")
        elif block.resample is not None:
            yield Place("module", f"{ours}.up", f"{theirs}.upsamplers.0.conv")
    yield Place("module", "head.norm", "conv_norm_out")
    yield Place("module", "head.conv", "conv_out")


def config_of(config: UNetConfig) -> dict[str, Any]:
    """The arguments of the `UNet2DModel` that computes the same function.

    Raises ValueError, with the reason, for what that class cannot express.
    """
    levels, last = config.levels, config.depth - 1
    blocks = {level.blocks for level in levels}
    if len(blocks) > 1:
        raise _inexpressible(f"blocks={config.blocks}", "it has one layers_per_block for all levels")
    resample = {level.resample for level in levels[:-1]} or {levels[0].resample}
    if len(resample) > 1:
        raise _inexpressible(f"resample={config.resample}", "it resamples in one way on all levels")
    widths = {level.channels // level.heads for level in levels if level.attention or level is levels[last]}
    one_head = all(level.heads == 1 for level in levels)
    if len(widths) > 1 and not one_head:
        raise _inexpressible(f"heads={config.heads}", "it has one attention_head_dim, a head width, for all levels")
    if levels[0].channels != config.channels:
        raise _inexpressible(
            f"multipliers={config.multipliers}", "its embedding is as wide as its first level: start with 1"
        )
    if odd := [c for c in _normalised_widths(config) if c % config.groups]:
        raise _inexpressible(
            f"groups={config.groups}", f"its GroupNorms all have that many groups, and {odd[0]} channels cannot"
        )
    in_block = resample == {"block"}
    names = [_block_names(level.attention, in_block and i < last) for i, level in enumerate(levels)]
    up_names = [_block_names(level.attention, in_block and i > 0)[1] for i, level in enumerate(levels)]
    return {
        "sample_size": config.size[0] if config.size[0] == config.size[1] else list(config.size),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels * (1 + config.learned_variance),
        "block_out_channels": [level.channels for level in levels],
        "layers_per_block": blocks.pop(),
        "down_block_types": [down for down, _ in names],
        "up_block_types": up_names[::-1],
        "attention_head_dim": None if one_head else widths.pop(),
        "norm_num_groups": config.groups,
        "attn_norm_num_groups": config.groups,
        "norm_eps": config.eps,
        "dropout": config.dropout,
        "downsample_padding": 0 if resample == {"conv_same"} else 1,
        "downsample_type": "resnet" if in_block else "conv",
        "upsample_type": "resnet" if in_block else "conv",
        "resnet_time_scale_shift": "scale_shift" if config.conditioning == "scale_shift" else "default",
        "flip_sin_to_cos": config.time_embedding == "adm",
        "freq_shift": 1 if config.time_embedding == "ddpm" else 0,
        "num_class_embeds": None if config.classes is None else config.classes + config.null_label,
    }


def _block_names(attention: bool, resample_in_block: bool) -> tuple[str, str]:
    if attention:
        return "AttnDownBlock2D", "AttnUpBlock2D"
    return ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resample_in_block else ("DownBlock2D", "UpBlock2D")


def _normalised_widths(config: UNetConfig) -> Iterator[int]:
    for block in (*encoder_blocks(config), *decoder_blocks(config)):
        yield from (block.c_in, block.c_out)


def _inexpressible(value: str, reason: str) -> ValueError:
    return ValueError(f"diffusers' UNet2DModel cannot express {value}: {reason}")
