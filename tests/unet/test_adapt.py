"""Weights for other channels and other labels: where the old and the new network must agree, they do."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from residual.weights.keymap import check_state
from unet import UNet, UNetConfig
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
    weights, said = adapt_weights(net.state_dict(), net.config, config)
    other = UNet(config).eval()
    check_state(weights, other.state_dict())
    other.load_state_dict(weights)
    return other, said


def answer(net: UNet, x: Tensor, label: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return net(x, torch.tensor([3, 700]), label)


def grey() -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def same(found: Tensor, expected: Tensor) -> None:
    assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("config", [SMALL, SONG, replace(SMALL, learned_variance=True)])
def test_a_grey_image_is_to_the_adapted_network_what_its_repetition_was_to_the_colour_one(config: UNetConfig) -> None:
    net = trained(config)
    other, said = adapted(net, in_channels=1, out_channels=1)
    was = answer(net, grey().repeat(1, 3, 1, 1)).unflatten(1, (1 + config.learned_variance, 3)).mean(dim=2)
    same(answer(other, grey()), was)
    assert said == [
        "input: 3 channels there, 1 here; weights are summed",
        "output: 3 channels there, 1 here; weights are averaged",
    ]


@pytest.mark.parametrize("config", [SMALL, SONG])
def test_a_grey_image_as_colour_is_what_it_was_to_the_grey_network(config: UNetConfig) -> None:
    net = trained(replace(config, in_channels=1, out_channels=1))
    other, said = adapted(net, in_channels=3, out_channels=3)
    same(answer(other, grey().repeat(1, 3, 1, 1)), answer(net, grey()).repeat(1, 3, 1, 1))
    assert [line.partition(" here; ")[2] for line in said] == ["weights are shared", "weights are repeated"]


def test_the_learned_variance_is_left_out() -> None:
    net = trained(replace(SMALL, learned_variance=True))
    other, said = adapted(net, learned_variance=False)
    x = grey().repeat(1, 3, 1, 1)
    same(answer(other, x), answer(net, x)[:, :3])
    assert said == ["output: the half that is the learned variance is left out"]


@pytest.mark.parametrize("config", [SMALL, SONG, LINEAR])
@pytest.mark.parametrize(("there", "here"), [(3, 5), (5, 3)])
def test_labels_that_both_have_keep_their_meaning(config: UNetConfig, there: int, here: int) -> None:
    net = trained(replace(config, classes=there))
    other, said = adapted(net, classes=here)
    x, label = grey().repeat(1, 3, 1, 1), torch.tensor([0, 2])
    same(answer(other, x, label), answer(net, x, label))
    same(answer(other, x), answer(net, x))  # “no label”
    start = ", numbers 3 to 4 start at the mean of those there" if here == 5 else ""
    assert said == [f"labels: {there} there, {here} here; the first 3 are kept by number{start}"]


def test_new_labels_start_at_the_mean() -> None:
    net = trained(replace(SMALL, classes=2, null_label=False))
    other, said = adapted(net, classes=3, null_label=True)
    rows = [network.embedding.label.weight for network in (net, other)]  # type: ignore[union-attr]
    assert_close(rows[1][:2], rows[0])
    assert_close(rows[1][2:], rows[0].mean(dim=0).expand(2, -1))  # type: ignore[operator]
    assert said[0].endswith("numbers 2 to 2 and “no label” start at the mean of those there")


def test_the_last_of_as_many_rows_is_the_null_label() -> None:
    net = trained(replace(SMALL, classes=4, null_label=False))
    other, said = adapted(net, classes=3, null_label=True)
    assert_close(other.embedding.label.weight, net.embedding.label.weight, rtol=0, atol=0)  # type: ignore[union-attr]
    assert said == ["labels: number 3 of the 4 there is taken for “no label” here"]


@pytest.mark.parametrize("config", [SMALL, SONG, LINEAR])
def test_labels_that_are_new_change_nothing_at_first(config: UNetConfig) -> None:
    net = trained(config)
    other, said = adapted(net, classes=7)
    x = grey().repeat(1, 3, 1, 1)
    same(answer(other, x, torch.tensor([0, 6])), answer(net, x))
    assert said == ["labels: there are none there, 7 here, which start at zero"]


@pytest.mark.parametrize("config", [SMALL, SONG, LINEAR])
def test_labels_that_are_given_up_leave_what_no_label_meant(config: UNetConfig) -> None:
    net = trained(replace(config, classes=7))
    other, said = adapted(net, classes=None)
    x = grey().repeat(1, 3, 1, 1)
    same(answer(other, x), answer(net, x))
    assert said == ["labels: the 7 there are left out; “no label” goes into a bias"]


def test_without_a_null_label_their_mean_is_left() -> None:
    net = trained(replace(SMALL, classes=1, null_label=False))
    other, said = adapted(net, classes=None)
    x = grey().repeat(1, 3, 1, 1)
    same(answer(other, x), answer(net, x, torch.tensor([0, 0])))
    assert said == ["labels: the 1 there are left out; their mean goes into a bias"]


def test_what_fits_is_not_touched() -> None:
    net = trained(replace(SMALL, classes=2))
    weights, said = adapt_weights(net.state_dict(), net.config, replace(net.config, size=(16, 32), dropout=0.3))
    assert said == []
    assert all(
        weights[name] is tensor or torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks_per_level": 2},
            r"differ in blocks_per_level=\(1, 1\) there, \(2, 2\) here; give the same settings, or none where",
        ),
        ({"heads": 4}, r"heads=\(1,\) there, \(4,\) here"),
        ({"eps": 1e-6}, "eps=1e-05 there, 1e-06 here"),
        ({"base_channels": 32}, "base_channels=16 there, 32 here"),
        ({"attention_levels": (0,)}, r"attention_levels=\(1,\) there, \(0,\) here"),
        ({"learned_variance": True}, "learned_variance=False there, True here"),
        ({"time_embedding": "adm"}, "time_embedding='ddpm' there, 'adm' here"),
    ],
)
def test_what_cannot_be_adapted_is_shown(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(trained(SMALL), **changes)


def test_two_ways_to_say_the_same_are_no_difference() -> None:
    net = trained(replace(SMALL, heads=2))
    changes = {
        "heads": None,
        "head_channels": 16,
        "blocks_per_level": (1, 1),
        "time_channels": 16,
        "recompute_levels": (0,),
    }
    other, said = adapted(net, **changes, init="xavier")
    assert said == []
    assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)
