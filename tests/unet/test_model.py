"""The U-Net: options, sizes, memory layouts, compilers."""

from dataclasses import fields, replace

import jaxtyping
import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.testing import assert_close

import unet
from residual import NearestConv, Residual
from unet import UNet, UNetConfig
from unet.embedding import DivideByTime

TINY = UNetConfig(
    size=(8, 8), base_channels=16, channel_multipliers=(1, 2), attention_levels=(1,), groups=4, blocks_per_level=1
)


def filled(config: UNetConfig, seed: int = 0) -> UNet:
    """A network with random weights, also where fresh ones are zero, in eval mode."""
    torch.manual_seed(seed)
    net = UNet(config)
    for p in net.parameters():
        nn.init.normal_(p, std=0.15)
    return net.eval()


def inputs(config: UNetConfig, n: int = 2, size: tuple[int, int] | None = None) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, config.in_channels, *(size or config.size), generator=g)
    t = torch.randint(0, 1000, (n,), generator=g)
    return (x, t, torch.randint(0, config.classes, (n,), generator=g)) if config.classes else (x, t)


def test_a_fresh_network_predicts_zero() -> None:
    x, t = inputs(TINY)
    assert_close(UNet(TINY)(x, t), torch.zeros_like(x), rtol=0, atol=0)


# One other value for each field. `size` only matters to other libraries, see below; `pad` to other sizes: test_pad.py.
CHANGES = {
    "in_channels": 4,
    "out_channels": 1,
    "size": (16, 8),
    "classes": 5,
    "null_label": False,
    "base_channels": 24,
    "channel_multipliers": (1, 1.5),
    "blocks_per_level": 2,
    "attention_levels": (0,),
    "heads": 2,
    "head_channels": 8,
    "conditioning": "scale_shift",
    "resample": "block",
    "dropout": 0.3,
    "groups": 2,
    "group_channels": 16,
    "eps": 0.1,
    "time_embedding": "adm",
    "time_channels": 24,
    "label_embedding": "linear",
    "augment_channels": 9,
    "decoder_attention": "last",
    "residual_scale": 0.7,
    "input_skips": True,
    "pyramid": True,
    "middle": "blocks",
    "init": "xavier",
    "padding": "periodic",
    "pad": True,
    "learned_variance": True,
    "logvar_channels": 8,
    "recompute_levels": (0,),
}


CHANGE_SHAPES = {
    "in_channels",
    "out_channels",
    "classes",
    "base_channels",
    "channel_multipliers",
    "blocks_per_level",
    "attention_levels",
    "conditioning",
    "decoder_attention",
    "resample",
    "time_channels",
    "label_embedding",
    "augment_channels",
    "input_skips",
    "pyramid",
    "middle",
    "learned_variance",
    "logvar_channels",
}
"""fields whose change adds, removes or reshapes weights"""


def test_every_field_has_a_change() -> None:
    assert set(CHANGES) == {field.name for field in fields(UNetConfig)}


NO_FUNCTION = {"size", "pad", "null_label", "recompute_levels", "init", "dropout"}
"""fields without effect on the weights' shapes, and on the output for images of such a size in eval mode"""


@pytest.mark.parametrize("name", sorted(set(CHANGES) - NO_FUNCTION))
def test_every_field_changes_weights_or_function(name: str) -> None:
    base = replace(TINY, classes=5) if name == "label_embedding" else TINY
    before, after = filled(base), filled(replace(base, **{name: CHANGES[name]}))
    shapes = [{key: tensor.shape for key, tensor in net.state_dict().items()} for net in (before, after)]
    assert (shapes[0] != shapes[1]) == (name in CHANGE_SHAPES)
    if name not in CHANGE_SHAPES:
        after.load_state_dict(before.state_dict())
        assert not torch.allclose(before(*inputs(base)), after(*inputs(base)))


