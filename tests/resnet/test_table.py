"""Models by name: published counts and statistics, lists, user-defined networks, summaries, unknown names."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import resnet
from residual import Chain
from residual.count import multiply_adds, parameters
from resnet import registry

# Parameters as in torchvision and timm; for CIFAR they follow from the published layer tables.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnet18d": 11_708_744,
    "resnet26d": 16_014_408,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "resnet50_gn": 25_557_032,
    "seresnet18": 11_779_624,
    "seresnet34": 21_960_416,
    "seresnet50": 28_088_024,
    "seresnet101": 49_326_872,
    "seresnet152": 66_821_848,
    "seresnext50_32x4d": 27_559_896,
    "resnest14d": 10_611_688,
    "resnest26d": 17_069_448,
    "resnest50d": 27_483_240,
    "resnest101e": 48_275_016,
    "resnest200e": 70_201_544,
    "resnest269e": 110_929_480,
    "resnetv2_50": 25_549_352,
    "resnetv2_101": 44_541_480,
    "resnetv2_152": 60_185_128,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    "plain20": 269_722,
    "plain32": 464_154,
    "plain44": 658_586,
    "plain56": 853_018,
    "plain110": 1_727_962,
    "preact_resnet110": 1_727_962,
    "preact_resnet164": 1_703_258,
    "preact_resnet1001": 10_327_706,
    "wrn_16_4": 2_748_890,
    "wrn_16_8": 10_961_370,
    "wrn_28_10": 36_479_194,
    "wrn_40_4": 8_949_210,
    "resnext29_8x64d": 34_426_698,
    "resnext29_16x64d": 68_155_210,
}
BLOCKS = {name: resnet.model_info(name).config.blocks_per_stage for name in PUBLISHED}
# Parameters of published variants of a config.
VARIANTS: list[tuple[str, dict[str, Any], int]] = [
    ("resnet18", {"num_classes": 10}, 11_181_642),
    ("resnet34", {"num_classes": 10}, 21_289_802),
    ("resnet50", {"num_classes": 10}, 23_528_522),
    ("resnet20", {"shortcut": "B"}, 272_474),
    ("resnet56", {"shortcut": "B"}, 855_770),
    ("resnet110", {"shortcut": "B"}, 1_730_714),
    ("preact_resnet110", {"shortcut": "B"}, 1_730_522),
    ("resnet56", {"num_classes": 100}, 858_868),
    ("preact_resnet164", {"num_classes": 100}, 1_726_388),
    ("wrn_28_10", {"num_classes": 100}, 36_536_884),
    ("resnet50", {"stride_in": "1x1"}, 25_557_032),
    ("resnet50", {"norm": "frozen"}, 25_557_032 - 2 * 26_560),
]


def on_meta(name: str, **changes: Any) -> Any:
    with torch.device("meta"):
        return resnet.create_model(name, **changes)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if sum(BLOCKS[name]) > 80 else ()) for name in PUBLISHED]
)
def test_every_name_has_the_published_count(name: str) -> None:
    assert parameters(on_meta(name)) == resnet.model_info(name).parameters == PUBLISHED[name]


def test_every_resnet_of_the_zoo_is_counted() -> None:
    assert {
        name for name in resnet.list_models() if isinstance(resnet.model_info(name).config, resnet.ResNetConfig)
    } == set(PUBLISHED)


@pytest.mark.parametrize(("name", "changes", "count"), VARIANTS)
def test_variants_have_the_published_count(name: str, changes: dict[str, Any], count: int) -> None:
    assert parameters(on_meta(name, **changes)) == count


# The fast ones are one of each kind.
FAST = ["resnet18", "resnet50", "seresnet18", "resnest14d", "resnetv2_50", "resnet20", "wrn_16_4"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PUBLISHED]
)
def test_multiply_adds_are_those_of_the_table(name: str) -> None:
    info = resnet.model_info(name)
    found = multiply_adds(on_meta(name), torch.empty(1, 3, info.size_px, info.size_px))
    assert found / 1e9 == pytest.approx(info.giga_multiply_adds, abs=0.0005)


def test_multiply_adds_depend_on_the_stride_of_bottlenecks() -> None:
    """v1 as published has 3.858 · 10⁹, v1.5 4.089 · 10⁹, of the same parameters."""
    x = torch.empty(1, 3, 224, 224)
    found = multiply_adds(on_meta("resnet50", stride_in="1x1"), x), multiply_adds(on_meta("resnet50"), x)
    assert [round(n / 1e9, 3) for n in found] == [3.858, 4.089]


def test_mean_and_deviation_are_published_or_none() -> None:
    def statistics(name: str, **changes: Any) -> tuple[Any, Any]:
        config = on_meta(name, **changes).config
        return config.mean, config.std

    assert statistics("resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert statistics("resnet50", in_channels=3) == statistics("resnet50")
    assert statistics("resnetv2_50") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert statistics("resnet20") == (None, None)
    assert statistics("densenet_bc_100_12") == ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))
    assert statistics("resnet50", in_channels=1) == (None, None)
    assert statistics("resnet50", in_channels=1, mean=(0.5,)) == ((0.5,), None)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "gn" in name or name.endswith(("d", "e"))])
def test_zero_init_is_that_of_timm(name: str) -> None:
    assert resnet.model_info(name).config.zero_init == (not name.startswith(("resnest", "resnext")))


def test_list_models_matches_patterns() -> None:
    assert resnet.list_models("wrn*") == ["wrn_16_4", "wrn_16_8", "wrn_28_10", "wrn_40_4"]
    assert {"resnet50", "resnest50d", "resnext50_32x4d"} <= set(resnet.list_models("res*50*"))
    assert resnet.list_models() == sorted(resnet.list_models())
    assert resnet.list_models("vgg*") == []


@pytest.fixture
def names() -> Iterator[None]:
    """Undoes what a test registers."""
    networks = dict(registry.NETWORKS)
    yield
    registry.NETWORKS.clear()
    registry.NETWORKS.update(networks)


@dataclass(frozen=True, kw_only=True)
class StripesConfig(resnet.ClassifierConfig):
    @property
    def feature_info(self) -> list[tuple[int, int]]:
        return [(4, 1)]


class Stripes(resnet.Classifier):
    config_class = StripesConfig

    def __init__(self, config: StripesConfig) -> None:
        super().__init__(config)
        self.levels = nn.ModuleList([Chain(conv=nn.Conv2d(config.in_channels, 4, kernel_size=(1, 5)))])
        self.fc = nn.Linear(4, config.num_classes)


@pytest.mark.usefixtures("names")
def test_a_custom_network_can_be_registered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"StripesConfig.*resnet\.NETWORKS"):
        resnet.build(StripesConfig())
    resnet.NETWORKS["stripes"] = StripesConfig, Stripes
    net = resnet.build(StripesConfig(num_classes=3, in_channels=1))
    net.save_pretrained(tmp_path)
    assert type(resnet.from_pretrained(tmp_path)) is Stripes
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert "stage" not in resnet.summary(net, 8)
    for layout in ("torchvision", None):
        with pytest.raises(ValueError, match="layout"):
            net.import_weights({"conv1.weight": torch.ones(1)}, layout)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resnet.create_model("resnet5O"), "model 'resnet5O'.*resnet56 or resnet50"),
        (lambda: resnet.create_model("transformer"), "model 'transformer'"),
        (lambda: resnet.create_model("resnet50", blocks_per_stge=(1,)), "resnet50 'blocks_per_stge'.*blocks_per_stage"),
        (lambda: resnet.create_model("resnet50", num_classes=0), "num_classes=0"),
        (lambda: resnet.create_model("resnet50", in_channels=0), "in_channels=0"),
        (lambda: resnet.cifar_resnet(57), r"depth=57 .*6n \+ 2 .*56 or 62"),
        (lambda: resnet.cifar_resnet(2), r"depth=2 .*6n \+ 2 .* 8$"),
        (lambda: resnet.cifar_resnet(111, "preact_bottleneck"), r"depth=111 .*9n \+ 2 .*110 or"),
        (lambda: resnet.wide_resnet(27, 10), r"depth=27 .*6n \+ 4 .*22 or 28"),
        (lambda: resnet.imagenet_resnet(51), "depth=51 .*14, 18, 26, 34, 50, 101, 152, 200, 269"),
    ],
)
def test_unknown_names_and_depths_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_other_depths_that_the_formulas_allow() -> None:
    assert resnet.cifar_resnet(8).blocks_per_stage == (1, 1, 1)
    assert resnet.cifar_resnet(29, "bottleneck").blocks_per_stage == (3, 3, 3)
    assert resnet.wide_resnet(10, 2).widths == (32, 64, 128)


def test_a_summary_has_shapes_parameters_and_multiply_adds() -> None:
    lines = [line.split() for line in resnet.summary(on_meta("resnet50"), 224).splitlines()]
    assert lines[1] == ["stem", "64", "x", "112", "x", "112", "9,536", "118,013,952"]
    assert [line[2:7] for line in lines[2:6]] == [
        [str(c), "x", str(side), "x", str(side)] for c, side in ((256, 56), (512, 28), (1024, 14), (2048, 7))
    ]
    assert lines[-1] == ["total", "25,557,032", "4,089,184,256"]
    for column in (-2, -1):
        numbers = [int(line[column].replace(",", "")) for line in lines[1:]]
        assert sum(numbers[:-1]) == numbers[-1]
    assert "32 x 32" in resnet.summary(on_meta("resnet20"), 32)
    assert "embedding" in resnet.summary(on_meta("resnet50_gn", noise=True), 64)
    assert resnet.summary(on_meta("resnet50"), 64) == resnet.summary(resnet.create_model("resnet50"), 64)
    with pytest.raises(ValueError, match=r"16x16 px.*32 px"):
        resnet.summary(on_meta("resnet50"), 16)
    with pytest.raises(ValueError, match="0x0 px"):
        resnet.summary(on_meta("resnet50"), 0)
