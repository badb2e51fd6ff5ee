"""Twenty random `UNet2DModel`s, imported from their arguments and exported again: equal outputs."""

import random
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.testing import assert_close

import unet
from unet import UNet
from unet.layouts.diffusers import config_from


def arguments(seed: int) -> dict[str, Any]:
    """Random arguments of a small network, drawn from what the class offers."""
    draw = random.Random(seed)
    levels, groups = draw.choice([1, 2, 3]), draw.choice([4, 8])
    widths = [groups * draw.choice([4, 6, 8]) for _ in range(levels)]
    block = draw.random() < 0.5
    scale_shift = draw.random() < 0.5
    attention = [draw.random() < 0.5 for _ in widths]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if block else ("DownBlock2D", "UpBlock2D")
    last = levels - 1
    down = ["AttnDownBlock2D" if a else plain[0] if i < last else "DownBlock2D" for i, a in enumerate(attention)]
    up = ["AttnUpBlock2D" if a else plain[1] if i > 0 else "UpBlock2D" for i, a in enumerate(attention)][::-1]
    time = draw.choice([(False, 1), (True, 0), "fourier"])
    size = 2**last * draw.choice([2, 3])
    return {
        "sample_size": [size, 2 * size] if draw.random() < 0.5 else size,
        "in_channels": draw.choice([1, 2, 3, 4]),
        "out_channels": draw.choice([1, 2, 3, 4]),
        "block_out_channels": widths,
        "layers_per_block": draw.choice([1, 2]),
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": draw.choice([None, 4, 2]),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if scale_shift else draw.choice([None, groups]),
        "norm_eps": draw.choice([1e-5, 1e-6]),
        "dropout": draw.choice([0.0, 0.1]),
        "downsample_padding": draw.choice([0, 1]),
        "downsample_type": "resnet" if block else "conv",
        "upsample_type": "resnet" if block else "conv",
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "num_class_embeds": draw.choice([None, 3]),
        **(
            {"time_embedding_type": "fourier"}
            if time == "fourier"
            else {"flip_sin_to_cos": time[0], "freq_shift": time[1]}
        ),
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_random_network_is_equal(seed: int) -> None:
    torch.manual_seed(seed)
    given = arguments(seed)
    theirs = UNet2DModel(**given).eval()
    for name, p in theirs.named_parameters():
        if name != "time_proj.weight":
            nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.3)
    config = config_from(dict(theirs.config))
    ours = UNet(config).eval()
    ours.import_weights(theirs.state_dict(), layout="diffusers")
    x, t = torch.randn(2, given["in_channels"], *config.size), torch.tensor([3.0, 977.0])
    label = None if config.classes is None else torch.tensor([0, 2])
    with torch.no_grad():
        expected = theirs(x, t, class_labels=label).sample
        found = ours(x, t, label)
    assert_close(found, expected, rtol=0, atol=2e-5 * expected.std().item())
    again = UNet2DModel(**unet.diffusers_config(config)).eval()
    again.load_state_dict(ours.export_weights("diffusers"))
    with torch.no_grad():
        assert_close(again(x, t, class_labels=label).sample, expected, rtol=0, atol=2e-5 * expected.std().item())