def test_the_augmentation_label() -> None:
    net, batch = filled(replace(TINY, augment_channels=9)), inputs(TINY)
    augment = torch.randn(2, 9)
    assert not torch.allclose(net(*batch), net(*batch, augment=augment))
    assert_close(net(*batch), net(*batch, augment=torch.zeros(2, 9)))
    with pytest.raises(ValueError, match="takes no augmentation label"):
        filled(TINY)(*batch, augment=augment)


@pytest.mark.parametrize("kind", ["linear", "linear_first"])
def test_linear_labels_are_rows_of_a_matrix_and_no_label_is_zero(kind: str) -> None:
    config = replace(TINY, classes=4, label_embedding=kind)
    net = filled(config)
    x, t, label = inputs(config)
    assert_close(net(x, t), net(x, t, torch.full((2,), 4)), rtol=0, atol=0)
    row = net.embedding.label(label)
    scale = 2.0 if kind == "linear_first" else 1.0
    bias = net.embedding.label.bias if kind == "linear_first" else 0
    assert_close(row, scale * net.embedding.label.weight.T[label] + bias)


def test_the_size_is_passed_to_diffusers() -> None:
    assert unet.diffusers_config(replace(TINY, size=(16, 8)))["sample_size"] == [16, 8]
    assert unet.diffusers_config(TINY)["sample_size"] == 8


def test_initial_weights() -> None:
    torch_init, xavier = UNet(TINY), UNet(replace(TINY, init="xavier"))
    conv = "encoder.1.res.branch.conv1"
    assert torch_init.get_parameter(f"{conv}.bias").any()
    assert not xavier.get_parameter(f"{conv}.bias").any()
    bound = (6 / (16 * 9 + 16 * 9)) ** 0.5
    assert 0.9 * bound < xavier.get_parameter(f"{conv}.weight").abs().max() <= bound
    for net in (torch_init, xavier):
        for name, parameter in net.named_parameters():
            if "conv2" in name or "attention.out" in name or "head.conv" in name:
                assert not parameter.any(), name


def test_dropout_acts_in_training_only() -> None:
    net, batch = filled(replace(TINY, dropout=0.3)), inputs(TINY)
    assert_close(net(*batch), filled(TINY)(*batch), rtol=0, atol=0)
    net.train()
    assert not torch.equal(net(*batch), net(*batch))


@pytest.mark.parametrize("size", [(8, 8), (16, 4), (2, 6), (10, 22)])
def test_any_size_that_the_levels_can_halve(size: tuple[int, int]) -> None:
    batch = inputs(TINY, size=size)
    assert filled(TINY)(*batch).shape == batch[0].shape


@pytest.mark.parametrize("channels", [(1, 1), (3, 3), (4, 4), (6, 3)])
def test_any_channel_count(channels: tuple[int, int]) -> None:
    config = replace(TINY, in_channels=channels[0], out_channels=channels[1])
    assert filled(config)(*inputs(config)).shape == (2, channels[1], 8, 8)


def test_learned_variance_doubles_the_output() -> None:
    config = replace(TINY, learned_variance=True)
    assert filled(config)(*inputs(config)).shape == (2, 6, 8, 8)


def test_the_log_variance_is_zero_at_first_and_a_function_of_the_time_alone() -> None:
    config = replace(TINY, logvar_channels=8, init="xavier")
    (x, _), t = inputs(config), torch.tensor([3.0, 700.0])
    assert_close(UNet(config)(x, t, return_logvar=True)[1], torch.zeros(2), rtol=0, atol=0)
    net, plain = filled(config), filled(TINY)
    output, logvar = net(x, t, return_logvar=True)
    angles = t[:, None] * 10_000 ** -(torch.arange(4) / 3)
    assert_close(logvar, torch.cat([angles.sin(), angles.cos()], dim=1) @ net.logvar.linear.weight[0])
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("logvar.")})
    assert_close(output, plain(x, t), rtol=0, atol=0)
    assert_close(output, net(x, t), rtol=0, atol=0)
    with pytest.raises(ValueError, match="logvar_channels"):
        plain(x, t, return_logvar=True)


