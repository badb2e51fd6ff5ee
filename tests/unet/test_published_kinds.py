"""The kinds of `UNet2DModel` checkpoints on the hub: opened from a folder, equal to diffusers, exported bit for bit.

Arguments are those of the published config.json files. Widths and sizes are a fraction of the published ones in the
default suite, and the published ones in the slow tests.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

import unet
from unet import UNet

D, A, R = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
S, AS = "SkipDownBlock2D", "AttnSkipDownBlock2D"
UP = {
    D: "UpBlock2D",
    A: "AttnUpBlock2D",
    R: "ResnetUpsampleBlock2D",
    S: "SkipUpBlock2D",
    AS: "AttnSkipUpBlock2D",
}


def kind(size: Any, widths: list[int], down: list[str], **arguments: Any) -> dict[str, Any]:
    up = [UP[name] for name in down[::-1]]
    return {
        "sample_size": size,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
    } | arguments


DDPM = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
CONSISTENCY = {
    "upsample_type": "resnet",
    "downsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "attention_head_dim": 64,
}
NCSNPP = {
    "time_embedding_type": "fourier",
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "mid_block_scale_factor": 1.41421356237,
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name of a checkpoint of the kind: (published arguments, smaller ones)
    "google/ddpm-cifar10-32": (
        kind(32, [128, 256, 256, 256], [D, A, D, D], **DDPM),
        {"block_out_channels": [32, 64, 64, 64]},
    ),
    "google/ddpm-celebahq-256": (
        kind(256, [128, 128, 256, 256, 512, 512], [D, D, D, D, A, D], **DDPM),
        {"block_out_channels": [32, 32, 32, 32, 64, 64], "sample_size": 32},
    ),
    "google/ncsnpp-celebahq-256": (
        kind(256, [128, 128, 256, 256, 256, 256, 256], [S, S, S, S, AS, S, S], layers_per_block=2, **NCSNPP),
        {"block_out_channels": [16, 16, 32, 32, 128, 128, 128], "sample_size": 64},
    ),
    "google/ncsnpp-ffhq-1024": (
        kind(1024, [16, 32, 64, 128, 256, 512, 512, 512], [S, S, S, S, S, S, AS, S], layers_per_block=1, **NCSNPP),
        {"block_out_channels": [16, 32, 64, 128, 128, 128, 128, 128], "sample_size": 128},
    ),
    "openai/diffusers-cd_imagenet64_l2": (
        kind(64, [192, 384, 576, 768], [R, A, A, A], layers_per_block=3, num_class_embeds=1000, **CONSISTENCY),
        {"block_out_channels": [64, 64, 128, 192], "sample_size": 16, "num_class_embeds": 5},
    ),
    "openai/diffusers-ct_bedroom256": (
        kind(256, [256, 256, 512, 512, 1024, 1024], [R, R, R, A, A, A], **CONSISTENCY),
        {"block_out_channels": [64, 64, 64, 64, 128, 128], "sample_size": 32},
    ),
    "CompVis/ldm-celebahq-256": (
        kind(64, [224, 448, 672, 896], [D, A, A, A], attention_head_dim=32),
        {"block_out_channels": [32, 64, 96, 128], "sample_size": 16},
    ),
    "course: butterflies, 32 px": (
        kind(32, [64, 128, 128, 256], [D, D, A, A], attention_head_dim=8),
        {"block_out_channels": [32, 64, 64, 64]},
    ),
    "diffusers' script, 64 px": (
        kind(64, [128, 128, 256, 256, 512, 512], [D, D, D, D, A, D]),
        {"block_out_channels": [32, 32, 32, 32, 64, 64], "sample_size": 32},
    ),
    "course: MNIST with classes in the channels": (
        kind(28, [32, 64, 64], [D, A, A], in_channels=5, out_channels=1),
        {},
    ),
    "teticio/audio-diffusion-256": (
        kind([256, 256], [128, 128, 256, 256, 512, 512], [D, D, D, D, A, D], in_channels=1, out_channels=1),
        {"block_out_channels": [32, 32, 32, 32, 64, 64], "sample_size": [32, 64]},
    ),
    "no size": (kind(None, [32, 64], [D, A]), {}),
    "middle without attention": (kind(16, [32, 64], [D, A], add_attention=False), {}),
    "no middle": (kind(16, [32, 64], [D, A], mid_block_type=None), {}),
    "learned variance": (kind(16, [32, 64], [D, A], out_channels=6), {}),
}


def network(name: str, small: bool) -> UNet2DModel:
    arguments, changes = KINDS[name]
    torch.manual_seed(0)
    net = UNet2DModel(**arguments | (changes if small else {})).eval()
    for name, p in net.named_parameters():
        if name != "time_proj.weight":
            nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.3)
    return net


def check(theirs: UNet2DModel, folder: Path) -> float:
    """Compares with the network in a folder. Returns the largest difference, in standard deviations of the output."""
    ours = UNet.from_pretrained(folder)
    config = theirs.config
    size = config.sample_size or 8
    x = torch.randn(2, config.in_channels, *((size, size) if isinstance(size, int) else size))
    t = torch.tensor([3.0, 977.0])
    label = None if config.num_class_embeds is None else torch.tensor([0, config.num_class_embeds - 1])
    with torch.no_grad():
        expected, found = theirs(x, t, class_labels=label).sample, ours(x, t, label)
    assert_close(found, expected, rtol=0, atol=2e-5 * expected.std().item())
    assert_close(ours.export_weights("diffusers"), dict(theirs.state_dict()), rtol=0, atol=0)
    UNet2DModel(**unet.diffusers_config(ours.config)).load_state_dict(theirs.state_dict())
    return ((found - expected).abs().max() / expected.std()).item()


@pytest.mark.parametrize("name", KINDS)
def test_a_small_network_of_every_published_kind_is_equal(name: str, tmp_path: Path) -> None:
    theirs = network(name, small=True)
    theirs.save_pretrained(tmp_path)
    difference = check(theirs, tmp_path)
    print(f"{name}: {difference:.1e}")
    assert difference < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, changes) in KINDS.items() if changes])
def test_published_networks_at_full_size_are_equal(name: str, tmp_path: Path) -> None:
    theirs = network(name, small=False)
    theirs.save_pretrained(tmp_path)
    print(f"{name}: {check(theirs, tmp_path):.1e}")


@pytest.fixture(scope="module")
def small() -> UNet2DModel:
    return network("middle without attention", small=True)


def test_averaged_weights_are_opened(small: UNet2DModel, tmp_path: Path) -> None:
    average = EMAModel(small.parameters(), decay=0.99, model_cls=UNet2DModel, model_config=small.config)
    average.save_pretrained(tmp_path)
    assert "optimization_step" in json.loads((tmp_path / "config.json").read_text())
    check(small, tmp_path)


def test_weights_in_several_files_are_opened(small: UNet2DModel, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    check(small, tmp_path)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "100KB"}])
def test_a_variant_is_opened_with_a_note(small: UNet2DModel, tmp_path: Path, shards: dict[str, str]) -> None:
    half = UNet2DModel.from_config(small.config)
    half.load_state_dict(small.state_dict())
    half = half.half()
    half.save_pretrained(tmp_path, variant="fp16", **shards)
    with pytest.warns(UserWarning, match="fp16|float16") as notes:
        net = UNet.from_pretrained(tmp_path)
    text = " ".join(str(entry.message) for entry in notes)
    assert "variant fp16" in text
    assert "float16" in text
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert_close(net.export_weights("diffusers"), {k: v.float() for k, v in half.state_dict().items()}, rtol=0, atol=0)


def test_several_variants_are_named(small: UNet2DModel, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path, variant="fp16")
    small.save_pretrained(tmp_path, variant="non_ema")
    with pytest.raises(ValueError, match=r"fp16, non_ema.*diffusion_pytorch_model\.safetensors"):
        UNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "tensor"),
    [
        ("in_channels", 4, "conv_in"),
        ("in_channels", 10**6, "conv_in"),
        ("out_channels", 4, "conv_out"),
        ("out_channels", 6, "conv_out"),
        ("num_class_embeds", 5, "class_embedding"),
        ("num_class_embeds", 10**7, "class_embedding"),
        ("mid_block_type", None, "mid_block"),
        ("add_attention", True, "mid_block"),
        ("layers_per_block", 1, "resnets"),
        ("block_out_channels", [64, 64], "time_embedding"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    small: UNet2DModel, tmp_path: Path, field: str, value: Any, tensor: str
) -> None:
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError, match=rf"diffusion_pytorch_model\.safetensors.*{tensor}"):
        UNet.from_pretrained(tmp_path)


def test_weights_of_a_compiled_network_are_opened_with_a_note(small: UNet2DModel, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    state = {f"_orig_mod.{name}": tensor for name, tensor in small.state_dict().items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.warns(UserWarning, match=r"_orig_mod\."):
        check(small, tmp_path)


@pytest.mark.parametrize("other", ["ema_model.", "loss_fn."])
def test_weights_of_several_networks_are_distinguished(small: UNet2DModel, other: str) -> None:
    state = {f"online_model.{name}": tensor for name, tensor in small.state_dict().items()}
    net = UNet(unet.layouts.diffusers.config_from(dict(small.config)))
    with pytest.raises(ValueError, match=r"begin with online_model\..*diffusers"):
        net.import_weights(state | {f"{other}weight": torch.ones(3)})


def test_a_pipeline_is_opened(small: UNet2DModel, tmp_path: Path) -> None:
    DDPMPipeline(unet=small, scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    check(small, tmp_path)


def test_old_names_of_attention_are_read(tmp_path: Path) -> None:
    theirs = network("google/ddpm-cifar10-32", small=True)
    old = {"to_q": "query", "to_k": "key", "to_v": "value"}
    state = {
        ".".join(old.get(part, part) for part in name.split(".")).replace("to_out.0", "proj_attn"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert any("proj_attn" in name for name in state)
    ours = UNet(unet.layouts.diffusers.config_from(dict(theirs.config)))
    assert ours.import_weights(state) == []
    assert_close(ours.export_weights("diffusers"), dict(theirs.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("center_input_sample", True),
        ("class_embed_type", "timestep"),
        ("class_embed_type", "identity"),
        ("time_embedding_type", "learned"),
        ("mid_block_scale_factor", 2.0),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("act_fn", "gelu"),
        ("resnet_time_scale_shift", "spatial"),
        ("norm_num_groups", None),
        ("attn_norm_num_groups", 4),
        ("downsample_padding", 2),
        ("time_embedding_dim", 17),
        ("down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"]),
        ("down_block_types", ["DownBlock2D", "SkipDownBlock2D"]),
        ("up_block_types", ["UpBlock2D", "UpBlock2D"]),
        ("up_block_types", ["AttnUpBlock2D", "SkipUpBlock2D"]),
        ("block_out_channels", [32]),
        ("block_out_channels", [0, 64]),
        ("block_out_channels", [32, 64, 64]),
        ("block_out_channels", "wide"),
        ("attention_head_dim", 12),
        ("layers_per_block", 0),
        ("layers_per_block", 10**9),
        ("in_channels", 0),
        ("norm_eps", -1.0),
        ("norm_eps", float("nan")),
        ("sample_size", [8, 8, 8]),
        ("dropout", 1.5),
        ("num_class_embeds", 0),
        ("decays", 0.9),
    ],
)
def test_what_nothing_published_has_is_refused_by_name(field: str, value: Any) -> None:
    arguments = kind(16, [32, 64], [D, A]) | {field: value}
    names = {"block_out_channels": "channel|width|block_out", "attention_head_dim": "head", "layers_per_block": "block"}
    names |= {"in_channels": "channels", "norm_eps": "eps", "num_class_embeds": "classes", "sample_size": "size"}
    with pytest.raises(ValueError, match=names.get(field, field)):
        unet.layouts.diffusers.config_from(arguments)
