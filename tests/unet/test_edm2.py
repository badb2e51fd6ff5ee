"""EDM2's U-Net: the published function, counts and names; options, errors, compilers."""

from dataclasses import fields, replace
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.testing import assert_close

import unet
from residual import Residual
from residual.magnitude import MPConv2d, MPLinear, MPSum, normalize_weights
from tests.golden.networks import EDM2_SMALL, state
from unet import EDM2Config, EDM2UNet, UNet, UNetConfig

ROW = "edm2_small_preconditioned"
TINY = EDM2Config(
    size=(8, 8),
    base_channels=16,
    channel_multipliers=(1, 2),
    attention_levels=(1,),
    blocks_per_level=1,
    head_channels=16,
    logvar_channels=8,
)


def filled(config: EDM2Config, seed: int = 0) -> EDM2UNet:
    """A network whose gains are not zero, in eval mode."""
    torch.manual_seed(seed)
    net = EDM2UNet(config)
    for p in net.parameters():
        if p.dim() == 0:
            nn.init.constant_(p, 0.7)
    return net.eval()


def inputs(config: EDM2Config, n: int = 2, size: tuple[int, int] | None = None) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(n, config.in_channels, *(size or config.size), generator=g), torch.randn(n, generator=g)
    return (x, t, torch.randint(0, config.classes, (n,), generator=g)) if config.classes else (x, t)


def test_presets_carry_the_published_training_settings() -> None:
    presets = {name: unet.preset_info(name) for name in unet.list_presets("edm2-*")}
    assert {type(preset.config) for preset in presets.values()} == {EDM2Config}
    dropped = {name for name, preset in presets.items() if preset.config.dropout}
    assert dropped == {name for name in presets if name.endswith(("-m", "l"))}
    assert {preset.config.dropout for preset in presets.values()} == {0.0, 0.1}
    assert {preset.config.classes for preset in presets.values()} == {1000}
    assert {name for name, preset in presets.items() if preset.config.in_channels == 4} == {
        name for name in presets if "512" in name
    }
    assert presets["edm2-img64-s"].source.startswith("Karras et al. 2024")
    with pytest.raises(ValueError, match="preset 'edm2-img64-z'; did you mean edm2-img64-"):
        unet.preset("edm2-img64-z")


def test_build_makes_the_network_of_the_config() -> None:
    assert type(unet.build(TINY)) is EDM2UNet
    assert type(unet.build(UNetConfig(base_channels=16, channel_multipliers=(1, 1)))) is UNet


def test_export_then_import_is_bit_identical() -> None:
    config = replace(TINY, classes=None, blocks_per_level=2, attention_levels=(0,), head_channels=8)
    net, again = filled(config), filled(config, seed=1)
    again.import_weights(net.export_weights("edm2"), layout="edm2")
    assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert not [key for key in net.export_weights("edm2") if "label" in key]


def test_the_rows_of_qkv_are_reordered() -> None:
    """Theirs: head × channel × (q, k, v). Ours: (q, k, v) × head × channel."""
    net, theirs = EDM2UNet(EDM2_SMALL), state(ROW)
    net.import_weights(theirs, layout="edm2")
    rows = theirs["unet.enc.8x8_block1.attn_qkv.weight"]
    assert_close(net.encoder[5].attn.branch.qkv.weight, torch.cat([rows[0::3], rows[1::3], rows[2::3]]))


def test_differences_of_the_weights_are_listed() -> None:
    theirs = state(ROW)
    del theirs["unet.out_gain"]
    theirs["unet.extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"fit this network: 1 missing: unet\.out_gain; 1 unknown: unet\.extra"):
        EDM2UNet(EDM2_SMALL).import_weights(theirs, layout="edm2")
    with pytest.raises(ValueError, match=r"of another shape: .*emb_noise.weight has \(64, 32\), expected \(128, 32\)"):
        EDM2UNet(replace(EDM2_SMALL, channel_multipliers=(1, 2, 4))).import_weights(state(ROW), layout="edm2")


def test_configs_that_the_layout_cannot_express_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot express size=\(8, 16\): it has one img_resolution"):
        EDM2UNet(replace(TINY, size=(8, 16))).export_weights("edm2")
    with pytest.raises(ValueError, match=r"cannot express in_channels=6 with out_channels=3: .* one img_channels"):
        EDM2UNet(replace(TINY, in_channels=6)).import_weights({}, layout="edm2")


def test_a_fresh_network_predicts_zero() -> None:
    x, t = inputs(TINY)
    assert_close(EDM2UNet(TINY)(x, t), torch.zeros_like(x), rtol=0, atol=0)


def test_magnitudes_are_kept_through_a_fresh_network() -> None:
    torch.manual_seed(0)
    config = replace(TINY, base_channels=32, channel_multipliers=(1, 2, 2), blocks_per_level=2, classes=7)
    net, seen = EDM2UNet(config), []
    for block in (*net.encoder, *net.middle.children(), *net.decoder, net.head):
        block.register_forward_hook(lambda _, args, y: seen.append(y.square().mean().sqrt().item()))
    net(*inputs(config, n=8))
    assert len(seen) > 15
    assert all(0.7 < magnitude < 1.3 for magnitude in seen), seen


# One other value for each field; those that keep the weights' shapes must change the function.
CHANGES = {
    "in_channels": 4,
    "out_channels": 1,
    "size": (16, 8),
    "classes": 5,
    "base_channels": 32,
    "channel_multipliers": (1, 3),
    "blocks_per_level": 2,
    "attention_levels": (0,),
    "head_channels": 8,
    "dropout": 0.3,
    "logvar_channels": 16,
    "recompute_levels": (0,),
}


def test_every_field_has_a_change() -> None:
    assert set(CHANGES) == {field.name for field in fields(EDM2Config)}


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"size", "recompute_levels", "dropout"}))
def test_every_field_changes_weights_or_function(name: str) -> None:
    before, after = filled(TINY), filled(replace(TINY, **{name: CHANGES[name]}))
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (before, after)]
    if name == "head_channels":
        assert shapes[0] == shapes[1]
        after.load_state_dict(before.state_dict())
        assert not torch.allclose(before(*inputs(TINY)), after(*inputs(TINY)))
    else:
        assert shapes[0] != shapes[1]


