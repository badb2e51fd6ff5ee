"""Adapting weights to other image channels, labels and augmentation labels: outputs agree where they must."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from residual.weights.keymap import check_state
from unet import EDM2Config, UNet, UNetConfig
from unet.adapt import adapt_weights

SMALL = UNetConfig(
    size=(8, 8), base_channels=16, channel_multipliers=(1, 2), attention_levels=(1,), blocks_per_level=1, groups=8
)
SONG = replace(
    SMALL,
    resample="block_fir",
    input_skips=True,
    time_embedding="fourier",
    label_embedding="linear_first",
    decoder_attention="last",
    residual_scale=0.5**0.5,
)
LINEAR = replace(SMALL, label_embedding="linear", resample="block", conditioning="scale_shift")


def trained(config: UNetConfig) -> UNet:
    """A network whose weights are zero nowhere."""
    net = UNet(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return net


def adapted(net: UNet, **changes: object) -> tuple[UNet, list[str]]:
    config = replace(net.config, **changes)  # type: ignore[arg-type]
    weights, messages = adapt_weights(net.state_dict(), net.config, config)
    other = UNet(config).eval()
    check_state(weights, other.state_dict())
    other.load_state_dict(weights)
    return other, messages


def output(net: UNet, x: Tensor, label: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return net(x, torch.tensor([3, 700]), label)


def grey() -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def same(found: Tensor, expected: Tensor) -> None:
    assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("config", [SMALL, SONG, replace(SMALL, learned_variance=True)])
def test_fewer_image_channels_give_the_output_for_a_repeated_grey_image(config: UNetConfig) -> None:
    net = trained(config)
    other, messages = adapted(net, in_channels=1, out_channels=1)
    was = output(net, grey().repeat(1, 3, 1, 1)).unflatten(1, (1 + config.learned_variance, 3)).mean(dim=2)
    same(output(other, grey()), was)
    assert messages == [
        "input: 3 channels in the source, 1 here; summed",
        "output: 3 channels in the source, 1 here; averaged",
    ]


@pytest.mark.parametrize("config", [SMALL, SONG])
def test_more_image_channels_give_a_repeated_grey_image_its_old_output(config: UNetConfig) -> None:
    net = trained(replace(config, in_channels=1, out_channels=1))
    other, messages = adapted(net, in_channels=3, out_channels=3)
    same(output(other, grey().repeat(1, 3, 1, 1)), output(net, grey()).repeat(1, 3, 1, 1))
    assert [line.partition(" here; ")[2] for line in messages] == ["shared", "repeated"]


def test_the_learned_variance_is_dropped() -> None:
    net = trained(replace(SMALL, learned_variance=True))
    other, messages = adapted(net, learned_variance=False)
    x = grey().repeat(1, 3, 1, 1)
    same(output(other, x), output(net, x)[:, :3])
    assert messages == ["output: the learned variance is dropped"]


def test_a_new_learned_variance_is_the_middle_of_its_range() -> None:
    net = trained(SMALL)
    other, messages = adapted(net, learned_variance=True)
    x = grey().repeat(1, 3, 1, 1)
    same(output(other, x), torch.cat([output(net, x), torch.zeros_like(x)], dim=1))
    assert messages == ["output: the weights of the learned variance start at zero"]


@pytest.mark.parametrize(("source", "target"), [(None, 8), (8, None), (8, 4)])
def test_the_log_variance_of_the_loss_is_dropped_or_starts_at_zero(source: int | None, target: int | None) -> None:
    net = trained(replace(SMALL, logvar_channels=source))
    other, messages = adapted(net, logvar_channels=target)
    x = grey().repeat(1, 3, 1, 1)
    same(output(other, x), output(net, x))
    if target is not None:
        assert_close(other(x, 5, return_logvar=True)[1], torch.zeros(2), rtol=0, atol=0)
    assert len(messages) == (source is not None) + (target is not None)
    assert all("log-variance" in text for text in messages)


@pytest.mark.parametrize("config", [SMALL, SONG, LINEAR])
@pytest.mark.parametrize(("source", "target"), [(3, 5), (5, 3)])
def test_labels_that_both_have_keep_their_meaning(config: UNetConfig, source: int, target: int) -> None:
    net = trained(replace(config, classes=source))
    other, messages = adapted(net, classes=target)
    x, label = grey().repeat(1, 3, 1, 1), torch.tensor([0, 2])
    same(output(other, x, label), output(net, x, label))
    same(output(other, x), output(net, x))  # “no label”
    rest = ", numbers 3 to 4 start at the mean of the source's" if target == 5 else ""
    assert messages == [f"labels: {source} in the source, {target} here; the first 3 are kept by number{rest}"]


def test_new_labels_start_at_the_mean() -> None:
    net = trained(replace(SMALL, classes=2, null_label=False))
    other, messages = adapted(net, classes=3, null_label=True)
    rows = [network.embedding.label.weight for network in (net, other)]  # type: ignore[union-attr]
    assert_close(rows[1][:2], rows[0])
    assert_close(rows[1][2:], rows[0].mean(dim=0).expand(2, -1))  # type: ignore[operator]
    assert messages[0].endswith("numbers 2 to 2 and “no label” start at the mean of the source's")


def test_one_row_more_than_classes_is_the_null_label() -> None:
    net = trained(replace(SMALL, classes=4, null_label=False))
    other, messages = adapted(net, classes=3, null_label=True)
    assert_close(other.embedding.label.weight, net.embedding.label.weight, rtol=0, atol=0)  # type: ignore[union-attr]
    assert messages == ["labels: number 3 of the 4 in the source is taken for “no label”"]


@pytest.mark.parametrize("config", [SMALL, SONG, LINEAR])
def test_new_labels_do_not_change_the_output(config: UNetConfig) -> None:
    net = trained(config)
    other, messages = adapted(net, classes=7)
    x = grey().repeat(1, 3, 1, 1)
    same(output(other, x, torch.tensor([0, 6])), output(net, x))
    assert messages == ["labels: none in the source, 7 here, which start at zero"]


@pytest.mark.parametrize("config", [SMALL, SONG, LINEAR])
def test_without_labels_the_output_is_that_of_no_label(config: UNetConfig) -> None:
    net = trained(replace(config, classes=7))
    other, messages = adapted(net, classes=None)
    x = grey().repeat(1, 3, 1, 1)
    same(output(other, x), output(net, x))
    assert messages == ["labels: the 7 of the source are dropped; “no label” goes into a bias"]


def test_without_labels_and_null_label_the_mean_is_used() -> None:
    net = trained(replace(SMALL, classes=1, null_label=False))
    other, messages = adapted(net, classes=None)
    x = grey().repeat(1, 3, 1, 1)
    same(output(other, x), output(net, x, torch.tensor([0, 0])))
    assert messages == ["labels: the 1 of the source are dropped; their mean goes into a bias"]


@pytest.mark.parametrize("config", [SMALL, SONG])
def test_the_augmentation_label_is_dropped_or_starts_at_zero(config: UNetConfig) -> None:
    x = grey().repeat(1, 3, 1, 1)
    net = trained(replace(config, augment_channels=9))
    other, messages = adapted(net, augment_channels=None)
    same(output(other, x), output(net, x))
    assert messages == ["augmentation: the label's weights are dropped; augment_channels=9 keeps them"]
    again, messages = adapted(other, augment_channels=4)
    with torch.no_grad():
        found = again(x, torch.tensor([3, 700]), augment=torch.randn(2, 4))
    same(found, output(net, x))
    assert messages == ["augmentation: the weights of the label's 4 numbers start at zero"]


def test_weights_that_fit_are_unchanged() -> None:
    net = trained(replace(SMALL, classes=2))
    weights, messages = adapt_weights(net.state_dict(), net.config, replace(net.config, size=(16, 32), dropout=0.3))
    assert messages == []
    assert all(
        weights[name] is tensor or torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items()
    )


@pytest.mark.parametrize(
    ("changes", "field", "source", "target"),
    [
        ({"blocks_per_level": 2}, "blocks_per_level", (1, 1), (2, 2)),
        ({"heads": 4}, "heads", (1,), (4,)),
        ({"eps": 1e-6}, "eps", 1e-5, 1e-6),
        ({"base_channels": 32}, "base_channels", 16, 32),
        ({"base_channels": 32}, "channels per level", (16, 32), (32, 64)),
        ({"attention_levels": (0,)}, "attention_levels", (1,), (0,)),
        ({"resample": "block"}, "resample", ("conv",), ("block",)),
        ({"time_embedding": "adm"}, "time_embedding", "ddpm", "adm"),
        ({"decoder_attention": "last"}, "decoder_attention", "all", "last"),
    ],
)
def test_other_differences_are_refused(changes: dict, field: str, source: object, target: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}={re.escape(repr(source))} .*{re.escape(repr(target))}"):
        adapted(trained(SMALL), **changes)


def test_equivalent_configs_do_not_differ() -> None:
    net = trained(replace(SMALL, heads=2))
    changes = {
        "heads": None,
        "head_channels": 16,
        "blocks_per_level": (1, 1),
        "time_channels": 16,
        "recompute_levels": (0,),
    }
    other, messages = adapted(net, **changes, init="xavier")
    assert messages == []
    assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)


EDM2 = EDM2Config(size=(8, 8), base_channels=16, channel_multipliers=(1, 2), attention_levels=(1,), head_channels=16)


def test_weights_of_edm2_are_not_adapted() -> None:
    weights = {"x": torch.ones(1)}
    assert adapt_weights(weights, EDM2, replace(EDM2, size=(16, 16), dropout=0.1)) == (weights, [])
    for field, value in (("in_channels", 1), ("classes", 5), ("logvar_channels", 8)):
        with pytest.raises(ValueError, match=rf"{field}={getattr(EDM2, field)} .*{value}"):
            adapt_weights(weights, EDM2, replace(EDM2, **{field: value}))
    with pytest.raises(ValueError, match=r"heads=\(2,\) .*\(4,\)"):
        adapt_weights(weights, EDM2, replace(EDM2, head_channels=8))


def test_another_kind_of_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"EDM2Config .*UNetConfig"):
        adapt_weights({}, EDM2, SMALL)
