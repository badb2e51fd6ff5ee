"""EDSR against a plain transcription of the authors' network, under their names."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from residual import Residual
from residual.count import multiply_adds, parameters
from resnet import EDSR, EDSRConfig, create_model, from_pretrained, model_info, summary
from tests.golden.fill import fill, golden_input
from tests.resnet.whole import check_one_graph

COUNTS = {
    "edsr_baseline_x2": 1_369_859,
    "edsr_baseline_x3": 1_554_499,
    "edsr_baseline_x4": 1_517_571,
    "edsr_x2": 40_729_603,
    "edsr_x3": 43_680_003,
    "edsr_x4": 43_089_923,
}
SMALL = EDSRConfig(channels=8, blocks=3)


class Block(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.body(x)


class Published(nn.Module):
    """The network of Lim et al. 2017 with the names of EDSR-PyTorch."""

    def __init__(self, config: EDSRConfig) -> None:
        super().__init__()
        width, mean = config.channels, 255 * torch.tensor([0.4488, 0.4371, 0.4040])
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        for shift, sign in ((self.sub_mean, -1), (self.add_mean, 1)):
            shift.weight.data, shift.bias.data = torch.eye(3)[:, :, None, None], sign * mean
        blocks = [Block(width, config.branch_scale) for _ in range(config.blocks)]
        self.head = nn.Sequential(nn.Conv2d(3, width, 3, padding=1))
        self.body = nn.Sequential(*blocks, nn.Conv2d(width, width, 3, padding=1))
        ups: list[nn.Module] = []
        for factor in {2: [2], 3: [3], 4: [2, 2]}[config.scale]:
            ups += [nn.Conv2d(width, factor**2 * width, 3, padding=1), nn.PixelShuffle(factor)]
        self.tail = nn.Sequential(nn.Sequential(*ups), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(x) + x))


def weights(net: nn.Module) -> dict[str, Tensor]:
    """Reproducible weights of the published network."""
    return {k: t if "mean" in k else fill(k, tuple(t.shape)) for k, t in net.state_dict().items()}


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_counts(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name)
    assert parameters(net) == COUNTS[name] == model_info(name).parameters
    image = torch.empty(1, 3, 48, 48, device="meta")
    assert net(image).shape[-1] == 48 * int(name[-1])
    assert multiply_adds(net, image) / 1e9 == pytest.approx(model_info(name).giga_multiply_adds, abs=6e-4)
    sums = [m for m in net.modules() if isinstance(m, Residual)]
    large = "baseline" not in name
    assert len(sums) == 1 + (32 if large else 16)
    assert {m.merge.branch_scale for m in sums[1:]} == {0.1 if large else 1.0}


def test_a_summary_has_its_parts() -> None:
    lines = [line.split() for line in summary(create_model("edsr_baseline_x2"), 48).splitlines()]
    assert lines[2] == [
        "body",
        "64",
        "x",
        "48",
        "x",
        "48",
        f"{33 * (64 * 64 * 9 + 64):,}",
        f"{33 * 64 * 64 * 9 * 48**2:,}",
    ]
    assert lines[3][:6] == ["tail", "3", "x", "96", "x", "96"]
    assert lines[4][:2] == ["total", "1,369,859"]


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"{channels} channels.* 3"):
        EDSR(SMALL)(torch.zeros(1, channels, 8, 8))


def test_fields_of_classifiers_are_refused() -> None:
    with pytest.raises(ValueError, match="edsr_x2 'num_classes'"):
        create_model("edsr_x2", num_classes=10)
    with pytest.raises(ValueError, match="edsr_x2 'in_channels'"):
        create_model("edsr_x2", in_channels=1)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("branch_scale", [1.0, 0.1])
def test_the_published_network(scale: int, branch_scale: float) -> None:
    config = dataclasses.replace(SMALL, scale=scale, branch_scale=branch_scale)
    theirs, ours, x = Published(config).eval(), EDSR(config).eval(), 50 * golden_input((2, 3, 7, 6)) + 128
    state = weights(theirs)
    theirs.load_state_dict(state)
    (line,) = ours.import_weights({f"module.{name}": tensor for name, tensor in state.items()})
    assert "module." in line
    with torch.no_grad():
        expected = theirs(x)
        assert expected.shape == (2, 3, 7 * scale, 6 * scale)
        assert_close(ours(x), expected, rtol=0, atol=2e-5 * expected.std().item())
    assert_close(ours.export_weights(), state, rtol=0, atol=0)


def test_weights_of_another_scale_are_loaded_without_upsampling() -> None:
    state = weights(Published(SMALL))
    net = EDSR(dataclasses.replace(SMALL, scale=3))
    before = net.tail.up0.conv.weight.clone()
    [message] = net.import_weights(state)
    assert re.match("tail.0: .*2.*3", message)
    assert_close(net.tail.up0.conv.weight, before, rtol=0, atol=0)
    exported = net.export_weights()
    for name in (name for name in state if not name.startswith("tail.0.")):
        assert_close(exported[name], state[name], rtol=0, atol=0)


def test_the_mean_is_saved_with_the_weights(tmp_path: Path) -> None:
    net = EDSR(SMALL)
    net.mean.fill_(7)
    net.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config == SMALL
    assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    other = EDSR(SMALL)
    other.import_weights(net.export_weights())
    assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_weights_that_do_not_fit_are_refused() -> None:
    state = weights(Published(SMALL))
    with pytest.raises(ValueError, match=r"layout 'timm'.*: edsr-pytorch"):
        EDSR(SMALL).import_weights(state, layout="timm")
    with pytest.raises(ValueError, match="layout 'edsr_pytorch'; did you mean edsr-pytorch"):
        EDSR(SMALL).export_weights("edsr_pytorch")
    with pytest.raises(ValueError, match=r"1 missing: head\.0\.bias; 1 unknown: head\.0\.bais"):
        EDSR(SMALL).import_weights({k.replace("head.0.bias", "head.0.bais"): t for k, t in state.items()})
    with pytest.raises(ValueError, match=r"unknown: body\.3\.body\.0\.weight"):
        EDSR(SMALL).import_weights(weights(Published(dataclasses.replace(SMALL, blocks=4))))
    with pytest.raises(ValueError, match="sub_mean and add_mean"):
        EDSR(SMALL).import_weights(state | {"add_mean.weight": 2 * state["add_mean.weight"]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 5}, "scale=5.*2, 3 or 4"),
        ({"channels": 0}, "channels=0"),
        ({"blocks": 0}, "blocks=0"),
    ],
)
def test_invalid_configs_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDSRConfig(**fields)


def test_every_parameter_has_a_gradient_and_images_are_independent() -> None:
    net, x = EDSR(SMALL), 255 * torch.rand(2, 3, 6, 5)
    net(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    with torch.no_grad():
        assert_close(net(x)[:1], net(x[:1]), rtol=1e-5, atol=1e-4)


def test_exports_and_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    check_one_graph(EDSR(SMALL), torch.rand(2, 3, 6, 5), monkeypatch)
