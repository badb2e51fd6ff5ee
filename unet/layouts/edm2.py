"""Layout of EDM2's network."""

from collections.abc import Iterator

from residual.weights.keymap import Place, Rule, Table, qkv_rows
from residual.weights.layout import inexpressible
from unet.edm2_config import EDM2Config
from unet.layouts.layout import UNetLayout, require_first_width, require_same_blocks

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


def places(config: EDM2Config) -> Iterator[Place]:
    """Every block of the network with its prefix, which holds the image size at that level."""
    skeleton = config.skeleton
    sides = [f"{config.size[0] >> i}x{config.size[0] >> i}" for i in range(skeleton.depth)]
    yield Place("module", "", "unet")
    for ours, theirs in (("fourier", "emb_fourier"), ("noise", "emb_noise"), ("label", "emb_label")):
        yield Place("module", f"embedding.{ours}", f"unet.{theirs}")
    for part in ("fourier", "linear"):
        yield Place("module", f"logvar.{part}", f"logvar_{part}")
    yield Place("module", "encoder.0.conv", f"unet.enc.{sides[0]}_conv")
    counts = [0] * skeleton.depth
    for i, block in enumerate(skeleton.encoder(), start=1):
        level = block.level.index
        if block.resample is None:
            yield Place("block", f"encoder.{i}", f"unet.enc.{sides[level]}_block{counts[level]}")
            counts[level] += 1
        else:
            yield Place("block", f"encoder.{i}", f"unet.enc.{sides[level + 1]}_down")
    for i in (0, 1):
        yield Place("block", f"middle.block{i}", f"unet.dec.{sides[-1]}_in{i}")
    counts = [0] * skeleton.depth
    for i, block in enumerate(skeleton.decoder()):
        level = block.level.index
        yield Place("block", f"decoder.{i}.block", f"unet.dec.{sides[level]}_block{counts[level]}")
        counts[level] += 1
        if block.resample is not None:
            yield Place("block", f"decoder.{i}.up", f"unet.dec.{sides[level - 1]}_up")
    yield Place("module", "head", "unet.out_conv")


def check(config: EDM2Config) -> None:
    """Raises ValueError, with the reason, for what EDM2's network cannot express."""
    name = "EDM2's network"
    if config.size[0] != config.size[1]:
        raise inexpressible(name, f"size={config.size}", "it has one img_resolution, the side")
    require_same_blocks(name, config.skeleton)
    require_first_width(name, config.skeleton)
    if len({level.channels // level.heads for level in config.skeleton.attending_levels}) > 1:
        raise inexpressible(name, f"head_channels={config.head_channels}", "it has one width of a head for all levels")
    if config.in_channels != config.out_channels:
        value = f"in_channels={config.in_channels} with out_channels={config.out_channels}"
        raise inexpressible(name, value, "it has one img_channels")


LAYOUT = UNetLayout(
    places, TABLE, check, config_class=EDM2Config, signature_key="unet.emb_noise.weight", used_by="EDM2"
)
