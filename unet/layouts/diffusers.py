"""Layout of diffusers' `UNet2DModel`, its arguments from our config and back, and its model folders."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from residual.weights.config import read_config, read_json
from residual.weights.keymap import Place, Rule, Table, linear_to_conv, stacked_to_conv
from residual.weights.layout import inexpressible
from residual.weights.pretrained import read_weights
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
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
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
        yield Place("attention", f"{ours}.attn", f"{theirs}.attentions.{counts[level]}")
        counts[level] += 1
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
    require(_NAME, config, _FIXED)
    skeleton = config.skeleton
    require_same_blocks(_NAME, skeleton)
    resample = require_resample(_NAME, skeleton, ("conv", "conv_same", "block"))
    levels, last = skeleton.levels, skeleton.depth - 1
    widths = {level.channels // level.heads for level in skeleton.attending_levels}
    one_head = all(level.heads == 1 for level in levels)
    if len(widths) > 1 and not one_head:
        raise inexpressible(
            _NAME, f"heads={config.heads}", "it has one attention_head_dim, a head width, for all levels"
        )
    require_first_width(_NAME, skeleton)
    require_groups(_NAME, config)
    in_block = resample == "block"
    down_types = [_block_type("Down", level.attention, in_block and level.index < last) for level in levels]
    up_types = [_block_type("Up", level.attention, in_block and level.index > 0) for level in levels]
    return {
        "sample_size": config.size[0] if config.size[0] == config.size[1] else list(config.size),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels * (1 + config.learned_variance),
        "block_out_channels": [level.channels for level in levels],
        "layers_per_block": levels[0].blocks,
        "down_block_types": down_types,
        "up_block_types": up_types[::-1],
        "attention_head_dim": None if one_head else widths.pop(),
        "norm_num_groups": config.groups,
        "attn_norm_num_groups": config.groups,
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
    public = {name: value for name, value in arguments.items() if not name.startswith("_")}
    given = asdict(read_config(Arguments, public, optional=asdict(Arguments())))
    for name, (rule, allowed) in _REFUSED.items():
        if not allowed(given[name], given):
            raise ValueError(f"UNet2DModel with {name}={given[name]!r} cannot be expressed here: {rule}")
    widths, down = tuple(given["block_out_channels"]), given["down_block_types"]
    size = given["sample_size"] if given["sample_size"] is not None else 2 ** (len(widths) - 1)
    attention = tuple(level for level, name in enumerate(down) if name == "AttnDownBlock2D")
    conv = "conv_same" if given["downsample_padding"] == 0 else "conv"
    attention_resample = {"conv": conv, "resnet": "block"}[given["downsample_type"]]
    kinds = {"DownBlock2D": conv, "AttnDownBlock2D": attention_resample, "ResnetDownsampleBlock2D": "block"}
    resample = tuple(kinds[name] for name in down)
    head_channels = given["attention_head_dim"]
    config = UNetConfig(
        in_channels=given["in_channels"],
        out_channels=given["out_channels"],
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
        groups=given["norm_num_groups"],
        eps=given["norm_eps"],
        time_embedding=_time_of(given),  # type: ignore[arg-type]
    )
    if config_of(config)["up_block_types"] != list(given["up_block_types"]):
        raise ValueError(
            f"UNet2DModel with up_block_types={tuple(given['up_block_types'])} cannot be expressed here: "
            f"the decoder mirrors the encoder, {tuple(config_of(config)['up_block_types'])}"
        )
    return config


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
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None


_FIXED = {
    "group_channels": (1,),
    "label_embedding": ("table",),
    "time_embedding": ("ddpm", "adm", "log_fourier"),
    "time_channels": (None,),
    "augment_channels": (None,),
    "decoder_attention": ("all",),
    "residual_scale": (1.0,),
    "input_skips": (False,),
}
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
    "down_block_types": (f"give {', '.join(_DOWN)}", lambda value, given: set(value) <= set(_DOWN)),
    "mid_block_type": ("the middle is UNetMidBlock2D", lambda value, given: value == "UNetMidBlock2D"),
    "mid_block_scale_factor": ("the middle is not scaled", lambda value, given: value == 1),
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
    "add_attention": ("the middle has attention", lambda value, given: bool(value)),
    "class_embed_type": ("labels are a table of rows", lambda value, given: value is None),
    "downsample_padding": ("give 0 or 1", lambda value, given: value in (0, 1)),
}


def _block_type(direction: str, attention: bool, resample_in_block: bool) -> str:
    """The class of a block of diffusers; `direction` is "Down" or "Up"."""
    if attention:
        return f"Attn{direction}Block2D"
    return f"Resnet{direction}sampleBlock2D" if resample_in_block else f"{direction}Block2D"


def find_network(folder: Path) -> Path | None:
    """The folder of the network in a model or pipeline folder of diffusers; None if it is not one of diffusers."""
    for place in (folder, folder / "unet"):
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


def read_network_weights(network: Path) -> dict[str, Tensor]:
    """The state dict in a network's folder. Raises ValueError for a pickle, and for weights in several files."""
    path = network / WEIGHTS_FILE
    if path.is_file():
        return read_weights(path)
    convert = "save it with diffusers: UNet2DModel.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER"
    if path.with_name(f"{path.name}.index.json").is_file():
        raise ValueError(f"{network} holds its weights in several files; {convert}, max_shard_size='100GB')")
    if (variants := sorted(network.glob(f"{path.stem}.*.safetensors"))) or path.with_suffix(".bin").is_file():
        found = f"only {variants[0].name}" if variants else f"only {path.stem}.bin, a pickle, which could run code"
        raise ValueError(f"{network} holds {found}; {convert})")
    raise ValueError(f"no {path.name} in {network}; if there is only a .bin (a pickle, not opened here), {convert})")


LAYOUT = UNetLayout(
    places,
    TABLE,
    config_of,
    current_names,
    signature_key="time_embedding.linear_1.weight",
    used_by="diffusers",
)
