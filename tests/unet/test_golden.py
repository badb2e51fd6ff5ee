"""Outputs of the published implementations, for weights that are drawn by name (tests/golden)."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.golden.fill import fill, golden_input
from unet import UNet, UNetConfig

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "unet.json.gz").read_bytes()))["outputs"]
ADM: dict[str, Any] = {
    "size": (16, 16),
    "channels": 32,
    "multipliers": (1, 2, 3),
    "attention": (1,),
    "time_embedding": "adm",
    "null_label": False,
}
EDM: dict[str, Any] = {
    "size": (16, 16),
    "classes": 5,
    "channels": 32,
    "multipliers": (1, 2, 2),
    "attention": (1,),
    "group_channels": 4,
}
SONG = EDM | {
    "conditioning": "add",
    "label_embedding": "linear_first",
    "decoder_attention": "last",
    "residual_scale": 0.5**0.5,
    "eps": 1e-6,
}
ROWS: dict[str, tuple[str, UNetConfig]] = {
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


def state(row: str, salt: str = "") -> dict[str, Tensor]:
    """The state dict of a row's published network, without the buffers that its code computes."""
    shapes = GOLDEN[row]["state_dict"]
    computed = GOLDEN[row]["buffers_not_filled"]
    return {key: fill(key, tuple(shape), salt) for key, shape in shapes.items() if key not in computed}


def network(row: str) -> UNet:
    layout, config = ROWS[row]
    net = UNet(config).eval()
    net.import_weights(state(row), layout=layout)
    return net


def label(row: str) -> Tensor | None:
    given = GOLDEN[row]["inputs"]
    if "class_labels" in given:
        return torch.tensor(given["class_labels"]).argmax(dim=1)
    return torch.tensor(given["y"]) if "y" in given else None


def check_output(row: str, found: Tensor) -> None:
    """The recorded rows within 5e-6, and mean and spread of the whole output."""
    golden = GOLDEN[row]
    assert list(found.shape) == golden["output_shape"]
    assert_close(found[0, 0, 0], torch.tensor(golden["output_first_row"]), rtol=0, atol=5e-6)
    assert_close(found[-1, -1, -1], torch.tensor(golden["output_last_row"]), rtol=0, atol=5e-6)
    assert found.mean().item() == pytest.approx(golden["output_mean"], abs=5e-6)
    assert found.std().item() == pytest.approx(golden["output_std"], abs=5e-6)


@pytest.mark.parametrize("row", ROWS)
def test_the_published_output(row: str) -> None:
    given = GOLDEN[row]["inputs"]
    x, t = golden_input((2, 3, 16, 16), "x"), torch.tensor(given.get("timesteps", given.get("noise_labels")))
    with torch.no_grad():
        check_output(row, network(row)(x, t, label(row)))


@pytest.mark.parametrize("row", ROWS)
def test_parameters_and_epsilons(row: str) -> None:
    net = network(row)
    stored = sum(p.numel() for p in net.parameters())
    assert stored == GOLDEN[row]["parameters"]
    epsilons = {module.eps for module in net.modules() if isinstance(module, nn.GroupNorm)}
    assert epsilons == {1e-6 if "pp" in row else 1e-5}


@pytest.mark.parametrize("row", ROWS)
def test_import_then_export_is_bit_identical(row: str) -> None:
    exported = network(row).export_weights(ROWS[row][0])
    assert {key: list(tensor.shape) for key, tensor in exported.items()} == GOLDEN[row]["state_dict"]
    for key, tensor in state(row).items():
        assert_close(exported[key], tensor, rtol=0, atol=0)
