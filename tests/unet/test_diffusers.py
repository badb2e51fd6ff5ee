"""Equality with diffusers' UNet2DModel, in both directions, with weights that are zero nowhere."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.testing import assert_close

import unet
from unet import UNet, UNetConfig

TINY = UNetConfig(
    size=(8, 8), base_channels=32, channel_multipliers=(1, 2), attention_levels=(1,), groups=8, blocks_per_level=1
)
CONFIGS = {
    "ddpm-cifar10": unet.preset("ddpm-cifar10"),
    "ddpm-256": replace(unet.preset("ddpm-256"), size=(64, 32)),
    "adm-like": replace(
        TINY, conditioning="scale_shift", resample="block", head_channels=16, time_embedding="adm", classes=3
    ),
    "deep": replace(
        TINY, channel_multipliers=(1, 1.5, 2), attention_levels=(0, 2), blocks_per_level=2, groups=16, dropout=0.1
    ),
    "no-null": replace(TINY, classes=3, null_label=False, in_channels=1, out_channels=1),
    "variance": replace(TINY, learned_variance=True, size=(16, 8)),
    "one-level": replace(TINY, channel_multipliers=(1,), attention_levels=(), resample="block"),
    "resampling-blocks": replace(
        TINY, channel_multipliers=(1, 1, 1), attention_levels=(1,), resample="block", conditioning="scale_shift"
    ),
}


def reference(config: UNetConfig) -> UNet2DModel:
    torch.manual_seed(0)
    model = UNet2DModel(**unet.diffusers_config(config)).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.3)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_unet2dmodel(name: str) -> None:
    config = CONFIGS[name]
    theirs, ours = reference(config), UNet(config).eval()
    ours.import_weights(theirs.state_dict(), layout="diffusers")
    x, t = torch.randn(2, config.in_channels, *config.size), torch.tensor([3, 977])
    label = torch.tensor([0, 2]) if config.classes else None
    with torch.no_grad():
        expected = theirs(x, t, class_labels=label).sample
        found = ours(x, t, label)
    assert_close(found, expected, rtol=0, atol=2e-5 * expected.std().item())


@pytest.mark.parametrize("name", CONFIGS)
def test_import_then_export_is_bit_identical(name: str) -> None:
    config = CONFIGS[name]
    theirs, ours = reference(config).state_dict(), UNet(config)
    ours.import_weights(theirs, layout="diffusers")
    back = ours.export_weights(layout="diffusers")
    assert_close(back, dict(theirs), rtol=0, atol=0)


def test_every_norm_has_the_published_epsilon() -> None:
    config = CONFIGS["ddpm-cifar10"]
    ours = [m.eps for m in UNet(config).modules() if isinstance(m, nn.GroupNorm)]
    theirs = [m.eps for m in reference(config).modules() if isinstance(m, nn.GroupNorm)]
    assert set(ours) == set(theirs) == {1e-6}
    assert len(ours) == len(theirs)


def test_weights_of_another_network_are_refused() -> None:
    theirs = reference(TINY).state_dict()
    with pytest.raises(
        ValueError, match=r"the weights do not fit this network: .*time_embedding\.linear_1\.weight has \(128, 32\)"
    ):
        UNet(replace(TINY, base_channels=64)).import_weights(theirs, layout="diffusers")
    with pytest.raises(ValueError, match=r"unknown: .*add_embedding"):
        UNet(TINY).import_weights(theirs | {"add_embedding.weight": torch.zeros(1)}, layout="diffusers")


def test_weights_with_labels_are_adapted_with_a_message() -> None:
    theirs, ours = reference(replace(TINY, classes=3, null_label=False)), UNet(replace(TINY, in_channels=1)).eval()
    messages = ours.import_weights(theirs.state_dict())
    assert [message.partition(":")[0] for message in messages] == ["input", "labels"]
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 977])
    theirs.class_embedding.weight.data[:] = theirs.class_embedding.weight.data.mean(dim=0)
    with torch.no_grad():
        expected = theirs(x.expand(2, 3, 8, 8), t, class_labels=torch.zeros(2, dtype=torch.long)).sample
        assert_close(ours(x, t), expected, rtol=0, atol=5e-5 * expected.std().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks_per_level": (1, 2)}, "one number of blocks for all levels"),
        ({"channel_multipliers": (1, 2, 2), "resample": ("conv", "block", "conv")}, "the same on all levels"),
        ({"attention_levels": (0, 1), "heads": 2}, "one attention_head_dim, a head width, for all levels"),
        ({"channel_multipliers": (2, 2)}, "as wide as its first level: start with 1"),
        ({"channel_multipliers": (1, 1.25)}, "groups=8: its GroupNorm of 20 channels has 8 groups"),
    ],
)
def test_configs_that_diffusers_cannot_express_are_refused(change: dict, message: str) -> None:
    config = replace(TINY, **({"base_channels": 16} if message.startswith("groups") else {}), **change)
    with pytest.raises(ValueError, match=f"UNet2DModel cannot express .*{message}"):
        UNet(config).export_weights("diffusers")
