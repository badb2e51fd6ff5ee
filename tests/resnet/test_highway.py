"""Highway networks: the authors' layer list, counts, and gates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from residual import Gate, Residual
from residual.count import multiply_adds, parameters
from resnet import HighwayConfig, HighwayNet, create_model, from_pretrained, model_info
from tests.resnet.whole import check_one_graph

SMALL = HighwayConfig(num_classes=4, blocks_per_stage=(1, 2), widths=(6, 8), head_channels=5)


@pytest.mark.parametrize(("name", "depth", "published"), [("highway19", 19, 2.3e6), ("highway32", 32, 1.25e6)])
def test_depth_and_published_size(name: str, depth: int, published: float) -> None:
    """The publications give the size with two or three digits; ours with 32 layers has 1,255,270 parameters."""
    net = create_model(name)
    gates = sum(isinstance(m, Gate) for m in net.modules())
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules()) - gates == depth
    assert parameters(net) == pytest.approx(published, rel=0.02)
    assert parameters(net) == {"highway19": 2_256_838, "highway32": 1_255_270}[name] == model_info(name).parameters
    found = multiply_adds(net, torch.empty(1, 3, 32, 32))
    assert found / 1e9 == pytest.approx(model_info(name).giga_multiply_adds, abs=6e-4)


def plain_forward(net: HighwayNet, x: Tensor) -> Tensor:
    """The network of the authors' cifar10_network.prototxt, layer by layer, with the weights of ours."""
    convs = iter([m for m in net.modules() if isinstance(m, nn.Conv2d)])
    x = torch.relu(next(convs)(x))
    for stage, count in enumerate(net.config.blocks_per_stage):
        if stage:
            x = torch.relu(next(convs)(nn.functional.max_pool2d(x, 2)))
        for _ in range(count):
            h, t = torch.relu(next(convs)(x)), torch.sigmoid(next(convs)(x))
            x = t * h + (1 - t) * x
    return net.fc(torch.relu(next(convs)(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["highway19", "highway32"])
def test_the_layers_are_those_of_the_authors(name: str) -> None:
    net, x = create_model(name).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(net(x), plain_forward(net, x), rtol=1e-4, atol=1e-5)


def test_fresh_layers_are_close_to_their_shortcuts() -> None:
    net = HighwayNet(SMALL)
    gates = [m for m in net.modules() if isinstance(m, Gate)]
    assert all((gate.conv.bias == -2).all() for gate in gates)
    assert all((m.branch.conv.bias == 0).all() for m in net.modules() if isinstance(m, Residual))
    closed, open_ = (HighwayNet(replace(SMALL, gate_bias=bias)).eval() for bias in (-1e4, 1e4))
    x = torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        assert_close(closed.levels[1](x), x, rtol=0, atol=0)
        assert_close(open_.levels[1](x), open_.levels[1].get_submodule("0").branch(x), rtol=0, atol=0)


def test_dropout_before_stages_and_classifier() -> None:
    x = torch.randn(2, 3, 8, 8)
    for dropout in (0.0, 0.2):
        net = HighwayNet(replace(SMALL, dropout=dropout))
        assert [m.p for m in net.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)] == [dropout] * 3
        with torch.no_grad():
            assert torch.equal(net(x), net(x)) == (dropout == 0)


def test_shapes_of_the_levels() -> None:
    net, x = HighwayNet(SMALL).eval(), torch.randn(2, 3, 9, 12)
    shapes = [tuple(f.shape) for f in net.forward_features(x, levels=(0, 1, 2))]
    assert shapes == [(2, 6, 9, 12), (2, 6, 9, 12), (2, 5, 4, 6)]
    assert net.feature_info == [(6, 1), (6, 1), (5, 2)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"head_channels": 0}, "head_channels=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"blocks_per_stage": (1, 2)}, r"blocks_per_stage=\(1, 2\) and widths=\(32, 80, 128\)"),
        ({"widths": (32, 0, 128)}, r"widths=\(32, 0, 128\)"),
        ({"std": ()}, r"std=\(\).* 3 channels"),
    ],
)
def test_invalid_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HighwayConfig(**fields)


def test_there_is_no_layout() -> None:
    with pytest.raises(ValueError, match=r"no .*layout"):
        HighwayNet(SMALL).import_weights({"conv1.weight": torch.zeros(1)})


def test_saving_and_loading(tmp_path: Path) -> None:
    net, x = HighwayNet(SMALL).eval(), torch.randn(2, 3, 8, 8)
    net.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert isinstance(again, HighwayNet)
    assert again.config == SMALL
    with torch.no_grad():
        assert_close(again(x), net(x), rtol=0, atol=0)


def test_exports_and_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    check_one_graph(HighwayNet(SMALL), torch.randn(2, 3, 8, 8), monkeypatch)
