"""Layout of OpenAI's guided-diffusion and improved-diffusion (`UNetModel`)."""

from collections.abc import Iterator

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

_NAME = "guided-diffusion's UNetModel"
_FIXED = {
    "eps": (1e-5,),
    "time_embedding": ("adm",),
    "groups": (32,),
    "group_channels": (1,),
    "label_embedding": ("table",),
    "augment_channels": (None,),
    "padding": ("zeros",),
    "pad": (False,),
    "logvar_channels": (None,),
    "decoder_attention": ("all",),
    "residual_scale": (1.0,),
    "input_skips": (False,),
    "pyramid": (False,),
    "middle": ("attention",),
}


def table(qkv: str) -> Table:
    """The rules, for one of the two orders of attention rows: `n three d` or `three n d`."""
    return {
        "module": [Rule("", "")],
        "residual": [
            Rule("branch.norm1", "in_layers.0"),
            Rule("branch.conv1", "in_layers.2"),
            Rule("branch.emb.project", "emb_layers.1"),
            Rule("branch.norm2.project", "emb_layers.1"),
            Rule("branch.norm2", "out_layers.0"),
            Rule("branch.conv2", "out_layers.3"),
            Rule("shortcut", "skip_connection"),
        ],
        "attention": [
            Rule("branch.norm", "norm"),
            Rule("branch.attention.qkv", "qkv", qkv_rows(qkv, axes=3)),
            Rule("branch.attention.out", "proj_out", linear_to_conv(axes=3)),
        ],
    }


def places(config: UNetConfig) -> Iterator[Place]:
    """Every block of the network with its prefix in `UNetModel`, whose lists are numbered as ours."""
    skeleton = config.skeleton
    yield Place("module", "embedding.linear1", "time_embed.0")
    yield Place("module", "embedding.linear2", "time_embed.2")
    yield Place("module", "embedding.label", "label_emb")
    yield Place("module", "encoder.0.conv", "input_blocks.0.0")
    for i, block in enumerate(skeleton.encoder(), start=1):
        ours, theirs, heads = f"encoder.{i}", f"input_blocks.{i}", block.level.heads
        if block.resample is None:
            yield Place("residual", f"{ours}.res", f"{theirs}.0")
            yield Place("attention", f"{ours}.attn", f"{theirs}.1", heads)
        elif block.resample == "block":
            yield Place("residual", f"{ours}.down", f"{theirs}.0")
        else:
            yield Place("module", f"{ours}.down", f"{theirs}.0.op")
    yield Place("residual", "middle.res1", "middle_block.0")
    yield Place("attention", "middle.attn", "middle_block.1", skeleton.levels[-1].heads)
    yield Place("residual", "middle.res2", "middle_block.2")
    for i, block in enumerate(skeleton.decoder()):
        ours, theirs, heads = f"decoder.{i}", f"output_blocks.{i}", block.level.heads
        yield Place("residual", f"{ours}.res", f"{theirs}.0")
        yield Place("attention", f"{ours}.attn", f"{theirs}.1", heads)
        up = f"{theirs}.{2 if block.attention else 1}"
        yield (
            Place("residual", f"{ours}.up", up)
            if block.resample == "block"
            else Place("module", f"{ours}.up", f"{up}.conv")
        )
    yield Place("module", "head.norm", "out.0")
    yield Place("module", "head.conv", "out.2")


def check(config: UNetConfig) -> None:
    """Raises ValueError, with the reason, for what `UNetModel` cannot express."""
    require(_NAME, config, _FIXED)
    require_same_blocks(_NAME, config.skeleton)
    require_resample(_NAME, config.skeleton, ("conv", "block"))
    require_first_width(_NAME, config.skeleton)
    require_groups(_NAME, config)
    levels = config.skeleton.attending_levels
    counts, widths = {level.heads for level in levels}, {level.channels // level.heads for level in levels}
    if len(counts) > 1 and len(widths) > 1:
        reason = "it has one number of heads, or one width of a head, for all levels"
        raise inexpressible(_NAME, f"heads={config.heads}", reason)


LAYOUT = UNetLayout(
    places,
    table("n three d"),
    check,
    signature_key="input_blocks.0.0.weight",
    used_by="improved-diffusion, and guided-diffusion except its 64x64 model",
)
NEW_ORDER = UNetLayout(
    places,
    table("three n d"),
    check,
    signature_key="input_blocks.0.0.weight",
    used_by="guided-diffusion's 64x64 model",
)
