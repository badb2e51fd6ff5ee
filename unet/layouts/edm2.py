"""EDM2's weights under their published names."""

from collections.abc import Iterator

from residual.weights.keymap import Place, Rule, Table, qkv_rows
from residual.weights.layout import inexpressible
from unet.config import UNetConfig, decoder_blocks, encoder_blocks
from unet.layouts.refuse import attending, require_first_width, require_same_blocks

TABLE: Table = {
    "module": [Rule("", "")],
    "block": [
        Rule("project", "conv_skip"),
        Rule("res.shortcut", "conv_skip"),
        Rule("res.branch.conv1", "conv_res0"),
        Rule("res.branch.modulate", ""),
        Rule("res.branch.modulate.project", "emb_linear"),
        Rule("res.branch.conv2", "conv_res1"),
        Rule("attn.branch.qkv", "attn_qkv", qkv_rows("n d three", axes=4)),
        Rule("attn.branch.out", "attn_proj"),
    ],
}


def places(shape: UNetConfig) -> Iterator[Place]:
    """Every block of the network with its prefix, which names the side of the image there."""
    sides = [f"{shape.size[0] >> level}x{shape.size[0] >> level}" for level in range(shape.depth)]
    yield Place("module", "", "unet")
    for ours, theirs in (("fourier", "emb_fourier"), ("noise", "emb_noise"), ("label", "emb_label")):
        yield Place("module", f"embedding.{ours}", f"unet.{theirs}")
    for part in ("fourier", "linear"):
        yield Place("module", f"uncertainty.{part}", f"logvar_{part}")
    yield Place("module", "encoder.0.conv", f"unet.enc.{sides[0]}_conv")
    counts = [0] * shape.depth
    for i, block in enumerate(encoder_blocks(shape), start=1):
        if block.resample is None:
            yield Place("block", f"encoder.{i}", f"unet.enc.{sides[block.level]}_block{counts[block.level]}")
            counts[block.level] += 1
        else:
            yield Place("block", f"encoder.{i}", f"unet.enc.{sides[block.level + 1]}_down")
    for i in (0, 1):
        yield Place("block", f"middle.block{i}", f"unet.dec.{sides[-1]}_in{i}")
    counts = [0] * shape.depth
    for i, block in enumerate(decoder_blocks(shape)):
        yield Place("block", f"decoder.{i}.block", f"unet.dec.{sides[block.level]}_block{counts[block.level]}")
        counts[block.level] += 1
        if block.resample is not None:
            yield Place("block", f"decoder.{i}.up", f"unet.dec.{sides[block.level - 1]}_up")
    yield Place("module", "head", "unet.out_conv")


def check(shape: UNetConfig) -> None:
    """Raises ValueError, with the reason, for what EDM2's network cannot express."""
    name = "EDM2's network"
    if shape.size[0] != shape.size[1]:
        raise inexpressible(name, f"size={shape.size}", "it has one img_resolution, the side")
    require_same_blocks(name, shape)
    require_first_width(name, shape)
    if len({level.channels // level.heads for level in attending(shape)}) > 1:
        raise inexpressible(name, f"head_channels={shape.head_channels}", "it has one width of a head for all levels")
    if shape.in_channels != shape.out_channels:
        value = f"in_channels={shape.in_channels} with out_channels={shape.out_channels}"
        raise inexpressible(name, value, "it has one img_channels")
