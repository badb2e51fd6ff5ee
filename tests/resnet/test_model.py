"""ResNet: config fields, features, conditioning, recomputation, compilers, invalid input."""

import copy
from dataclasses import fields, replace
from typing import Any

import jaxtyping
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.testing import assert_close

import resnet
import unet
from residual import Chain, FrozenBatchNorm2d, NormAct, Residual
from resnet import ResNet, ResNetConfig, cifar_resnet
from resnet.checks import check_images
from tests.golden.fill import fill

TINY = ResNetConfig(
    num_classes=5, block="bottleneck", blocks_per_stage=(1, 2), widths=(8, 16), stem="conv3", stem_channels=8
)
# The smallest of each family. The others are slow.
FAMILIES = [
    "resnet18",
    "resnet18d",
    "seresnet18",
    "resnest14d",
    "resnetv2_50",
    "resnet50_gn",
    "resnext50_32x4d",
    "resnet20",
    "plain20",
    "preact_resnet110",
    "wrn_16_4",
    "densenet121",
    "densenet_bc_100_12",
    "highway19",
]
CLASSIFIERS = [name for name in resnet.list_models() if not name.startswith("edsr")]


def filled(net: ResNet, salt: str = "") -> ResNet:
    """The network in eval mode with nonzero weights that depend on their names."""
    net.load_state_dict({key: fill(key, tuple(tensor.shape), salt) for key, tensor in net.state_dict().items()})
    return net.eval()


def tiny(**changes: Any) -> ResNet:
    return filled(ResNet(replace(TINY, **changes)))


def images(n: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


# One other value for each field, and other fields that it needs. Each changes shapes or outputs.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_classes": (7, {}),
    "in_channels": (4, {}),
    "block": ("split_attention", {}),
    "blocks_per_stage": ((2, 2), {}),
    "widths": ((8, 24), {}),
    "groups": (2, {}),
    "group_width": (128, {}),
    "stem": ("conv7", {}),
    "stem_channels": (16, {}),
    "shortcut": ("D", {}),
    "stride_in": ("1x1", {}),
    "se_reduction": (4, {}),
    "norm": ("group", {}),
    "act": ("silu", {}),
    "noise": (True, {"norm": "group"}),
}
# These act in training, on fresh weights or outside the network, and have tests of their own.
OTHERS = {"dropout", "zero_init", "recompute_stages", "mean", "std"}


def test_every_field_has_a_change() -> None:
    assert {field.name for field in fields(ResNetConfig)} == set(CHANGES) | OTHERS


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_network(name: str) -> None:
    value, beside = CHANGES[name]
    before, after = tiny(**beside), tiny(**{name: value} | beside)
    shapes = [{key: tensor.shape for key, tensor in net.state_dict().items()} for net in (before, after)]
    assert shapes[0] != shapes[1] or not torch.allclose(before(images()), after(images()), atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_and_independent_images(name: str) -> None:
    check(name, min(64, resnet.model_info(name).size_px))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_and_independent_images_at_the_published_size(name: str) -> None:
    check(name, resnet.model_info(name).size_px)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in FAMILIES])
def test_gradients_and_independent_images_of_all(name: str) -> None:
    check(name, resnet.model_info(name).size_px)


