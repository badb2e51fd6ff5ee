"""Weights of other libraries: layouts, older files, other classes and channels, files that do not fit."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

import resnet
from residual.weights.layout import read_state
from resnet import ResNet, ResNetConfig, cifar_resnet
from tests.golden.fill import fill

SMALL: dict[str, Any] = {"blocks_per_stage": (1, 1, 1, 1)}
AKAMASTER = cifar_resnet(8, shortcut="A_split")


def small(name: str = "resnet18", **changes: Any) -> ResNet:
    return resnet.create_model(name, **SMALL | changes)


def published(net: ResNet, layout: str) -> dict[str, Tensor]:
    """A state dict in that layout, drawn by name."""
    return {key: fill(key, tuple(tensor.shape)) for key, tensor in net.export_weights(layout).items()}


def images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "seresnet18", "resnest14d", "resnetv2_50", "resnet50_gn"])
def test_the_layout_is_found_by_the_names(name: str) -> None:
    theirs = published(small(name), "timm")
    net, other = small(name), small(name)
    assert net.import_weights(theirs) == []
    other.import_weights(theirs, "timm")
    assert_close(dict(net.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
    assert_close(net.export_weights("timm"), theirs, rtol=0, atol=0)


def test_akamasters_names_with_the_prefix_of_data_parallel() -> None:
    net = ResNet(AKAMASTER)
    theirs = published(net, "akamaster")
    assert {key.partition(".")[0] for key in theirs} == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}
    (line,) = net.import_weights({f"module.{key}": tensor for key, tensor in theirs.items()})
    assert "module." in line
    assert_close(net.export_weights("akamaster"), theirs, rtol=0, atol=0)


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    theirs = published(small(), "torchvision")
    save_file(theirs, tmp_path / "weights.safetensors")
    for path in (tmp_path / "weights.safetensors", str(tmp_path / "weights.safetensors")):
        net = small()
        net.import_weights(path)
        assert_close(net.export_weights("torchvision"), theirs, rtol=0, atol=0)
    torch.save(theirs, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth.* pickle"):
        small().import_weights(tmp_path / "weights.pth")


def test_files_without_batch_counters_are_read() -> None:
    theirs = published(small(), "torchvision")
    old = {key: tensor for key, tensor in theirs.items() if not key.endswith("num_batches_tracked")}
    net = small()
    net.levels[0].bn1.num_batches_tracked += 3
    assert net.import_weights(old) == []
    assert_close(net.export_weights("torchvision"), theirs, rtol=0, atol=0)


def test_weights_of_batch_norms_are_taken_by_frozen_ones() -> None:
    theirs, batch, frozen = published(small(), "torchvision"), small(), small(norm="frozen")
    batch.import_weights(theirs)
    assert frozen.import_weights(theirs) == []
    assert_close(frozen.train()(images()), batch.eval()(images()), rtol=1e-5, atol=1e-5)
    assert not [key for key in frozen.export_weights("torchvision") if key.endswith("num_batches_tracked")]


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "fc.weight and fc.bias"), ("resnetv2_50", "head.fc.weight and head.fc.bias")]
)
def test_a_classifier_for_other_classes_is_left_out(name: str, head: str) -> None:
    theirs, net = published(small(name), "timm"), small(name, num_classes=7)
    before = {key: tensor.clone() for key, tensor in net.get_classifier().state_dict().items()}
    [message] = net.import_weights(theirs)
    assert message.startswith(f"{head}: ")
    assert re.search("1000 classes.* 7", message)
    assert_close(dict(net.get_classifier().state_dict()), before, rtol=0, atol=0)
    same = small(name)
    same.import_weights(theirs)
    x = images()
    assert_close(net.eval().forward_features(x), same.eval().forward_features(x), rtol=0, atol=0)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 4), (3, 2), (3, 13), (1, 3), (13, 3), (13, 1), (4, 8)])
def test_a_stem_for_other_channels_is_adapted(old: int, new: int) -> None:
    source, net = small(in_channels=old), small(in_channels=new)
    theirs = published(source, "torchvision")
    (line,) = net.import_weights(theirs)
    assert line.startswith(f"conv1.weight: {old} input channels adapted to {new}")
    source.import_weights(theirs)
    x = images(min(old, new))
    before, after = (x[:, [i % x.shape[1] for i in range(n)]] for n in (old, new))
    assert_close(net.eval()(after), source.eval()(before), rtol=1e-4, atol=1e-4)


def test_deep_stems_are_adapted_at_their_first_convolution() -> None:
    theirs = published(small("resnet18d"), "timm")
    (line,) = small("resnet18d", in_channels=1).import_weights(theirs)
    assert line.startswith("conv1.0.weight: 3 input channels adapted to 1")


def test_a_training_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="'state_dict' is a dict"):
        read_state({"state_dict": published(small(), "torchvision"), "epoch": 3})


def test_weights_are_recognised_for_networks_without_a_layout() -> None:
    theirs = resnet.create_model("resnet18").export_weights("torchvision")
    for name, reason in (("highway19", "no .*layout"), ("wrn_16_4", "cannot express widths")):
        with pytest.raises(ValueError, match=f"{reason}.*; 'resnet18' has such weights"):
            resnet.import_weights(resnet.create_model(name), theirs)


# The error has the difference and the name of the model that the weights fit.
@pytest.mark.parametrize(
    ("weights", "name", "message"),
    [
        ("resnet18", "resnet34", "missing: layer1.2.conv1.weight, .*; 'resnet18' has such weights"),
        ("resnet50_gn", "wide_resnet50_2", r"missing: .*; \d+ of another shape: .*; 'resnet50_gn' has such"),
        ("resnet18d", "resnet18", "missing: conv1.weight, .*unknown: conv1.0.weight.*; 'resnet18d' has such weights"),
        ("resnetv2_50", "resnet50", "missing: conv1.weight.*; 'resnetv2_50' has such weights"),
    ],
)
def test_weights_of_another_network_are_recognised(weights: str, name: str, message: str) -> None:
    with torch.device("meta"):
        theirs = resnet.create_model(weights, num_classes=7, in_channels=1).export_weights("timm")
        net = resnet.create_model(name)
    theirs = {key: tensor for key, tensor in theirs.items() if not key.endswith("num_batches_tracked")}
    with pytest.raises(ValueError, match=message) as error:
        resnet.import_weights(net, theirs)
    assert "\n" not in str(error.value)


def test_weights_of_no_known_network_give_the_difference() -> None:
    with pytest.raises(ValueError, match=r"missing: conv1\.weight, .*; 1 unknown: weight; resnet\.likely_models"):
        small().import_weights({"weight": torch.ones(2)}, "torchvision")
    net = small()
    with pytest.raises(ValueError, match="load_state_dict"):
        net.import_weights(net.state_dict())


def test_a_failed_import_changes_nothing() -> None:
    net, theirs = small(), published(small(), "torchvision")
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    del theirs["layer4.0.bn2.bias"]
    with pytest.raises(ValueError, match=r"1 missing: layer4\.0\.bn2\.bias"):
        net.import_weights(theirs)
    assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (ResNetConfig(), "torchvison", "layout 'torchvison'; did you mean torchvision"),
        (ResNetConfig(), "caffe", "layout 'caffe'.*: torchvision, timm, akamaster"),
        (
            ResNetConfig(se_reduction=16),
            "torchvision",
            r"torchvision's ResNet cannot express se_reduction=16: it has N",
        ),
        (ResNetConfig(stem="deep"), "torchvision", "cannot express stem='deep': it has 'conv7'"),
        (ResNetConfig(shortcut="D"), "torchvision", "cannot express shortcut='D': it has 'B'"),
        (ResNetConfig(act="silu"), "torchvision", "cannot express act='silu': it has 'relu'"),
        (ResNetConfig(block="preact_basic"), "torchvision", "cannot express block='preact_basic': it has 'basic' or"),
        (ResNetConfig(block="bottleneck", stride_in="1x1"), "timm", "cannot express stride_in='1x1': it has '3x3'"),
        (ResNetConfig(block="preact_basic", stem="deep"), "timm", "timm's ResNetV2 cannot express stem='deep'"),
        (ResNetConfig(norm="group", noise=True), "timm", "cannot express noise=True: it has False"),
        (AKAMASTER, "timm", r"timm's ResNet cannot express widths=\(16, 32, 64\): it has \(64, 128, 256, 512\)"),
        (replace(AKAMASTER, shortcut="A"), "akamaster", "akamaster's ResNet .*shortcut='A'"),
        (ResNetConfig(), "akamaster", "akamaster's ResNet cannot express stem"),
    ],
)
def test_configs_that_a_layout_cannot_express(config: ResNetConfig, layout: str, message: str) -> None:
    with torch.device("meta"):
        net = ResNet(config)
    for call in (lambda: net.export_weights(layout), lambda: net.import_weights({"x": torch.ones(1)}, layout)):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_error_names_every_layout_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"torchvision's ResNet .*; timm's ResNetV2 .*; akamaster's ResNet cannot"):
        ResNet(resnet.wide_resnet(10, 1)).import_weights({"x": torch.ones(1)})


def test_saving_and_loading(tmp_path: Path) -> None:
    net = resnet.create_model("resnet20", num_classes=4, in_channels=1, mean=(0.5,), std=(0.2,)).eval()
    net.save_pretrained(tmp_path)
    again = resnet.from_pretrained(tmp_path)
    assert isinstance(again, ResNet)
    assert again.config == net.config
    assert_close(again(images(1)), net(images(1)), rtol=0, atol=0)
    net.reset_classifier(9)
    net.save_pretrained(tmp_path)
    assert ResNet.from_pretrained(tmp_path)(images(1)).shape == (2, 9)


def test_folders_of_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format_version": 1, "model": "unet.UNet"}')
    with pytest.raises(ValueError, match=r"config\.json.*'unet\.UNet'.*resnet\.ResNet"):
        resnet.from_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", resnet.list_models())
def test_saving_and_loading_of_every_model(name: str, tmp_path: Path) -> None:
    net = resnet.create_model(name)
    net.save_pretrained(tmp_path)
    again = resnet.from_pretrained(tmp_path)
    assert type(again) is type(net)
    assert again.config == net.config
    assert_close(dict(again.state_dict()), dict(net.state_dict()), rtol=0, atol=0)
