"""Outputs of the published implementations, for weights that are drawn by name (tests/golden)."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from residual.count import parameters
from tests.golden.fill import fill, golden_input
from tests.golden.networks import BARE, GOLDEN, ROWS, check_output, label, network, state
from unet import build


def test_every_recorded_row_is_tested() -> None:
    assert set(ROWS) == set(GOLDEN)


@pytest.mark.parametrize("row", BARE)
def test_the_published_output(row: str) -> None:
    given = GOLDEN[row]["inputs"]
    x, t = golden_input((2, 3, 16, 16), "x"), torch.tensor(given.get("timesteps", given.get("noise_labels")))
    with torch.no_grad():
        check_output(row, network(row)(x, t, label(row)))


@pytest.mark.parametrize("row", ROWS)
def test_parameters_and_epsilons(row: str) -> None:
    net = network(row)
    assert parameters(net) == GOLDEN[row]["parameters"]
    epsilons = {module.eps for module in net.modules() if isinstance(module, nn.GroupNorm)}
    assert epsilons == (set() if "edm2" in row else {1e-6 if "pp" in row else 1e-5})


@pytest.mark.parametrize("row", ROWS)
def test_import_then_export_is_bit_identical(row: str) -> None:
    exported = network(row).export_weights(ROWS[row][0])
    prefix = "model." if "preconditioned" in row and "edm2" not in row else ""
    assert {prefix + key: list(tensor.shape) for key, tensor in exported.items()} == GOLDEN[row]["state_dict"]
    for key, tensor in state(row).items():
        assert_close(exported[key.removeprefix(prefix)], tensor, rtol=0, atol=0)


# Other weights, sizes and numbers of channels: the names follow, and the output equals that of the network in float64.
@pytest.mark.parametrize(
    ("salt", "change"),
    [
        ("a", {}),
        ("b", {"size": (32, 32)}),
        ("c", {"size": (8, 8), "in_channels": 1, "out_channels": 1}),
        ("d", {"size": (24, 24), "classes": 3, "blocks_per_level": 1}),
    ],
)
@pytest.mark.parametrize("row", [*BARE, "edm2_small_preconditioned"])
def test_other_weights_and_sizes(row: str, salt: str, change: dict[str, Any]) -> None:
    layout, config = ROWS[row]
    config = replace(config, **change)
    net = build(config).eval()
    names = net.export_weights(layout)
    constant = {key: tensor for key, tensor in names.items() if key.endswith("resample_filter")}
    theirs = {key: fill(key, tuple(tensor.shape), salt) for key, tensor in names.items()} | constant
    net.import_weights(theirs, layout=layout)
    assert_close(net.export_weights(layout), theirs, rtol=0, atol=0)
    x, t = golden_input((2, config.in_channels, *config.size), salt), torch.tensor([0.3, 1.2])
    labels = () if config.classes is None else (torch.tensor([0, 2]),)
    with torch.no_grad():
        found, exact = net(x, t, *labels), copy.deepcopy(net).double()(x.double(), t.double(), *labels)
    assert found.std() > 0.02
    assert_close(found.double(), exact, rtol=0, atol=5e-6 * max(1.0, exact.std().item()))