def check(name: str, size: int) -> None:
    """Finite gradients everywhere, deterministic outputs, independent images."""
    net = resnet.create_model(name, num_classes=3)
    filled(net).train()(images(2, size=size)).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key
    net.eval()
    x = images(2, size=size)
    with torch.no_grad():
        logits = net(x)
        assert_close(net(x), logits, rtol=0, atol=0)
        x[1:] = 0
        assert_close(net(x)[:1], logits[:1], rtol=1e-4, atol=1e-5 * logits.std().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_info_matches_the_levels(name: str) -> None:
    with torch.device("meta"):
        net = resnet.create_model(name).eval()
        x = torch.empty(2, 3, 64, 64)
    levels = range(len(net.feature_info))
    maps = net.forward_features(x, levels)
    assert [(m.shape[1], 64 // m.shape[2]) for m in maps] == net.feature_info
    assert net.num_features == net.feature_info[-1][0] == net.get_classifier().in_features


def test_the_levels_of_a_resnet50() -> None:
    with torch.device("meta"):
        assert resnet.create_model("resnet50").feature_info == [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)]


@pytest.mark.parametrize("block", ["basic", "preact_basic"])
def test_the_classifier_takes_the_mean_of_the_features(block: str) -> None:
    net, x = tiny(block=block), images()
    last = net.forward_features(x)
    assert_close(net(x), net.get_classifier()(last.mean(dim=(2, 3))), rtol=0, atol=0)
    first, again = net.forward_features(x, levels=(2, 1))[1], net.forward_features(x, [1])[0]
    assert_close(net.forward_features(x, (2,))[0], last, rtol=0, atol=0)
    assert_close(first, again, rtol=0, atol=0)
    assert net.forward_features(x, ()) == []


def test_levels_after_the_last_requested_are_not_computed() -> None:
    net = tiny()
    net.levels[2] = nn.Identity()  # which would refuse the embedding
    assert len(net.forward_features(images(), (0, 1))) == 2


def test_the_classifier_is_replaced() -> None:
    net, x = tiny(), images()
    before = net.forward_features(x)
    net.reset_classifier(9)
    assert net.config.num_classes == 9
    assert net(x).shape == (2, 9)
    assert_close(net.forward_features(x), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="num_classes=0"):
        net.reset_classifier(0)


def test_a_plain_network_is_a_chain_of_branches() -> None:
    net, x = filled(ResNet(cifar_resnet(8, shortcut="none"))), images(size=32)
    h = net.levels[0](x)
    for level in list(net.levels)[1:]:
        for block in level.children():
            assert isinstance(block, Chain)
            h = block.branch(h).relu()
    assert_close(net.forward_features(x), h, rtol=0, atol=0)
    assert not any(isinstance(module, Residual) for module in net.modules())
    twin = ResNet(cifar_resnet(8, shortcut="A"))
    assert twin.state_dict().keys() == net.state_dict().keys()


def test_the_blocks_of_u_net_and_zoo_are_of_the_same_class() -> None:
    with torch.device("meta"):
        nets = unet.build(unet.preset("ddpm-cifar10")), resnet.create_model("resnet50")
    found = [{type(module) for module in net.modules() if hasattr(module, "parts")} for net in nets]
    assert found == [{Residual}, {Residual}]


@pytest.mark.parametrize("block", ["basic", "bottleneck", "split_attention", "preact_basic", "preact_bottleneck"])
def test_with_zero_init_a_fresh_block_is_its_shortcut(block: Any) -> None:
    net, x = ResNet(replace(TINY, block=block, blocks_per_stage=(2, 2), zero_init=True)), images()
    h = net.forward_features(x, (0,))[0]
    for module in net.levels[1].children():
        module.eval()
        sums = [part for part in module.modules() if isinstance(part, Residual)]
        assert len(sums) == 1
        s = sums[0].shortcut(module.act1(module.norm1(h)) if hasattr(module, "norm1") else h)
        assert_close(module(h), s if net.config.preact else s.relu(), rtol=0, atol=0)
        h = module(h)
    without = ResNet(replace(TINY, block=block))
    assert all(p.abs().sum() > 0 for key, p in without.named_parameters() if key.endswith("weight"))


def test_convolutions_have_the_variance_of_he_initialisation() -> None:
    torch.manual_seed(0)
    weight = resnet.create_model("resnet18").levels[4].get_submodule("0.branch.conv1").weight
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


def test_dropout_is_before_the_second_convolution() -> None:
    net = ResNet(resnet.wide_resnet(10, 1, dropout=0.3))
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.3] * 3
    assert list(dict(net.levels[1].get_submodule("0.branch").named_children()))[-2:] == ["dropout", "conv2"]


def test_norms_and_activations_are_those_of_the_config() -> None:
    kinds = {"batch": nn.BatchNorm2d, "group": NormAct, "frozen": FrozenBatchNorm2d}
    for norm, kind in kinds.items():
        found = {type(m) for key, m in tiny(norm=norm).named_modules() if key.split(".")[-1].startswith("bn")}
        assert found == {kind}
    for act, acts in {"relu": nn.ReLU, "silu": nn.SiLU}.items():
        assert {type(m) for key, m in tiny(act=act).named_modules() if key.split(".")[-1].startswith("act")} == {acts}


def test_frozen_norms_do_not_change_in_training() -> None:
    net, x = tiny(norm="frozen"), images()
    before = copy.deepcopy(net.state_dict())
    assert_close(net.train()(x), net.eval()(x), rtol=0, atol=0)
    assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    assert not [key for key, _ in net.named_parameters() if "bn" in key or "norm" in key]


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
def test_a_noise_level_scales_and_shifts_the_second_norm(block: Any) -> None:
    net, x = tiny(block=block, norm="group", act="silu", noise=True), images()
    projections = [key for key, module in net.named_modules() if key.endswith("project")]
    assert len(projections) == 3
    assert {key.split(".")[-2] for key in projections} == {"norm2" if "preact" in block else "bn2"}
    t = torch.tensor([1.0, 500.0])
    logits = net(x, t)
    assert_close(net(x[:1], t[:1]), logits[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x, t.flip(0)), logits, atol=1e-3)
    assert_close(net.forward_features(x, t=t).mean(dim=(2, 3)) @ net.fc.weight.T + net.fc.bias, logits)
    gradient = torch.autograd.grad(logits.log_softmax(dim=1)[:, 0].sum(), net.levels[0].conv1.weight)[0]
    assert gradient.abs().sum() > 0


def test_recomputing_stages_changes_no_bit() -> None:
    def step(stages: tuple[int, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        net = tiny(recompute_stages=stages, blocks_per_stage=(2, 3)).train()
        torch.manual_seed(0)
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net(images(4)).square().sum()
        loss.backward()
        return {key: p.grad for key, p in net.named_parameters() if p.grad is not None}, dict(net.named_buffers()), kept

    gradients, buffers, kept = step(())
    again, buffers_again, kept_again = step((1, 2))
    assert_close(again, gradients, rtol=0, atol=0)
    assert_close(buffers_again, buffers, rtol=0, atol=0)
    assert buffers["levels.1.0.branch.bn1.num_batches_tracked"] == 1
    assert kept_again < kept / 3
    assert kept_again < step((2,))[2] < kept


def compiled_once(net: ResNet, x: Tensor) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    with torch.no_grad():
        assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def exported_for_any_batch(net: ResNet, x: Tensor) -> None:
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("b", min=1, max=256)},)).module()
    with torch.no_grad():
        for n in (1, 5, 256) if x[0].numel() < 1000 else (1, 5):
            more = torch.randn(n, *x.shape[1:])
            assert_close(program(more), net(more), rtol=1e-4, atol=1e-4)


