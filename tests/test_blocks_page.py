"""Every entry of docs/blocks.md equals the corresponding block of the published network."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.testing import assert_close

import resnet
import unet
from residual import Chain
from residual.ode import invert
from residual.weights.keymap import Place, Rule, Table, import_state
from unet.layouts.diffusers import TABLE

PAGE = (Path(__file__).parents[1] / "docs" / "blocks.md").read_text()
IMPORTS, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ENTRIES = dict(re.findall(r"^### (.*?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))

# entry -> preset, module names of such blocks in its network
PUBLISHED: dict[str, tuple[str, tuple[str, ...]]] = {
    "DDPM: block": ("ddpm-cifar10", ("encoder.1.res", "encoder.4.res", "middle.res1", "decoder.0.res")),
    "DDPM: attention": ("ddpm-cifar10", ("encoder.4.attn", "middle.attn")),
    "DDPM: down": ("ddpm-cifar10", ("encoder.3.down",)),
    "DDPM: up": ("ddpm-cifar10", ("decoder.2.up",)),
    "ResnetBlock2D: default": ("diffusers-unconditional", ("encoder.1.res", "decoder.0.res")),
    "Attention": ("diffusers-unconditional", ("encoder.13.attn", "middle.attn")),
    "ADM: block": ("adm-imagenet256", ("encoder.1.res", "encoder.7.res", "decoder.0.res")),
    "ADM: down": ("adm-imagenet256", ("encoder.3.down",)),
    "ADM: up": ("adm-imagenet256", ("decoder.2.up",)),
    "ADM: attention": ("adm-imagenet256", ("encoder.10.attn", "middle.attn")),
    "DDPM++: block": ("edm-cifar10-ddpmpp", ("encoder.1.res", "encoder.2.res", "decoder.0.res")),
    "DDPM++: down": ("edm-cifar10-ddpmpp", ("encoder.5.down",)),
    "DDPM++: up": ("edm-cifar10-ddpmpp", ("decoder.4.up",)),
    "DDPM++: attention": ("edm-cifar10-ddpmpp", ("encoder.6.attn", "middle.attn")),
    "NCSN++: down": ("edm-cifar10-ncsnpp", ("encoder.5.down",)),
    "NCSN++: up": ("edm-cifar10-ncsnpp", ("decoder.4.up",)),
    "NCSN++: residual encoder": ("edm-cifar10-ncsnpp", ("input_skips.5.branch",)),
    "ADM of EDM: block": ("edm-imagenet64", ("encoder.1.res", "encoder.5.res", "decoder.0.res")),
    "ADM of EDM: down": ("edm-imagenet64", ("encoder.4.down",)),
    "ADM of EDM: up": ("edm-imagenet64", ("decoder.3.up",)),
    "ADM of EDM: attention": ("edm-imagenet64", ("encoder.5.attn", "middle.attn")),
    "EDM2: encoder": ("edm2-img64-s", ("encoder.1", "encoder.5", "encoder.9", "encoder.10")),
    "EDM2: encoder, down": ("edm2-img64-s", ("encoder.4",)),
    "EDM2: decoder": ("edm2-img64-s", ("decoder.0.block", "decoder.15.block")),
    "EDM2: decoder, up": ("edm2-img64-s", ("decoder.3.up",)),
}
# entry -> model of the zoo, config changes, {module name: (input width, output width, stride)}
ZOO: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, int, int]]]] = {
    "BasicBlock": ("resnet18", {}, {"levels.1.0": (64, 64, 1), "levels.2.0": (64, 128, 2)}),
    "BasicBlock: option A": ("resnet20", {}, {"levels.1.2": (16, 16, 1), "levels.3.0": (32, 64, 2)}),
    "BasicBlock: noise level": (
        "resnet20",
        {"norm": "group", "noise": True},
        {"levels.1.0": (16, 16, 1), "levels.2.0": (16, 32, 2)},
    ),
    "Bottleneck": (
        "resnet50",
        {},
        {"levels.1.0": (64, 256, 1), "levels.2.0": (256, 512, 2), "levels.2.1": (512, 512, 1)},
    ),
    "ResNeXt": ("resnext50_32x4d", {}, {"levels.1.0": (64, 256, 1), "levels.2.0": (256, 512, 2)}),
    "SE-ResNet": ("seresnet50", {}, {"levels.1.1": (256, 256, 1), "levels.2.0": (256, 512, 2)}),
    "ResNeSt": (
        "resnest50d",
        {},
        {"levels.1.0": (64, 256, 1), "levels.2.0": (256, 512, 2), "levels.2.1": (512, 512, 1)},
    ),
    "Pre-activation": ("resnetv2_50", {}, {"levels.1.1": (256, 256, 1), "levels.2.0": (256, 512, 2)}),
    "Wide ResNet": ("wrn_28_10", {"dropout": 0.3}, {"levels.1.0": (16, 160, 1), "levels.2.1": (320, 320, 1)}),
    "Highway": ("highway19", {}, {"levels.1.0": (32, 32, 1), "levels.3.4": (128, 128, 1)}),
    "EDSR": ("edsr_x2", {}, {"body.branch.block0": (256, 256, 1), "body.branch.block31": (256, 256, 1)}),
    "DenseNet": ("densenet121", {}, {"levels.1.0": (64, 96, 1), "levels.4.15": (992, 1024, 1)}),
}
# UNet2DModel never projects and resamples at once; its block class can.
RULES: Table = {"residual": [*TABLE["residual"], Rule("shortcut.project", "conv_shortcut")]}
SONG = {"eps": 1e-6, "skip_time_act": True, "output_scale_factor": 2**0.5, "groups": 16, "groups_out": 24}
SONG_RESAMPLING = SONG | {"groups": 24, "use_in_shortcut": True}
DHARIWAL = {"eps": 1e-5, "skip_time_act": True, "time_embedding_norm": "scale_shift", "groups": 16, "groups_out": 24}
# entry -> arguments of the equivalent ResnetBlock2D, from 64 to 96 channels, or 96 to 96 if the width is kept
CLASSES: dict[str, dict[str, Any]] = {
    "DDPM: block": {"eps": 1e-6},
    "ResnetBlock2D: default": {"eps": 1e-5},
    "ResnetBlock2D: scale_shift": {"eps": 1e-5, "time_embedding_norm": "scale_shift"},
    "ResnetBlock2D: down": {"eps": 1e-5, "down": True},
    "ResnetBlock2D: up": {"eps": 1e-5, "up": True},
    "ADM: block": {"eps": 1e-5, "time_embedding_norm": "scale_shift"},
    "ADM: down": {"eps": 1e-5, "time_embedding_norm": "scale_shift", "down": True},
    "ADM: up": {"eps": 1e-5, "time_embedding_norm": "scale_shift", "up": True},
    "DDPM++: block": SONG,
    "DDPM++: down": SONG_RESAMPLING | {"down": True},
    "DDPM++: up": SONG_RESAMPLING | {"up": True},
    "NCSN++: down": SONG_RESAMPLING | {"down": True, "kernel": "fir"},
    "NCSN++: up": SONG_RESAMPLING | {"up": True, "kernel": "fir"},
    "ADM of EDM: block": DHARIWAL,
    "ADM of EDM: down": DHARIWAL | {"groups": 24, "down": True},
    "ADM of EDM: up": DHARIWAL | {"groups": 24, "up": True},
}
# entry -> the output by its formula, of the block, its input and the output of its branch without the last node
PARTS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "Scaled": lambda block, x, f: (x + block.branch.conv2(f)) * 0.5**0.5,
    "ReZero": lambda block, x, f: x + block.branch.scale.alpha * f,
    "Stochastic depth": lambda block, x, f: (x + f).relu(),  # in evaluation, nothing is dropped
    "i-ResNet": lambda block, x, f: invert(block, block(x)) + block.branch.conv2(f),
}


def build_entry(code: str, c_in: int, c_out: int, emb: int, stride: int = 1) -> nn.Module:
    """Builds the `block` of an entry, with random weights."""
    names: dict[str, Any] = {"c_in": c_in, "c_out": c_out, "emb": emb, "stride": stride}
    exec(IMPORTS + code, names)
    torch.manual_seed(0)
    for p in names["block"].parameters():
        nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.3)
    return names["block"].eval()


def output(block: nn.Module, channels: int, emb: int) -> Tensor:
    torch.manual_seed(1)
    x, e = torch.randn(2, channels, 8, 8), torch.randn(2, emb)
    with torch.no_grad():
        return block(x, e) if getattr(block, "takes_emb", False) else block(x)


@cache
def network(preset: str) -> nn.Module:
    with torch.device("meta"):
        return unet.build(unet.preset(preset))


def test_every_entry_is_checked_and_under_ten_lines() -> None:
    assert set(ENTRIES) == {*PUBLISHED, *CLASSES, *ZOO, *PARTS}
    assert PAGE.count("```python") == len(ENTRIES) + 1
    assert all(len(code.splitlines()) < 10 for code in ENTRIES.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_entry_equals_the_block_of_the_published_network(name: str) -> None:
    preset, places = PUBLISHED[name]
    net = network(preset)
    for place in places:
        published = net.get_submodule(place).eval()
        convolutions = [m for m in published.modules() if isinstance(m, nn.Conv2d)]
        widths = convolutions[0].in_channels, convolutions[-1].out_channels
        if "EDM2" in name:
            widths = convolutions[0].in_channels, published.res.branch.conv2.out_channels
        attention = hasattr(published, "attn")
        code = "".join(line for line in ENTRIES[name].splitlines(True) if attention or "attn=" not in line)
        block = build_entry(code, *widths, net.config.emb_channels)
        assert repr(block) == repr(published), place
        published.load_state_dict(block.state_dict(), assign=True)
        ours, theirs = (output(b, widths[0], net.config.emb_channels) for b in (block, published))
        assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ZOO)
def test_entry_equals_the_block_of_the_zoo(name: str) -> None:
    model, changes, places = ZOO[name]
    with torch.device("meta"):
        net = resnet.create_model(model, **changes)
    for place, (c_in, c_out, stride) in places.items():
        published = net.get_submodule(place).eval()
        block = build_entry(ENTRIES[name], c_in, c_out, 64, stride)
        assert repr(block) == repr(published), place
        published.load_state_dict(block.state_dict(), assign=True)
        ours, theirs = output(block, c_in, 64), output(published, c_in, 64)
        assert theirs.shape == (2, c_out, 8 // stride, 8 // stride)
        assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", PARTS)
def test_part_equals_its_formula(name: str) -> None:
    block = build_entry(ENTRIES[name], 4, 4, 1)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        before = Chain(**dict(list(block.branch.named_children())[:-1]))(x)
        assert_close(block(x), PARTS[name](block, x, before), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CLASSES)
def test_entry_equals_a_resnet_block_of_diffusers(name: str) -> None:
    keeps = "ResnetBlock2D" not in name and name.endswith(("down", "up"))
    c_in, c_out, emb = 96 if keeps else 64, 96, 40
    block = build_entry(ENTRIES[name], c_in, c_out, emb)
    theirs = ResnetBlock2D(in_channels=c_in, out_channels=c_out, temb_channels=emb, **CLASSES[name]).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.3)
    block.load_state_dict(import_state([Place("residual", "", "")], RULES, theirs.state_dict(), block.state_dict()))
    x, e = torch.randn(2, c_in, 8, 8), torch.randn(2, emb)
    with torch.no_grad():
        found, expected = block(x, e if "skip_time_act" in CLASSES[name] else F.silu(e)), theirs(x, e)
    assert_close(found, expected, rtol=0, atol=2e-5 * expected.std().item())


def test_attention_equals_that_of_diffusers() -> None:
    block = build_entry(ENTRIES["Attention"], 64, 64, 1)
    theirs = Attention(
        64, heads=8, dim_head=8, eps=1e-5, norm_num_groups=32, residual_connection=True, bias=True, upcast_softmax=True
    ).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.3)
    block.load_state_dict(import_state([Place("attention", "", "")], TABLE, theirs.state_dict(), block.state_dict()))
    x = torch.randn(2, 64, 8, 8)
    with torch.no_grad():
        expected = theirs(x)
        assert_close(block(x), expected, rtol=0, atol=2e-5 * expected.std().item())
