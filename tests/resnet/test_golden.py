"""Logits equal those of the published implementations, for weights that depend on their names (tests/golden)."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import resnet
from residual.count import parameters
from tests.golden.fill import fill, golden_input

GOLDEN: dict[str, dict[str, Any]] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "golden" / "zoo.json.gz").read_bytes())
)
ROWS = list(GOLDEN)
# The fast ones are one of each kind.
FAST = ["resnet18", "resnext50_32x4d", "resnet18d", "seresnet50", "resnest14d", "resnetv2_50", "resnet50_gn"]
FAST += ["densenet121"]
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ROWS]
)


@each
def test_published_logits_and_a_bit_identical_export(name: str) -> None:
    golden, net = GOLDEN[name], resnet.create_model(name)
    theirs = {key: fill(key, shape) for key, shape in golden["state_dict"].items()}
    assert net.import_weights(theirs, golden["source"]) == []
    assert parameters(net) == golden["parameters"]
    with torch.no_grad():
        logits = net.eval()(golden_input(golden["input"]))
    error = 2e-5 * golden["logits_std"]
    assert_close(logits[0, :8], torch.tensor(golden["logits_first8"]), rtol=0, atol=error)
    assert abs(logits.mean().item() - golden["logits_mean"]) < error
    assert abs(logits.std().item() - golden["logits_std"]) < error
    assert_close(net.export_weights(golden["source"]), theirs, rtol=0, atol=0)
