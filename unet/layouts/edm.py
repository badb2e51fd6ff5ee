"""Layout of EDM's networks: `SongUNet` (DDPM++, NCSN++) and `DhariwalUNet` (ADM)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from residual.weights.keymap import Place, Rule, Table, linear_to_conv, qkv_rows
from residual.weights.layout import inexpressible
from unet.config import UNetConfig
from unet.layouts.layout import (
    UNetLayout,
    require,
    require_first_width,
    require_groups,
    require_resample,
    require_same_blocks,
)

TABLE: Table = {
    "module": [Rule("", "")],
    "residual": [
        Rule("branch.norm1", "norm0"),
        Rule("branch.conv1", "conv0"),
        Rule("branch.emb.project", "affine"),
        Rule("branch.norm2.project", "affine"),
        Rule("branch.norm2", "norm1"),
        Rule("branch.conv2", "conv1"),
        Rule("shortcut", "skip"),
        Rule("shortcut.project", "skip"),
    ],
    "attention": [
        Rule("branch.norm", "norm2"),
        Rule("branch.attention.qkv", "qkv", qkv_rows("n d three", axes=4)),
        Rule("branch.attention.out", "proj", linear_to_conv(axes=4)),
    ],
}
_PREFIX = "model."
_SHARED = {
    "pyramid": (False,),
    "middle": ("attention",),
    "groups": (32,),
    "group_channels": (4,),
    "time_channels": (None,),
    "learned_variance": (False,),
    "padding": ("zeros",),
    "pad": (False,),
    "logvar_channels": (None,),
}
_SONG = _SHARED | {
    "time_embedding": ("ddpm", "fourier"),
    "label_embedding": ("linear_first",),
    "eps": (1e-6,),
    "decoder_attention": ("last",),
    "residual_scale": (0.5**0.5,),
}
_DHARIWAL = _SHARED | {
    "time_embedding": ("adm",),
    "label_embedding": ("linear",),
    "eps": (1e-5,),
    "decoder_attention": ("all",),
    "residual_scale": (1.0,),
    "input_skips": (False,),
}


def places(config: UNetConfig) -> Iterator[Place]:
    """Every block of the network with its prefix, which holds the image size at that level."""
    skeleton = config.skeleton
    sides = [f"{config.size[0] >> i}x{config.size[1] >> i}" for i in range(skeleton.depth)]
    yield Place("module", "embedding.features", "map_noise")
    yield Place("module", "embedding.label", "map_label")
    yield Place("module", "embedding.augment", "map_augment")
    yield Place("module", "embedding.linear1", "map_layer0")
    yield Place("module", "embedding.linear2", "map_layer1")
    yield Place("module", "encoder.0.conv", f"enc.{sides[0]}_conv")
    count = 0
    for i, block in enumerate(skeleton.encoder(), start=1):
        if block.resample is not None:
            count = 0
            yield Place("residual", f"encoder.{i}.down", f"enc.{sides[block.level.index + 1]}_down")
            yield Place("module", f"input_skips.{i}.branch", f"enc.{sides[block.level.index + 1]}_aux_residual")
        else:
            theirs = f"enc.{sides[block.level.index]}_block{count}"
            yield Place("residual", f"encoder.{i}.res", theirs)
            yield Place("attention", f"encoder.{i}.attn", theirs, block.level.heads)
            count += 1
    yield Place("residual", "middle.res1", f"dec.{sides[-1]}_in0")
    yield Place("attention", "middle.attn", f"dec.{sides[-1]}_in0", skeleton.levels[-1].heads)
    yield Place("residual", "middle.res2", f"dec.{sides[-1]}_in1")
    count = 0
    for i, block in enumerate(skeleton.decoder()):
        theirs = f"dec.{sides[block.level.index]}_block{count}"
        yield Place("residual", f"decoder.{i}.res", theirs)
        yield Place("attention", f"decoder.{i}.attn", theirs, block.level.heads)
        count += 1
        if block.resample is not None:
            count = 0
            yield Place("residual", f"decoder.{i}.up", f"dec.{sides[block.level.index - 1]}_up")
    head = f"dec.{sides[0]}_aux" if config.conditioning == "add" else "out"
    yield Place("module", "head.norm", f"{head}_norm")
    yield Place("module", "head.conv", f"{head}_conv")


def filters(config: UNetConfig) -> dict[str, Tensor]:
    """The resampling filters, which their state dicts hold for every layer that changes the size."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if config.skeleton.levels[0].resample == "block_fir" else [1.0, 1.0])
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    names = [place.theirs for place in places(config) if place.theirs.endswith(("_down", "_up"))]
    owners = [f"{name}.{layer}" for name in names for layer in ("conv0", "skip")]
    if config.input_skips:
        owners += [place.theirs for place in places(config) if place.theirs.endswith("_aux_residual")]
    return {f"{owner}.resample_filter": kernel.clone() for owner in owners}


def without_prefix(theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The names without the prefix `model.` of a preconditioned network."""
    return {name.removeprefix(_PREFIX): tensor for name, tensor in theirs.items()}


def with_size_of(config: UNetConfig, theirs: Mapping[str, Tensor]) -> UNetConfig:
    """The config with the image size in the names of the blocks."""
    sides = [int(found[1]) for name in theirs if (found := re.match(r"enc\.(\d+)x\d+_conv\.weight$", name))]
    return replace(config, size=(sides[0], sides[0])) if sides else config


def check(config: UNetConfig) -> None:
    """Raises ValueError, with the reason, for what neither `SongUNet` nor `DhariwalUNet` can express."""
    song = config.conditioning == "add"
    name, fixed = ("EDM's SongUNet", _SONG) if song else ("EDM's DhariwalUNet", _DHARIWAL)
    require(name, config, fixed)
    skeleton = config.skeleton
    require_same_blocks(name, skeleton)
    resample = require_resample(name, skeleton, ("block_project", "block_fir") if song else ("block",))
    require_groups(name, config)
    if not song:
        require_first_width(name, skeleton)
    if any(level.heads != (1 if song else level.channels // 64) for level in skeleton.attending_levels):
        reason = "it has one head everywhere" if song else "each of its heads has 64 channels"
        raise inexpressible(name, f"heads={tuple(level.heads for level in skeleton.levels)}", reason)
    if config.input_skips and resample != "block_fir":
        raise inexpressible(name, f"input_skips=True with resample={resample!r}", "it has one filter for both")
    if config.size[0] != config.size[1]:
        raise inexpressible(name, f"size={config.size}", "its blocks are named by the side of a square")


LAYOUT = UNetLayout(
    places,
    TABLE,
    check,
    without_prefix,
    signature_key="map_layer0.weight",
    used_by="EDM",
    constants=filters,
    with_size_of=with_size_of,
)
