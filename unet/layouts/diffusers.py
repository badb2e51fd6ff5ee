"""Layout of diffusers' `UNet2DModel`, its arguments from our config and back, and its model folders."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from residual.weights.config import read_config, read_json
from residual.weights.keymap import Place, Rule, Table, linear_to_conv, stacked_to_conv
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

_NAME = "diffusers' UNet2DModel"
WEIGHTS_STEM = "diffusion_pytorch_model"
TABLE: Table = {
    "module": [Rule("", "")],
    "residual": [
        Rule("branch.norm1", "norm1"),
        Rule("branch.conv1", "conv1"),
        Rule("branch.emb.project", "time_emb_proj"),
        Rule("branch.norm2.project", "time_emb_proj"),
        Rule("branch.norm2", "norm2"),
        Rule("branch.conv2", "conv2"),
        Rule("shortcut", "conv_shortcut"),
        Rule("shortcut.project", "conv_shortcut"),
    ],
    "attention": [
        Rule("branch.norm", "group_norm"),
        Rule("branch.attention.qkv", ("to_q", "to_k", "to_v"), stacked_to_conv),
        Rule("branch.attention.out", "to_out.0", linear_to_conv()),
    ],
}


def places(config: UNetConfig) -> Iterator[Place]:
    """Every block of the network with its prefix in diffusers' `UNet2DModel`."""
    yield Place("module", "embedding.features.freqs", "time_proj.weight")
    yield Place("module", "embedding.linear1", "time_embedding.linear_1")
    yield Place("module", "embedding.linear2", "time_embedding.linear_2")
    yield Place("module", "embedding.label", "class_embedding")
    yield Place("module", "encoder.0.conv", "conv_in")
    skeleton = config.skeleton
    counts = [0] * skeleton.depth
    for i, block in enumerate(skeleton.encoder(), start=1):
        level = block.level.index
        ours, theirs = f"encoder.{i}", f"down_blocks.{level}"
        if block.resample is None:
            yield Place("residual", f"{ours}.res", f"{theirs}.resnets.{counts[level]}")
            yield Place("attention", f"{ours}.attn", f"{theirs}.attentions.{counts[level]}")
            counts[level] += 1
        elif config.pyramid:
            yield Place("residual", f"{ours}.down", f"{theirs}.resnet_down")
            yield Place("module", f"input_skips.{i}.conv", f"{theirs}.skip_conv")
        elif block.resample == "block":
            yield Place("residual", f"{ours}.down", f"{theirs}.downsamplers.0")
        else:
            yield Place("module", f"{ours}.down", f"{theirs}.downsamplers.0.conv")
    yield Place("residual", "middle.res1", "mid_block.resnets.0")
    yield Place("attention", "middle.attn", "mid_block.attentions.0")
    yield Place("residual", "middle.res2", "mid_block.resnets.1")
    counts = [0] * skeleton.depth
    for i, block in enumerate(skeleton.decoder()):
        level = block.level.index
        ours, theirs = f"decoder.{i}", f"up_blocks.{skeleton.depth - 1 - level}"
        yield Place("residual", f"{ours}.res", f"{theirs}.resnets.{counts[level]}")
        number = counts[level] if config.decoder_attention == "all" else 0
        yield Place("attention", f"{ours}.attn", f"{theirs}.attentions.{number}")
        counts[level] += 1
        if config.pyramid and block.resample is not None:
            yield Place("residual", f"output_skips.{i}.grow.up", f"{theirs}.resnet_up")
            yield Place("module", f"output_skips.{i}.head.norm", f"{theirs}.skip_norm")
            yield Place("module", f"output_skips.{i}.head.conv", f"{theirs}.skip_conv")
        elif block.resample == "block":
            yield Place("residual", f"{ours}.up", f"{theirs}.upsamplers.0")
        elif block.resample is not None:
            yield Place("module", f"{ours}.up", f"{theirs}.upsamplers.0.conv")
    yield Place("module", "head.norm", "conv_norm_out")
    yield Place("module", "head.conv", "conv_out")