def test_the_size_names_the_published_weights() -> None:
    assert "unet.enc.16x16_conv.weight" in EDM2UNet(replace(TINY, size=(16, 16))).export_weights("edm2")


def test_dropout_acts_in_training_only() -> None:
    net, batch = filled(replace(TINY, dropout=0.3)), inputs(TINY)
    assert_close(net(*batch), filled(TINY)(*batch), rtol=0, atol=0)
    net.train()
    assert not torch.equal(net(*batch), net(*batch))


def test_recomputation_changes_memory_but_no_number() -> None:
    plain, frugal = filled(TINY).train(), filled(replace(TINY, recompute_levels=(0, 1))).train()
    kept = []
    for net in (plain, frugal):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            loss = net(*inputs(TINY)).square().sum()
        kept.append(sum(sizes))
        loss.backward()
    assert kept[1] < kept[0] / 2
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("size", [(8, 8), (16, 4), (2, 6)])
def test_any_size_that_the_levels_can_halve(size: tuple[int, int]) -> None:
    batch = inputs(TINY, size=size)
    assert filled(TINY)(*batch).shape == batch[0].shape


def test_labels_and_no_label() -> None:
    config = replace(TINY, classes=5)
    net, (x, t, label) = filled(config), inputs(config)
    assert config.null_label
    assert not TINY.null_label
    assert not torch.allclose(net(x, t, label), net(x, t, (label + 1) % 5))
    assert not torch.allclose(net(x, t, label), net(x, t))
    assert_close(net(x, t), net(x, t, torch.full((2,), 5)), rtol=0, atol=0)
    assert_close(net(x, t, label), net(x, t, label.int()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="takes no labels"):
        filled(TINY)(x, t, label)
    with pytest.raises(RuntimeError):
        net(x, t, torch.full((2,), 6))


def test_emb_is_added_to_the_embedding() -> None:
    config = replace(TINY, classes=5)
    net, (x, t, label) = filled(config), inputs(config)
    vectors = net.embedding.label(5**0.5 * torch.eye(5))[label] / 2**0.5
    assert vectors.shape == (2, config.emb_channels)
    assert_close(net(x, t, label), net(x, t, emb=vectors), rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_are_independent() -> None:
    net, (x, t) = filled(TINY), inputs(TINY, n=3)
    assert_close(net(x, t)[1:2], net(x[1:2], t[1:2]), rtol=1e-4, atol=1e-5)


def test_the_log_variance_is_a_function_of_the_noise_level_alone() -> None:
    net, t = filled(TINY), torch.tensor([-1.0, 0.0, 0.5])
    head = net.logvar
    features = 2**0.5 * torch.cos(t[:, None] * head.fourier.freqs + head.fourier.phases)
    weight = head.linear.weight[0]
    expected = features @ weight / (1e-4 + weight.square().mean().sqrt()) / 8**0.5
    x = torch.randn(3, 3, 8, 8)
    output, logvar = net(x, t, return_logvar=True)
    assert_close(logvar, expected)
    assert logvar.shape == (3,)
    assert_close(output, net(x, t), rtol=0, atol=0)


def test_every_parameter_receives_a_gradient() -> None:
    config = replace(TINY, classes=5)
    net, batch = filled(config), inputs(config)
    output, u = net(*batch, return_logvar=True)
    (output.square().mean(dim=(1, 2, 3)) / u.exp() + u).sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_normalised_weights_compute_the_same_function() -> None:
    net, batch = filled(TINY), inputs(TINY)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        net(*batch).square().mean().backward()
        optimizer.step()
    before = net(*batch).detach()
    normalize_weights(net)
    assert_close(net(*batch), before, rtol=0, atol=1e-4)  # the epsilon of the normalisation is 1e-4
    for part in net.modules():
        if isinstance(part, (MPConv2d, MPLinear)):
            magnitude = part.weight.square().flatten(1).mean(dim=1).sqrt()
            assert_close(magnitude, torch.ones(len(part.weight)), rtol=0, atol=2e-4)


def test_training_leaves_stored_weights_to_the_optimizer() -> None:
    net = filled(TINY).train()
    before = {name: p.clone() for name, p in net.named_parameters()}
    net(*inputs(TINY)).sum().backward()
    assert_close(dict(net.named_parameters()), before, rtol=0, atol=0)


def test_blocks_are_residuals_with_parts() -> None:
    net = filled(TINY)
    sums = [m for m in net.modules() if isinstance(m, Residual)]
    assert len(sums) == 3 + 2 + 5 + 1 + 1 + 2  # encoder, middle, decoder with its step up; attention in each
    assert {type(m.merge) for m in sums} == {MPSum}
    res, emb = net.encoder[1].res, torch.randn(1, net.config.emb_channels)
    x = torch.randn(1, 16, 8, 8)
    assert_close(res.merge(*res.parts(x, emb)), res(x, emb), rtol=0, atol=0)


def test_activations_are_clipped() -> None:
    net = filled(TINY)
    block, emb = net.encoder[1], torch.randn(1, net.config.emb_channels)
    nn.init.constant_(block.res.branch.modulate.emb_gain, 1e6)
    assert block(torch.randn(1, 16, 8, 8), emb).abs().max().item() == 256


def test_channels_last_is_kept_through_every_convolution() -> None:
    net, seen = filled(TINY).to(memory_format=torch.channels_last), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, args, y: seen.append(
                    all(z.is_contiguous(memory_format=torch.channels_last) for z in (args[0], y))
                )
            )
    x, t = inputs(TINY)
    net(x.contiguous(memory_format=torch.channels_last), t)
    assert len(seen) > 20
    assert all(seen)


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
        ({"classes": 0}, "classes=0 must be at least 1, or left out"),
        ({"channel_multipliers": ()}, r"channel_multipliers=\(\) describes no level"),
        ({"blocks_per_level": (1, 2, 3)}, r"blocks_per_level=\(1, 2, 3\) has 3 entries for 2 levels; give one or 2"),
        ({"head_channels": 64}, "level 1: head_channels=64 does not divide 32 channels; one of: 1, 2, 4, 8, 16, 32"),
        ({"logvar_channels": 0}, "logvar_channels=0 must be at least 1"),
    ],
)
def test_bad_configs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize("multipliers", [(2, 2), (0.5, 1)])
def test_the_first_level_may_have_another_width_than_the_first_convolution(multipliers: tuple[float, ...]) -> None:
    config = replace(TINY, channel_multipliers=multipliers, head_channels=8)
    x, t = inputs(config)
    assert filled(config)(x, t).shape == x.shape


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"size=\(9, 8\): 9x8 px cannot be halved 1 times .* size that can is 8x8"):
        EDM2UNet(replace(TINY, size=(9, 8)))
    with pytest.raises(ValueError, match="7x8 px cannot be halved 1 times"):
        EDM2UNet(TINY)(torch.randn(1, 3, 7, 8), torch.zeros(1))


