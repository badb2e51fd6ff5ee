"""Classifiers and U-Nets are made of the same block: one class, `Residual`, and nothing beside it adds a shortcut."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import resnet
import unet
from residual import Residual

ROOT = Path(__file__).parents[1]
CLASSIFIERS = ["resnet18", "resnet50", "resnext50_32x4d", "seresnet50", "resnest14d", "resnetv2_50", "resnet50_gn"]
CLASSIFIERS += ["resnet20", "preact_resnet110", "wrn_16_4", "densenet121", "densenet_bc_100_12", "highway19"]
UNETS = ["ddpm-cifar10", "iddpm-cifar10", "adm-imagenet64", "edm-cifar10-ncsnpp", "edm2-img64-xs"]


def blocks(net: nn.Module) -> list[Residual]:
    return [module for module in net.modules() if isinstance(module, Residual)]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_block_of_a_classifier_is_the_residual_block(name: str) -> None:
    with torch.device("meta"):
        net = resnet.create_model(name)
    assert len(blocks(net)) == sum(net.config.blocks_per_stage)
    assert {type(block) for block in blocks(net)} == {Residual}


@pytest.mark.parametrize("name", UNETS)
def test_every_block_of_a_unet_is_the_residual_block(name: str) -> None:
    with torch.device("meta"):
        net = unet.build(unet.preset(name))
    places = [module for name, module in net.named_modules() if name.rpartition(".")[2] in ("res", "res1", "attn")]
    assert len(places) > 10
    assert {type(place) for place in places} == {Residual}


def test_a_plain_network_has_none() -> None:
    with torch.device("meta"):
        assert blocks(resnet.create_model("plain20")) == []


def test_the_block_is_written_once() -> None:
    """No other class is derived from it, and its forward has no choice for one architecture or another."""
    trees = [
        ast.parse(file.read_text())
        for package in ("residual", "resnet", "unet")
        for file in sorted((ROOT / package).rglob("*.py"))
    ]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [c.name for c in classes if c.name == "Residual"] == ["Residual"]
    assert not [
        c.name for c in classes if any(isinstance(base, ast.Name) and base.id == "Residual" for base in c.bases)
    ]
    [residual] = [c for c in classes if c.name == "Residual"]
    [forward] = [f for f in residual.body if isinstance(f, ast.FunctionDef) and f.name == "forward"]
    assert not [node for node in ast.walk(forward) if isinstance(node, ast.If | ast.IfExp | ast.Match)]
