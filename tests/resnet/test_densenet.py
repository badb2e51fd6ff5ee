"""DenseNet: published counts, weight names and levels."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from residual import Concat, Residual
from residual.count import multiply_adds, parameters
from resnet import (
    DenseNet,
    DenseNetConfig,
    cifar_densenet,
    create_model,
    from_pretrained,
    import_weights,
    list_models,
    model_info,
)
from tests.golden.fill import fill
from tests.resnet.whole import check_one_graph

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "zoo.json.gz").read_bytes()))
COUNTS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet_40_12": 1_019_722,
    "densenet_bc_100_12": 769_162,
    "densenet_bc_190_40": 25_624_430,
    "densenet_bc_250_24": 15_324_406,
}
SMALL = DenseNetConfig(num_classes=5, blocks_per_stage=(2, 3), growth=4, stem_channels=8)


def published(row: str, salt: str = "") -> dict[str, Tensor]:
    return {key: fill(key, tuple(shape), salt) for key, shape in GOLDEN[row]["state_dict"].items()}


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name)
    assert parameters(net) == COUNTS[name] == model_info(name).parameters
    assert sum(isinstance(m, Residual) and isinstance(m.merge, Concat) for m in net.modules()) == sum(
        net.config.blocks_per_stage
    )


def test_every_densenet_of_the_zoo_is_counted() -> None:
    assert set(COUNTS) == set(list_models("densenet*"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "densenet_40_12" else pytest.mark.slow) for n in COUNTS]
)
def test_multiply_adds_are_those_of_the_table(name: str) -> None:
    with torch.device("meta"):
        net, image = create_model(name), torch.empty(1, 3, model_info(name).size_px, model_info(name).size_px)
    assert multiply_adds(net, image) / 1e9 == pytest.approx(model_info(name).giga_multiply_adds, abs=6e-4)


def test_old_names_are_read() -> None:
    state = published("densenet121", "old")
    old = {}
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue  # the files are older than these counters
        for node in ("norm1", "conv1", "norm2", "conv2"):
            key = key.replace(f".{node}.", f".{node[:-1]}.{node[-1]}.") if "denselayer" in key else key
        old[f"module.{key}"] = tensor
    assert "module.features.denseblock1.denselayer1.norm.1.weight" in old
    net = create_model("densenet121")
    (message,) = net.import_weights(old)
    assert "module." in message
    assert_close(net.export_weights("torchvision"), state, rtol=0, atol=0)


def test_weights_of_another_densenet_are_recognised() -> None:
    with pytest.raises(ValueError, match=r"features\.denseblock3\.denselayer25.*'densenet169'"):
        import_weights(create_model("densenet121"), published("densenet169"))


def test_other_classes_and_channels_are_adapted() -> None:
    state = published("densenet121")
    net = create_model("densenet121", num_classes=7, in_channels=1)
    before = net.fc.weight.clone()
    stem, head = net.import_weights(state)
    assert re.match(r"features\.conv0\.weight: 3 .*channels", stem)
    assert re.match(r"classifier\.weight and classifier\.bias: .*1000 classes.*7", head)
    assert_close(net.fc.weight, before, rtol=0, atol=0)
    assert_close(net.levels[0].conv1.weight, state["features.conv0.weight"].sum(1, keepdim=True), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "conv3"}, "cannot express stem='conv3'"),
        ({"compression": 1.0}, "cannot express compression=1.0"),
        ({"bottleneck": None}, "cannot express bottleneck=None"),
    ],
)
def test_configs_that_torchvision_cannot_express(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("densenet121", **changes).export_weights("torchvision")


def test_shapes_of_the_levels() -> None:
    net, x = DenseNet(SMALL).eval(), torch.randn(2, 3, 32, 48)
    found = net.forward_features(x, levels=(0, 1, 2))
    assert [tuple(f.shape) for f in found] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 20, 4, 6)]
    assert net.feature_info == [(8, 2), (16, 4), (20, 8)]
    assert (found[2] >= 0).all()  # the last is normalised and activated
    assert (found[1] < 0).any()


@pytest.mark.parametrize(
    ("depth", "compressed", "message"),
    [
        (41, False, r"depth=41 .*3n \+ 4 .*40 or 43"),
        (101, True, r"depth=101 .*6n \+ 4 .*100 or 106"),
        (4, False, "depth=4 .* 7$"),
    ],
)
def test_impossible_depths_are_refused(depth: int, compressed: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cifar_densenet(depth, 12, compressed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"growth": 0}, "growth=0"),
        ({"stem_channels": 0}, "stem_channels=0"),
        ({"blocks_per_stage": ()}, r"blocks_per_stage=\(\)"),
        ({"blocks_per_stage": (2, 0)}, r"blocks_per_stage=\(2, 0\)"),
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"compression": 1.5}, "compression=1.5"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\).* 3 channels"),
    ],
)
def test_invalid_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseNetConfig(**fields)


def test_small_images_and_other_channels_are_refused() -> None:
    net = DenseNet(SMALL).eval()
    with pytest.raises(ValueError, match=r"7x9 px.* 8 px"):
        net(torch.randn(1, 3, 7, 9))
    with pytest.raises(ValueError, match=r"1 channels.* 3"):
        net(torch.randn(1, 1, 8, 8))


def test_saving_and_loading(tmp_path: Path) -> None:
    net, x = DenseNet(SMALL).eval(), torch.randn(2, 3, 16, 16)
    net.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert isinstance(again, DenseNet)
    assert again.config == SMALL
    with torch.no_grad():
        assert_close(again(x), net(x), rtol=0, atol=0)


def test_exports_and_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    check_one_graph(DenseNet(SMALL), torch.randn(2, 3, 16, 16), monkeypatch)