@pytest.mark.parametrize("config", [TINY, replace(TINY, classes=3)])
def test_compiles_to_one_graph_for_all_noise_levels(config: EDM2Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler would trace the type checks, too
    net, batch = filled(config), inputs(config)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    with torch.no_grad():
        for t in (-1.5, 0.0, 1.1):
            t = torch.full((2,), t)
            assert_close(compiled(batch[0], t, *batch[2:]), net(batch[0], t, *batch[2:]), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("config", [TINY, replace(TINY, classes=3)])
def test_exports_with_any_batch_from_1_to_256(config: EDM2Config) -> None:
    net, batch = filled(config), inputs(config)
    b = torch.export.Dim("b", min=1, max=256)
    program = torch.export.export(net, batch, dynamic_shapes=tuple({0: b} for _ in batch)).module()
    for n in (1, 64, 256):
        batch = inputs(config, n=n)
        with torch.no_grad():
            assert_close(program(*batch), net(*batch), rtol=1e-4, atol=1e-5)


def test_a_saved_network_is_the_same_network(tmp_path: Path) -> None:
    config = replace(TINY, classes=5, blocks_per_level=(1, 2), head_channels=(16, 8))
    net = filled(config)
    net.save_pretrained(tmp_path)
    again = EDM2UNet.from_pretrained(tmp_path)
    assert again.config == config
    assert_close(again(*inputs(config)), net(*inputs(config)), rtol=0, atol=0)
    assert_close(again.logvar(torch.ones(1)), net.logvar(torch.ones(1)), rtol=0, atol=0)
    assert type(unet.from_pretrained(tmp_path)) is EDM2UNet
    with pytest.raises(ValueError, match=r"describes a 'unet\.EDM2UNet', not a unet\.UNet"):
        UNet.from_pretrained(tmp_path)