BLOCKS = [
    {"block": "basic", "shortcut": "A"},
    {"block": "bottleneck", "groups": 2, "se_reduction": 4},
    {"block": "split_attention", "shortcut": "D"},
    {"block": "preact_bottleneck"},
    {"block": "preact_basic", "norm": "group"},
]


@pytest.mark.parametrize("changes", BLOCKS)
def test_every_block_compiles_to_one_graph_and_exports(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # otherwise the compiler traces the type checks
    compiled_once(tiny(**changes), images())
    exported_for_any_batch(tiny(**changes), images())


@pytest.mark.parametrize("changes", BLOCKS)
def test_every_module_is_called_once_and_overwrites_nothing(changes: dict[str, Any]) -> None:
    """Needed for attributions by hooks and for `torch.func`."""
    net, x, calls = tiny(**changes), images(), list[str]()
    for name, module in net.named_modules():

        def call(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            calls.append(name)
            versions[name] = [(t, t._version) for t in (*inputs, output) if isinstance(t, Tensor)]

        module.register_forward_hook(call)
    versions: dict[str, list[tuple[Tensor, int]]] = {}
    net(x)
    assert len(calls) == len(set(calls))
    assert all(tensor._version == version for seen in versions.values() for tensor, version in seen)
    for module in net.modules():
        module._forward_hooks.clear()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda image: net(image[None])[0]))(x)
    assert jacobian.shape == (2, 5, *x.shape[1:])
    (gradient,) = torch.autograd.grad(net(y := x.clone().requires_grad_())[1, 3], y)
    assert_close(jacobian[1, 3], gradient[1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family_compiles_to_one_graph_and_exports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    net, x = resnet.create_model(name).eval(), images(size=min(64, resnet.model_info(name).size_px))
    compiled_once(net, x)
    exported_for_any_batch(net, x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks_per_stage": (1,)}, r"blocks_per_stage=\(1,\) and widths=\(8, 16\)"),
        ({"blocks_per_stage": (), "widths": ()}, r"blocks_per_stage=\(\) and widths=\(\)"),
        ({"blocks_per_stage": (1, 0)}, r"blocks_per_stage=\(1, 0\)"),
        ({"widths": (8, 0)}, r"widths=\(8, 0\)"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"in_channels": -1}, "in_channels=-1"),
        ({"se_reduction": 0}, "se_reduction=0"),
        ({"block": "preact_basic", "dropout": -0.1}, "dropout=-0.1"),
        ({"dropout": 0.1}, "dropout=0.1 .*preact_basic.*bottleneck"),
        ({"block": "basic", "groups": 2}, "groups=2 .*bottleneck.*basic"),
        ({"block": "basic", "group_width": 4}, "group_width=4 .*bottleneck.*basic"),
        ({"block": "basic", "stride_in": "1x1"}, "stride_in='1x1' .*bottleneck or preact_bottleneck.*basic"),
        ({"group_width": 4}, "group_width=4 .* 8"),
        ({"stem": "deep", "stem_channels": 1}, "stem_channels=1 .* 2 .*deep"),
        ({"noise": True}, "noise=True .*norm='group'"),
        ({"block": "split_attention", "norm": "group", "noise": True}, "noise=True .*split_attention"),
        ({"shortcut": "none", "zero_init": True}, "zero_init=True .*shortcut='none'"),
        ({"recompute_stages": (0,)}, r"recompute_stages=\(0,\).* 1 to 2"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\) .* 3 channels"),
        ({"std": (1.0, 1.0, 0.0)}, r"std=\(1.0, 1.0, 0.0\) .*positive"),
    ],
)
def test_invalid_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        replace(TINY, **changes)
    assert "\n" not in str(error.value)


def test_images_need_a_batch_axis() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        check_images(torch.zeros(3, 8, 8), 3, 1)


def test_invalid_inputs_are_refused() -> None:
    net = resnet.create_model("resnet18", num_classes=2).eval()
    with pytest.raises(ValueError, match=r"1 channels.* 3 .*in_channels"):
        net(images(channels=1, size=64))
    with pytest.raises(ValueError, match=r"64x31 px.* 32 px"):
        net(images(size=64)[:, :, :, :31])
    assert net(images(size=33)).shape == net(images(size=32)).shape == (2, 2)
    with pytest.raises(ValueError, match=r"levels=\[0, 5\].* 5.* 0 to 4"):
        net.forward_features(images(size=32), [0, 5])
    with pytest.raises(ValueError, match=r"timestep.*noise=False"):
        net(images(size=32), torch.zeros(2))
    with pytest.raises(ValueError, match=r"noise=True.*timestep"):
        tiny(norm="group", noise=True)(images())