@pytest.mark.parametrize("value", [7, 2, 0])
def test_features_of_the_log_variance_come_in_pairs(value: int) -> None:
    with pytest.raises(ValueError, match=f"logvar_channels={value}"):
        replace(TINY, logvar_channels=value)


def test_labels_and_the_null_label() -> None:
    config = replace(TINY, classes=5)
    net, (x, t, label) = filled(config), inputs(config)
    assert not torch.allclose(net(x, t, label), net(x, t, (label + 1) % 5))
    assert_close(net(x, t), net(x, t, torch.full((2,), 5)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="built without a null label: it needs a label for each image"):
        filled(replace(config, null_label=False))(x, t)
    with pytest.raises(ValueError, match="takes no labels"):
        filled(TINY)(x, t, label)


def test_emb_is_added_to_the_embedding() -> None:
    config = replace(TINY, classes=5)
    net, (x, t, label) = filled(config), inputs(config)
    rows = net.embedding.label.weight
    assert_close(net(x, t, label), net(x, t, emb=rows[label] - rows[5]), rtol=1e-4, atol=1e-5)


def test_the_output_is_divided_by_the_time_with_log_fourier_features() -> None:
    config = replace(TINY, time_embedding="log_fourier")
    net, (x, t) = filled(config), inputs(config)
    assert isinstance(net.divide, DivideByTime)
    undivided = {}
    net.head.register_forward_hook(lambda _, args, y: undivided.update(y=y))
    found = net(x, t)
    assert_close(found, undivided["y"] / t[:, None, None, None], rtol=0, atol=0)


def test_images_of_a_batch_are_independent() -> None:
    net, (x, t) = filled(TINY), inputs(TINY, n=3)
    assert_close(net(x, t)[1:2], net(x[1:2], t[1:2]), rtol=1e-4, atol=1e-5)


def test_every_parameter_receives_a_gradient() -> None:
    config = replace(TINY, classes=5, conditioning="scale_shift", resample="block", logvar_channels=8)
    net = filled(config)
    output, logvar = net(*inputs(config), return_logvar=True)
    (output.square().sum() + logvar.sum()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_recomputation_changes_memory_but_no_number() -> None:
    plain = filled(replace(TINY, dropout=0.2)).train()
    frugal = filled(replace(TINY, dropout=0.2, recompute_levels=(0, 1))).train()
    kept = []
    for net in (plain, frugal):
        sizes: list[int] = []
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            loss = net(*inputs(TINY)).square().sum()
        kept.append(sum(sizes))
        loss.backward()
    assert kept[1] < kept[0] / 2
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=0, atol=0, msg=name)


def test_blocks_are_residuals_with_parts() -> None:
    net = filled(TINY)
    res = net.encoder[1].res
    x, emb = torch.randn(1, 16, 8, 8), torch.randn(1, 64)
    assert isinstance(res, Residual)
    assert_close(sum(res.parts(x, emb)), res(x, emb), rtol=0, atol=0)


@pytest.mark.parametrize("resample", ["conv", "conv_same", "block"])
def test_channels_last_is_kept_through_every_convolution(resample: str) -> None:
    config = replace(TINY, resample=resample)
    net = filled(config).to(memory_format=torch.channels_last)
    seen = []

    def look(module: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
        seen.append(all(y.is_contiguous(memory_format=torch.channels_last) for y in (args[0], out)))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    x, t = inputs(config)
    net(x.contiguous(memory_format=torch.channels_last), t)
    assert len(seen) > 20
    assert all(seen)


def test_per_level_settings() -> None:
    config = replace(
        TINY,
        channel_multipliers=(1, 2, 2),
        blocks_per_level=(1, 2, 1),
        resample=("conv", "block", "conv"),
        heads=(1, 2, 4),
    )
    config = replace(config, attention_levels=(1, 2))
    assert [level.heads for level in config.skeleton.levels] == [1, 2, 4]
    net = filled(config)
    assert len(net.encoder) == 1 + (1 + 2 + 1) + 2
    assert len(net.decoder) == len(net.encoder)
    ups = [chain.up for chain in net.decoder if hasattr(chain, "up")]
    assert [type(up) for up in ups] == [Residual, NearestConv]  # each level goes up as it went down
    assert net(*inputs(config)).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attention_levels": (2,)},
            r"attention_levels=\(2,\) names level 2, but channel_multipliers=\(1, 2\) make levels 0 to 1",
        ),
        ({"recompute_levels": (-1,)}, r"recompute_levels=\(-1,\) names level -1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"base_channels": 0}, "base_channels=0 must be at least 1"),
        ({"base_channels": 15}, "base_channels=15 must be even and at least 4"),
        ({"in_channels": 0}, "in_channels=0 must be at least 1"),
        ({"classes": 0}, "classes=0 must be at least 1, or left out"),
        ({"channel_multipliers": ()}, r"channel_multipliers=\(\) describes no level"),
        ({"channel_multipliers": (1, 0.3)}, r"0.3 x 16 channels is not a whole width"),
        ({"blocks_per_level": 0}, "blocks_per_level=0 must be at least 1 per level"),
        (
            {"blocks_per_level": (1, 100_000)},
            r"blocks_per_level=\(1, 100000\) must be at least 1 per level, and at most 1000",
        ),
        ({"blocks_per_level": (1, 2, 3)}, r"blocks_per_level=\(1, 2, 3\) has 3 entries for 2 levels; give one or 2"),
        ({"eps": 0.0}, "eps=0.0 must be positive and finite"),
        ({"eps": float("nan")}, "eps=nan must be positive and finite"),
        ({"residual_scale": float("inf")}, "residual_scale=inf must be positive and finite"),
        ({"heads": 5}, "level 1: heads=5 does not divide 32 channels; one of: 1, 2, 4, 8, 16, 32"),
        ({"heads": 2, "head_channels": 8}, "level 1: give heads or head_channels, not both"),
    ],
)
def test_bad_configs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"size=\(9, 8\): 9x8 px cannot be halved 1 times .* size that can is 8x8"):
        UNet(replace(TINY, size=(9, 8)))
    with pytest.raises(ValueError, match=r"size=\(0, 8\)"):
        UNet(replace(TINY, size=(0, 8)))
    with pytest.raises(ValueError, match="7x8 px cannot be halved 1 times"):
        UNet(TINY)(torch.randn(1, 3, 7, 8), torch.zeros(1))


