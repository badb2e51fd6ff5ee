"""Adapters: a frozen trunk, the old output without them, the formulas, files of their own, bad input."""

import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.testing import assert_close

import resnet
import unet
from residual import Chain, Residual, StridedConv, edsr_branch
from residual.adapters import Adapters, add_adapters
from residual.probes.visit import FixedInputs

DOCS = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
SMALL: dict[str, Any] = {
    "num_classes": 3,
    "in_channels": 1,
    "stem": "conv3",
    "stem_channels": 4,
    "widths": (4, 8),
    "blocks_per_stage": (2, 1),
}


def classifier(**changes: Any) -> nn.Module:
    return resnet.ResNet(resnet.ResNetConfig(**(SMALL | changes)))


def diffusion_network(**changes: Any) -> nn.Module:
    small: dict[str, Any] = {"size": (8, 8), "in_channels": 1, "out_channels": 1, "base_channels": 8, "groups": 4}
    config = unet.UNetConfig(
        **small, channel_multipliers=(1, 1), blocks_per_level=1, attention_levels=(1,), classes=3, **changes
    )
    return FixedInputs(unet.UNet(config), 300.0, torch.tensor([0, 1, 2, 1]))


def edm2_network() -> nn.Module:
    small: dict[str, Any] = {
        "size": (8, 8),
        "in_channels": 1,
        "out_channels": 1,
        "base_channels": 8,
        "head_channels": 8,
    }
    config = unet.EDM2Config(**small, channel_multipliers=(1, 1), blocks_per_level=1, attention_levels=())
    return FixedInputs(unet.EDM2UNet(config), 0.5)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # with the number of convolutions to be adapted
    "resnet": (partial(classifier, shortcut="A"), 6),
    "bottleneck": (partial(classifier, block="bottleneck", groups=2), 3),
    "preact": (partial(classifier, block="preact_basic", recompute_stages=(1,)), 6),
    "highway": (partial(resnet.create_model, "highway19", in_channels=1, widths=(4,), blocks_per_stage=(2,)), 2),
    "densenet": (partial(resnet.create_model, "densenet_bc_100_12", in_channels=1, blocks_per_stage=(1, 1, 1)), 3),
    "unet": (partial(diffusion_network, resample="block", dropout=0.1), 20),
    "edm2": (edm2_network, 20),
}


def built(kind: str) -> nn.Module:
    """The model with random weights, also where weights start at zero."""
    torch.manual_seed(0)
    model = MODELS[kind][0]().eval()
    for p in model.parameters():
        nn.init.normal_(p, mean=0.5 if p.dim() < 2 else 0.0, std=0.5 / (p[0].numel() if p.dim() else 1) ** 0.5)
    return model


