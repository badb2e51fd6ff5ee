"""The feature pyramid: published counts, names and sums."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from residual.count import parameters
from resnet import FPN, create_model
from tests.golden.fill import fill


def published(pyramid: FPN) -> dict[str, Tensor]:
    """Reproducible weights under torchvision's names."""
    return {name: fill(name, tuple(t.shape)) for name, t in pyramid.export_weights("torchvision").items()}


def plain_pyramid(levels: list[Tensor], state: dict[str, Tensor]) -> list[Tensor]:
    """Lin et al. 2017, section 3, with the weights of torchvision's `FeaturePyramidNetwork`."""

    def conv(kind: str, i: int, x: Tensor, padding: int) -> Tensor:
        name = f"fpn.{kind}_blocks.{i}.0"
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    sums = [conv("inner", len(levels) - 1, levels[-1], 0)]
    for i in reversed(range(len(levels) - 1)):
        lateral = conv("inner", i, levels[i], 0)
        sums.insert(0, lateral + F.interpolate(sums[0], size=lateral.shape[-2:], mode="nearest"))
    maps = [conv("layer", i, x, 1) for i, x in enumerate(sums)]
    return [*maps, maps[-1][:, :, ::2, ::2]]


@pytest.mark.parametrize(("name", "count"), [("resnet50", 3_344_384), ("resnet18", 2_607_104)])
def test_published_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        pyramid = FPN(create_model(name))
    assert parameters(pyramid.lateral) + parameters(pyramid.smooth) == count
    assert parameters(pyramid) == count + parameters(pyramid.body)
    assert pyramid.feature_info == [(256, 4), (256, 8), (256, 16), (256, 32), (256, 64)]


@pytest.mark.parametrize("size", [(64, 64), (75, 90)])
def test_the_published_pyramid(size: tuple[int, int]) -> None:
    backbone = create_model("resnet18")
    pyramid = FPN(backbone, channels=32).eval()
    state = published(pyramid)
    assert pyramid.import_weights(state) == []
    assert_close(pyramid.export_weights("torchvision"), state, rtol=0, atol=0)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        levels = backbone.eval().forward_features(x, levels=(1, 2, 3, 4))
        for found, expected in zip(pyramid(x), plain_pyramid(levels, state), strict=True):
            assert_close(found, expected, rtol=0, atol=2e-5 * expected.std().item())
        shapes = [tuple(m.shape) for m in pyramid(x)]
    assert [c for _, c, _, _ in shapes] == [32] * 5
    assert [-(-side // stride) for side in size for _, stride in pyramid.feature_info] == [
        shape[axis] for axis in (2, 3) for shape in shapes
    ]


def test_names_are_those_of_torchvision() -> None:
    names = FPN(create_model("resnet18", norm="frozen")).export_weights("torchvision").keys()
    assert {"body.conv1.weight", "body.layer4.1.bn2.running_var", "body.layer2.0.downsample.0.weight"} <= names
    assert [name for name in names if name.startswith("fpn.")] == [
        f"fpn.{kind}_blocks.{i}.0.{leaf}"
        for i in range(4)
        for kind in ("inner", "layer")
        for leaf in ("weight", "bias")
    ]
    assert not any(name.startswith("body.fc") or name.endswith("num_batches_tracked") for name in names)


def test_a_detector_of_an_older_version_is_read() -> None:
    pyramid = FPN(create_model("resnet18", norm="frozen"), channels=8)
    state = published(pyramid)
    old = {f"backbone.{name.replace('.0.weight', '.weight').replace('.0.bias', '.bias') if 'fpn' in name else name}": t
           for name, t in state.items()}  # fmt: skip
    assert "backbone.fpn.inner_blocks.3.weight" in old
    old |= {"rpn.head.conv.weight": torch.ones(1), "roi_heads.box_head.fc6.bias": torch.ones(1)}
    [message] = pyramid.import_weights(old)
    assert re.match("rpn, roi_heads: .*2 tensors", message)
    assert_close(pyramid.export_weights("torchvision"), state, rtol=0, atol=0)


def test_frozen_weights_fit_a_backbone_that_counts_batches() -> None:
    state = published(FPN(create_model("resnet18", norm="frozen"), channels=8))
    pyramid = FPN(create_model("resnet18"), channels=8)
    assert pyramid.import_weights(state) == []
    assert pyramid.export_weights("torchvision")["body.bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize("name", ["densenet_40_12", "resnet20", "preact_resnet110", "highway19"])
def test_any_classifier_can_be_the_backbone(name: str) -> None:
    """The backbone is shared, not copied, and every parameter of the pyramid gets a gradient."""
    backbone = create_model(name)
    pyramid = FPN(backbone, channels=8)
    maps = pyramid(torch.randn(2, 3, 32, 32))
    assert [32 // m.shape[-1] for m in maps] == [stride for _, stride in pyramid.feature_info]
    torch.stack([m.square().mean() for m in maps]).sum().backward()
    assert all(p.grad is not None for p in pyramid.parameters())
    assert backbone.levels is pyramid.body
    assert backbone.fc.weight.grad is None


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="channels=0"):
        FPN(create_model("resnet20"), channels=0)
    noisy = create_model("resnet20", norm="group", noise=True)
    with pytest.raises(ValueError, match="noise"):
        FPN(noisy)
    with pytest.raises(ValueError, match="torchvision's ResNet cannot express"):
        FPN(create_model("resnet20")).export_weights("torchvision")
    with pytest.raises(ValueError, match="layout 'timm'"):
        FPN(create_model("resnet18")).export_weights("timm")
    pyramid = FPN(create_model("resnet18"), channels=8)
    state = published(pyramid)
    del state["fpn.layer_blocks.2.0.bias"]
    with pytest.raises(ValueError, match=r"1 missing: fpn\.layer_blocks\.2\.0\.bias"):
        pyramid.import_weights(state)


def test_images_that_do_not_fit_are_refused() -> None:
    pyramid = FPN(create_model("resnet18"), channels=8)
    with pytest.raises(ValueError, match=r"1 channels.* 3"):
        pyramid(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"16x64 px.* 32 px"):
        pyramid(torch.zeros(1, 3, 16, 64))