COMPILED = [
    TINY,
    replace(TINY, resample="block", conditioning="scale_shift", classes=3),
    replace(
        TINY,
        resample="block_fir",
        input_skips=True,
        time_embedding="fourier",
        label_embedding="linear_first",
        classes=3,
    ),
]


@pytest.mark.parametrize("config", COMPILED)
def test_compiles_to_one_graph_for_all_timesteps(config: UNetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler would trace the type checks, too
    net, batch = filled(config), inputs(config)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    with torch.no_grad():
        for t in (0, 1, 500, 999):
            t = torch.full((2,), t)
            assert_close(compiled(batch[0], t, *batch[2:]), net(batch[0], t, *batch[2:]), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("config", COMPILED)
def test_exports_with_any_batch_from_1_to_256(config: UNetConfig) -> None:
    net, batch = filled(config), inputs(config)
    b = torch.export.Dim("b", min=1, max=256)
    program = torch.export.export(net, batch, dynamic_shapes=tuple({0: b} for _ in batch)).module()
    for n in (1, 64, 256):
        batch = inputs(config, n=n)
        with torch.no_grad():
            assert_close(program(*batch), net(*batch), rtol=1e-4, atol=1e-5)


def test_a_saved_network_is_the_same_network(tmp_path) -> None:
    config = replace(TINY, classes=5, channel_multipliers=(1, 1.5), heads=(1, 2))
    net = filled(config)
    net.save_pretrained(tmp_path)
    again = UNet.from_pretrained(tmp_path)
    assert again.config == config
    assert_close(again(*inputs(config)), net(*inputs(config)), rtol=0, atol=0)