def images() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, adapters: Adapters, updates: int = 1) -> None:
    """Some updates in training mode on every parameter that requires a gradient."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(updates):
        model(images()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("kind", ["parallel", "series"])
@pytest.mark.parametrize("name", MODELS)
def test_training_changes_the_adapters_alone(name: str, kind: str) -> None:
    model = built(name)
    before, weights = model(images()), deepcopy(model.state_dict())
    adapters = add_adapters(model, kind)
    assert len(adapters.by_layer) == MODELS[name][1]
    assert torch.equal(model(images()), before)
    train(model, adapters)
    assert not torch.allclose(model(images()), before)
    with adapters.off():
        assert torch.equal(model(images()), before)
    state = model.state_dict()
    assert state.keys() == weights.keys() | adapters.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("kind", ["parallel", "series"])
def test_adapters_are_those_of_the_papers(kind: str) -> None:
    """Parallel: y + A x, beside a convolution with stride and groups. Series: y + A y."""
    conv = nn.Conv2d(4, 6, kernel_size=3, stride=2, padding=1, groups=2)
    model = Residual(Chain(conv=conv), nn.Conv2d(4, 6, kernel_size=1, stride=2))
    x = torch.randn(2, 4, 8, 8)
    y, s = conv(x), model.shortcut(x)
    (adapter,) = add_adapters(model, kind).by_layer.values()
    weight = adapter.get_submodule(kind).weight
    assert weight.shape == (6, 2 if kind == "parallel" else 3, 1, 1)
    nn.init.normal_(weight)
    dense = torch.block_diag(*weight[:, :, 0, 0].chunk(2))
    source = x[:, :, ::2, ::2] if kind == "parallel" else y
    assert_close(model(x), s + y + torch.einsum("oc, bchw -> bohw", dense, source))


def test_further_layers_get_weights_of_their_own() -> None:
    model = diffusion_network().net
    adapters = add_adapters(model, also=("embedding.label", "embedding.linear2"))
    own = adapters.by_layer["embedding.label"].get_submodule("parallel").weight
    assert own.requires_grad
    assert own.shape == model.embedding.label.weight.shape
    nn.init.normal_(own)
    label = torch.tensor([2])
    assert_close(model.embedding.label(label), model.embedding.label.weight[label] + own[label])


def test_a_copy_and_a_file_hold_the_adapters(tmp_path: Path) -> None:
    model = built("preact")
    before = model(images())
    adapters = add_adapters(model, also=("fc",))
    train(model, adapters)
    adapters.save(tmp_path / "new" / "task.safetensors")
    with safe_open(tmp_path / "new" / "task.safetensors", "pt") as file:
        assert {*file.keys()} == {*adapters.state_dict()}
    copied = deepcopy(model)
    with Adapters(copied).off():
        assert torch.equal(copied(images()), before)
        assert not torch.equal(model(images()), before)
    fresh = built("preact")
    add_adapters(fresh, also=("fc",)).load(tmp_path / "new" / "task.safetensors")
    assert torch.equal(fresh(images()), model(images()))


def test_share_and_summary() -> None:
    model = resnet.create_model("resnet20")  # 3×3 convolutions of the branches: 267,264 of 269,722 parameters
    adapters = add_adapters(model)
    assert adapters.share == pytest.approx(267_264 / 9 / 269_722)
    assert str(adapters) == "adapters: 18 parallel, 29,696 parameters, 11.0 % of those of the model"


def strided() -> nn.Module:
    branch = Chain(down=StridedConv(4, 4, padding="end"))
    return Residual(branch, nn.Conv2d(4, 4, kernel_size=1, stride=2))


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "kind": (lambda: add_adapters(built("resnet"), "paralel"), "kind of adapter 'paralel'.*parallel"),
    "no blocks": (lambda: add_adapters(nn.Sequential(nn.Conv2d(1, 1, 3))), "Sequential has no residual blocks"),
    "plain": (lambda: add_adapters(classifier(shortcut="none")), "ResNet has no residual blocks"),
    "1×1 only": (lambda: add_adapters(Residual(nn.Conv2d(4, 4, 1))), "Residual.*1×1"),
    "no convolution": (lambda: add_adapters(Residual(nn.Linear(4, 4))), "Residual.*convolution"),
    "twice": (lambda: [add_adapters(model, "series") for model in [built("resnet")] * 2], "already has adapters"),
    "layer": (lambda: add_adapters(built("resnet"), also=("fd",)), "layer 'fd'"),
    "not linear": (lambda: add_adapters(built("resnet"), also=("levels",)), "'levels' is a ModuleList"),
    "layer twice": (lambda: add_adapters(built("resnet"), also=("fc", "fc")), "'fc' is already adapted"),
    "branch layer": (
        lambda: add_adapters(built("resnet"), also=("levels.1.0.branch.conv1",)),
        "levels.1.0.branch.conv1' is already adapted",
    ),
    "size": (lambda: add_adapters(Residual(nn.Conv2d(4, 4, 3))), "64×65 pixels to 62×63.*series"),
    "padding inside": (lambda: add_adapters(strided()), "branch.down.*32×32.*32×33.*series"),
    "none": (lambda: Adapters(built("resnet")), "ResNet has no adapters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_an_error_leaves_the_model_as_it_is() -> None:
    model = built("resnet")
    with pytest.raises(ValueError, match="'fd'"):
        add_adapters(model, also=("fd",))
    assert all(p.requires_grad for p in model.parameters())
    assert model.state_dict().keys() == built("resnet").state_dict().keys()
    add_adapters(strided(), "series")  # the kind that the message of `parallel` names


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "kind": (lambda path: add_adapters(built("resnet"), "series").save(path), "unknown.*conv1.adapter.series"),
    "model": (lambda path: add_adapters(built("preact")).save(path), "missing"),
    "width": (
        lambda path: add_adapters(classifier(shortcut="A", widths=(4, 6))).save(path),
        r"levels.2.0.branch.conv1.*\(6, 4, 1, 1\), expected \(8, 4",
    ),
    "head": (lambda path: add_adapters(built("resnet"), also=("fc",)).save(path), "unknown: fc.adapter.parallel"),
    "text": (lambda path: path.write_text("weights"), "not a complete safetensors file"),
    "none": (lambda path: None, "no weights at"),
    "pickle": (lambda path: torch.save({}, path), "pickle"),
    "folder": (lambda path: path.mkdir(), "a folder"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_other_adapters_is_refused(case: str, tmp_path: Path) -> None:
    make, message = FILES[case]
    path = tmp_path / "task.safetensors"
    make(path)
    adapters = add_adapters(built("resnet"))
    with pytest.raises(ValueError, match=message) as error:
        adapters.load(path)
    assert "\n" not in str(error.value)
    assert not any(parameter.any() for parameter in adapters.parameters())


def test_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    adapters = add_adapters(built("resnet"))
    nn.init.constant_(next(adapters.parameters()), float("nan"))
    adapters.save(tmp_path / "task.safetensors")
    with pytest.raises(ValueError, match=r"conv1.adapter.parallel.*nan"):
        add_adapters(built("resnet")).load(tmp_path / "task.safetensors")


def test_blocks_outside_the_networks_of_the_project() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Residual(edsr_branch(4)), Residual(edsr_branch(4)))
    x = torch.randn(2, 1, 8, 8)
    before = model(x)
    assert len(add_adapters(model).by_layer) == 4
    assert torch.equal(model(x), before)


def test_the_python_of_the_page_prints_its_comments(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL))
    exec(code, {})
    expected = re.findall(r"^ *print.*# (.*)$", code, re.MULTILINE)
    assert len(expected) == 3
    assert capsys.readouterr().out.splitlines() == expected
