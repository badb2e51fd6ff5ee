"""The recorded networks: their configs here, their weights drawn by name, their inputs and outputs."""

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from tests.golden.fill import fill
from unet import EDM2Config, EDM2UNet, UNet, UNetConfig, build

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "unet.json.gz").read_bytes()))["outputs"]
ADM: dict[str, Any] = {
    "size": (16, 16),
    "base_channels": 32,
    "channel_multipliers": (1, 2, 3),
    "attention_levels": (1,),
    "time_embedding": "adm",
    "null_label": False,
}
EDM: dict[str, Any] = {
    "size": (16, 16),
    "classes": 5,
    "base_channels": 32,
    "channel_multipliers": (1, 2, 2),
    "attention_levels": (1,),
    "group_channels": 4,
}
SONG = EDM | {
    "conditioning": "add",
    "label_embedding": "linear_first",
    "decoder_attention": "last",
    "residual_scale": 0.5**0.5,
    "eps": 1e-6,
}
BARE: dict[str, tuple[str, UNetConfig | EDM2Config]] = {
    "adm_small": (
        "adm",
        UNetConfig(
            **ADM, head_channels=16, classes=5, conditioning="scale_shift", resample="block", learned_variance=True
        ),
    ),
    "adm_small_plain": ("adm", UNetConfig(**ADM, heads=2, conditioning="add", resample="conv")),
    "adm_small_new_attention_order": (
        "adm-new-order",
        UNetConfig(**ADM, head_channels=16, conditioning="scale_shift", resample="conv"),
    ),
    "edm_ddpmpp_small": ("edm", UNetConfig(**SONG, resample="block_project")),
    "edm_ncsnpp_small": (
        "edm",
        UNetConfig(**SONG, resample="block_fir", time_embedding="fourier", input_skips=True),
    ),
    "edm_adm_small": (
        "edm",
        UNetConfig(
            **EDM,
            head_channels=64,
            conditioning="scale_shift",
            resample="block",
            time_embedding="adm",
            label_embedding="linear",
        ),
    ),
}
EDM2_SMALL = EDM2Config(
    size=(16, 16),
    classes=5,
    base_channels=32,
    channel_multipliers=(1, 2, 2),
    blocks_per_level=2,
    attention_levels=(1,),
    logvar_channels=32,
)
PRECONDITIONED: dict[str, tuple[str, UNetConfig | EDM2Config]] = {
    "edm_ddpmpp_small_preconditioned": BARE["edm_ddpmpp_small"],
    "edm_ncsnpp_small_preconditioned": BARE["edm_ncsnpp_small"],
    "edm_adm_small_preconditioned": BARE["edm_adm_small"],
    "edm2_small_preconditioned": ("edm2", EDM2_SMALL),
}
ROWS = BARE | PRECONDITIONED
"""row -> layout of its state dict, config of the network"""


def state(row: str, salt: str = "") -> dict[str, Tensor]:
    """The state dict of a row's published network, without the buffers that its code computes."""
    shapes = GOLDEN[row]["state_dict"]
    computed = GOLDEN[row]["buffers_not_filled"]
    return {key: fill(key, tuple(shape), salt) for key, shape in shapes.items() if key not in computed}


def network(row: str) -> UNet | EDM2UNet:
    """The row's network with its weights, in eval mode. A preconditioned row's is the network inside."""
    layout, config = ROWS[row]
    net = build(config).eval()
    net.import_weights(state(row), layout=layout)
    return net


def label(row: str) -> Tensor | None:
    """The row's labels as numbers."""
    given = GOLDEN[row]["inputs"]
    if "class_labels" in given:
        return torch.tensor(given["class_labels"]).argmax(dim=1)
    return torch.tensor(given["y"]) if "y" in given else None


def check_output(row: str, found: Tensor, tolerance: float = 5e-6) -> None:
    """The recorded rows, and mean and spread of the whole output, within 5e-6."""
    golden = GOLDEN[row]
    assert list(found.shape) == golden["output_shape"]
    rows = found.reshape(-1, found.shape[-1])
    got = torch.cat([rows[0], rows[-1], torch.stack([found.mean(), found.std()])])
    numbers = [*golden["output_first_row"], *golden["output_last_row"], golden["output_mean"], golden["output_std"]]
    assert_close(got, torch.tensor(numbers), rtol=0, atol=tolerance)