def config_of(config: UNetConfig) -> dict[str, Any]:
    """The arguments of the `UNet2DModel` that computes the same function.

    Raises ValueError, with the reason, for what that class cannot express.
    """
    require(_NAME, config, _FIXED_PYRAMID if config.pyramid else _FIXED)
    skeleton = config.skeleton
    require_same_blocks(_NAME, skeleton)
    allowed = ("block_fir",) if config.pyramid else ("conv", "conv_same", "block")
    resample = require_resample(_NAME, skeleton, allowed)
    levels, last = skeleton.levels, skeleton.depth - 1
    widths = {level.channels // level.heads for level in skeleton.attending_levels}
    one_head = all(level.heads == 1 for level in levels)
    if len(widths) > 1 and not one_head:
        raise inexpressible(
            _NAME, f"heads={config.heads}", "it has one attention_head_dim, a head width, for all levels"
        )
    require_first_width(_NAME, skeleton)
    require_groups(_NAME, config)
    if config.pyramid:
        _require_pyramid_groups(config)
    in_block = resample == "block"
    kinds = [_block_kind(config, level.attention) for level in levels]
    down_types = [_block_type("Down", kind, in_block and i < last) for i, kind in enumerate(kinds)]
    up_types = [_block_type("Up", kind, in_block and i > 0) for i, kind in enumerate(kinds)]
    return {
        "sample_size": config.size[0] if config.size[0] == config.size[1] else list(config.size),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels * (1 + config.learned_variance),
        "block_out_channels": [level.channels for level in levels],
        "layers_per_block": levels[0].blocks,
        "down_block_types": down_types,
        "up_block_types": up_types[::-1],
        "attention_head_dim": None if one_head else widths.pop(),
        "norm_num_groups": None if config.pyramid else config.groups,
        "attn_norm_num_groups": None if config.pyramid else config.groups,
        "mid_block_type": None if config.middle == "none" else "UNetMidBlock2D",
        "mid_block_scale_factor": _SCALE if config.pyramid else 1,
        "add_attention": config.middle != "blocks",
        "norm_eps": config.eps,
        "dropout": config.dropout,
        "downsample_padding": 0 if resample == "conv_same" else 1,
        "downsample_type": "resnet" if in_block else "conv",
        "upsample_type": "resnet" if in_block else "conv",
        "resnet_time_scale_shift": "scale_shift" if config.conditioning == "scale_shift" else "default",
        **_TIME[config.time_embedding],
        "num_class_embeds": None if config.classes is None else config.classes + config.null_label,
    }


def config_from(arguments: Mapping[str, Any]) -> UNetConfig:
    """Our config for the network of these `UNet2DModel` arguments (the fields of its config.json).

    Missing arguments have the defaults of `UNet2DModel`. Raises ValueError, with the name, for an argument that cannot
    be expressed, is unknown, or has the wrong type.
    """
    public = {name: value for name, value in arguments.items() if not name.startswith("_") and name not in _AVERAGE}
    given = asdict(read_config(Arguments, public, optional=asdict(Arguments())))
    for name, (rule, allowed) in _REFUSED.items():
        if not allowed(given[name], given):
            raise ValueError(f"UNet2DModel with {name}={given[name]!r} cannot be expressed here: {rule}")
    pyramid = _is_pyramid(given)
    widths, down = tuple(given["block_out_channels"]), given["down_block_types"]
    size = given["sample_size"] if given["sample_size"] is not None else 2 ** (len(widths) - 1)
    attention = tuple(level for level, name in enumerate(down) if name.startswith("Attn"))
    conv = "conv_same" if given["downsample_padding"] == 0 else "conv"
    attention_resample = {"conv": conv, "resnet": "block"}[given["downsample_type"]]
    kinds = {"DownBlock2D": conv, "AttnDownBlock2D": attention_resample, "ResnetDownsampleBlock2D": "block"}
    resample = tuple("block_fir" if pyramid else kinds[name] for name in down)
    head_channels = given["attention_head_dim"]
    variance = given["out_channels"] == 2 * given["in_channels"]  # as improved DDPM and ADM have it
    config = UNetConfig(
        in_channels=given["in_channels"],
        out_channels=given["out_channels"] // (1 + variance),
        learned_variance=variance,
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        classes=given["num_class_embeds"],
        null_label=False,
        base_channels=widths[0],
        channel_multipliers=tuple(
            width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths
        ),
        blocks_per_level=given["layers_per_block"],
        attention_levels=attention,
        heads=1 if head_channels is None else None,
        head_channels=head_channels,
        conditioning="add" if given["resnet_time_scale_shift"] == "default" else "scale_shift",
        resample=resample[0] if len(set(resample[:-1])) < 2 else resample,  # type: ignore[arg-type]
        dropout=given["dropout"],
        groups=32 if pyramid else given["norm_num_groups"],
        group_channels=4 if pyramid else 1,
        decoder_attention="last" if pyramid else "all",
        residual_scale=0.5**0.5 if pyramid else 1.0,
        pyramid=pyramid,
        middle="none" if given["mid_block_type"] is None else "attention" if given["add_attention"] else "blocks",
        eps=given["norm_eps"],
        time_embedding=_time_of(given),  # type: ignore[arg-type]
    )
    expected, found = config_of(config)["up_block_types"], list(given["up_block_types"])
    if found[-1:] == ["ResnetUpsampleBlock2D"] and expected[-1] == "UpBlock2D":
        found[-1] = "UpBlock2D"  # the last block does not double the size, so both compute the same
    if expected != found:
        raise ValueError(
            f"UNet2DModel with up_block_types={tuple(given['up_block_types'])} cannot be expressed here: "
            f"the decoder mirrors the encoder, {tuple(expected)}"
        )
    return config


def _is_pyramid(given: Mapping[str, Any]) -> bool:
    """Whether the blocks are those of NCSN++, which take and add images of all sizes."""
    return "Skip" in "".join(given["down_block_types"])


def _require_pyramid_groups(config: UNetConfig) -> None:
    """Raises ValueError for widths at which blocks of NCSN++ have other groups in diffusers.

    Their attention has 32 groups, and a block before it min(32, a + b / 4), whose input has a + b channels.
    """
    for block in config.skeleton.decoder():
        if block.level.attention and min(block.c_out, block.c_in) < 128:
            reason = "attention of NCSN++ needs 128 channels"
            raise inexpressible(_NAME, f"channel_multipliers={config.channel_multipliers}", reason)


def current_names(theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict with the old names of attention (query, key, value, proj_attn), which hub files have, replaced."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return {".".join(old.get(part, part) for part in name.split(".")): tensor for name, tensor in theirs.items()}


@dataclass(frozen=True)
class Arguments:
    """The arguments of `UNet2DModel`, with its defaults."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None


_ALWAYS = {
    "label_embedding": ("table",),
    "time_embedding": ("ddpm", "adm", "log_fourier"),
    "time_channels": (None,),
    "augment_channels": (None,),
    "logvar_channels": (None,),
    "padding": ("zeros",),
    "pad": (False,),
    "input_skips": (False,),
}
_FIXED = _ALWAYS | {"group_channels": (1,), "decoder_attention": ("all",), "residual_scale": (1.0,)}
_FIXED_PYRAMID = _ALWAYS | {
    "in_channels": (3,),
    "out_channels": (3,),
    "learned_variance": (False,),
    "groups": (32,),
    "group_channels": (4,),
    "decoder_attention": ("last",),
    "residual_scale": (0.5**0.5,),
}
_SCALE = 2**0.5
"""divisor of the sums in blocks of NCSN++"""
_AVERAGE = {
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
}
"""what diffusers' `EMAModel` adds to the config of the network that it averages"""
_PYRAMID_BLOCKS = {"SkipDownBlock2D", "AttnSkipDownBlock2D"}
_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_TIME: dict[str, dict[str, Any]] = {
    "ddpm": {"time_embedding_type": "positional", "flip_sin_to_cos": False, "freq_shift": 1},
    "adm": {"time_embedding_type": "positional", "flip_sin_to_cos": True, "freq_shift": 0},
    "log_fourier": {"time_embedding_type": "fourier"},
}


def _time_of(given: Mapping[str, Any]) -> str | None:
    fits = (name for name, arguments in _TIME.items() if all(given[key] == value for key, value in arguments.items()))
    return next(fits, None)


_REFUSED: dict[str, tuple[str, Callable[[Any, Mapping[str, Any]], bool]]] = {
    "block_out_channels": (
        "it needs one width, above 0, for each of down_block_types",
        lambda value, given: len(value) == len(given["down_block_types"]) and min(value, default=0) > 0,
    ),
    "center_input_sample": ("scale the images to [-1, 1] first", lambda value, given: not value),
    "time_embedding_type": (
        "the features are ddpm (flip_sin_to_cos=False, freq_shift=1), adm (True, 0) or fourier",
        lambda value, given: _time_of(given) is not None,
    ),
    "time_embedding_dim": (
        "the embedding is four times as wide as the first level",
        lambda value, given: value in (None, 4 * given["block_out_channels"][0]),
    ),
    "down_block_types": (
        f"give {', '.join(_DOWN)}, or only {' and '.join(sorted(_PYRAMID_BLOCKS))}",
        lambda value, given: set(value) <= set(_DOWN) or set(value) <= _PYRAMID_BLOCKS,
    ),
    "mid_block_type": ("give UNetMidBlock2D or null", lambda value, given: value in ("UNetMidBlock2D", None)),
    "mid_block_scale_factor": (
        "the middle is scaled as the other blocks: 1, or the root of 2 with SkipDownBlock2D",
        lambda value, given: (
            given["mid_block_type"] is None or math.isclose(value, _SCALE if _is_pyramid(given) else 1, rel_tol=1e-6)
        ),
    ),
    "norm_num_groups": (
        "give a number, or null with SkipDownBlock2D",
        lambda value, given: (value is None) == _is_pyramid(given),
    ),
    "downsample_type": (
        "give conv or resnet, the same up and down",
        lambda value, given: value == given["upsample_type"] and value in ("conv", "resnet"),
    ),
    "act_fn": ("the activation is silu", lambda value, given: value in ("silu", "swish")),
    "resnet_time_scale_shift": (
        "give default or scale_shift",
        lambda value, given: value in ("default", "scale_shift"),
    ),
    "attn_norm_num_groups": (
        "the middle's attention is normalised in norm_num_groups groups, which scale_shift needs explicitly",
        lambda value, given: (
            value == given["norm_num_groups"] or (value is None and given["resnet_time_scale_shift"] == "default")
        ),
    ),
    "class_embed_type": ("labels are a table of rows", lambda value, given: value is None),
    "downsample_padding": ("give 0 or 1", lambda value, given: value in (0, 1)),
}


def _block_kind(config: UNetConfig, attention: bool) -> str:
    """The first part of the name of diffusers' class of a block."""
    return ("Attn" if attention else "") + ("Skip" if config.pyramid else "")


def _block_type(direction: str, kind: str, resample_in_block: bool) -> str:
    """The class of a block of diffusers; `direction` is "Down" or "Up"."""
    if resample_in_block and not kind:
        return f"Resnet{direction}sampleBlock2D"
    return f"{kind}{direction}Block2D"


def find_network(folder: Path) -> Path | None:
    """The folder of the network in a model or pipeline folder of diffusers; None if it is not one of diffusers.

    It is the folder itself, `unet` in it, or, if there is no such folder, `unet_ema`, the average of its weights.
    """
    for place in (folder, folder / "unet", folder / "unet_ema"):
        if (place / "config.json").is_file() and "_class_name" in read_json(place / "config.json"):
            return place
    return None


def read_network_config(network: Path) -> UNetConfig:
    """The config of a network's folder. Raises ValueError for another class than UNet2DModel, and as `config_from`."""
    path = network / "config.json"
    arguments = read_json(path)
    if (name := arguments["_class_name"]) != "UNet2DModel":
        raise ValueError(f"{path} describes a {name}; only UNet2DModel can be read")
    try:
        return config_from(arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


LAYOUT = UNetLayout(
    places,
    TABLE,
    config_of,
    current_names,
    signature_key="time_embedding.linear_1.weight",
    used_by="diffusers",
)
