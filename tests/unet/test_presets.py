"""Published networks by name: counts on the meta device, training settings, and networks made from them."""

from dataclasses import replace

import pytest
import torch

import unet
from residual.count import multiply_adds, parameters
from unet import EDM2Config, EDM2UNet, UNet, UNetConfig

# Parameters according to the publications or the published networks.
PUBLISHED = {
    "ddpm-cifar10": 35_746_307,
    "ddpm-256": 113_673_219,
    "diffusers-unconditional": 113_673_219,
    "iddpm-cifar10": 52_546_438,
    "iddpm-imagenet64": 121_063_942,
    "iddpm-imagenet64-cond": 273_049_350,
    "adm-imagenet64": 295_904_454,
    "adm-imagenet128": 421_529_606,
    "adm-imagenet256": 553_838_086,
    "adm-256-uncond": 552_814_086,
    "adm-imagenet512": 558_997_638,
    "adm-upsampler-64-256": 311_795_910,
    "adm-upsampler-128-512": 308_835_270,
    "edm-cifar10-ddpmpp": 55_733_891,
    "edm-cifar10-ddpmpp-cond": 55_735_299,
    "edm-cifar10-ncsnpp": 56_397_827,
    "edm-cifar10-ncsnpp-cond": 56_400_643,
    "edm-ffhq64-ddpmpp": 61_805_571,
    "edm-ffhq64-ncsnpp": 62_761_091,
    "edm-imagenet64": 295_899_267,
    "edm2-img64-xs": 124_710_949,
    "edm2-img64-s": 280_209_381,
    "edm2-img64-m": 497_803_173,
    "edm2-img64-l": 777_492_325,
    "edm2-img64-xl": 1_119_276_837,
    "edm2-img512-xxs": 31_309_029,
    "edm2-img512-xs": 124_713_253,
    "edm2-img512-s": 280_212_837,
    "edm2-img512-m": 497_807_781,
    "edm2-img512-l": 777_498_085,
    "edm2-img512-xl": 1_119_283_749,
    "edm2-img512-xxl": 1_523_164_773,
}


def on_meta(name: str) -> UNet | EDM2UNet:
    with torch.device("meta"):
        return unet.build(unet.preset(name))


def test_every_preset_is_counted() -> None:
    assert {name: unet.preset_info(name).parameters for name in unet.list_presets()} == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_counts(name: str) -> None:
    assert parameters(on_meta(name)) == PUBLISHED[name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if PUBLISHED[name] < 6e7 else pytest.mark.slow) for name in PUBLISHED]
)
def test_presets_have_the_multiply_adds_that_they_name(name: str) -> None:
    net, config = on_meta(name), unet.preset(name)
    label = (torch.zeros(1, dtype=torch.long),) if config.classes else ()
    found = multiply_adds(net, torch.empty(1, config.in_channels, *config.size), torch.zeros(1), *label)
    assert found / 1e9 == pytest.approx(unet.preset_info(name).giga_multiply_adds, abs=0.005)


def test_presets_carry_the_published_training_settings() -> None:
    presets = {name: unet.preset_info(name) for name in unet.list_presets() if not name.startswith("edm2-")}
    assert {type(preset.config) for preset in presets.values()} == {UNetConfig}
    dropout = {name: preset.config.dropout for name, preset in presets.items() if preset.config.dropout}
    assert dropout == {
        "ddpm-cifar10": 0.1,
        "iddpm-cifar10": 0.3,
        "adm-imagenet64": 0.1,
        **{f"edm-cifar10-{kind}{cond}": 0.13 for kind in ("ddpmpp", "ncsnpp") for cond in ("", "-cond")},
        **{f"edm-ffhq64-{kind}": 0.05 for kind in ("ddpmpp", "ncsnpp")},
        "edm-imagenet64": 0.1,
    }
    assert {name for name, preset in presets.items() if preset.config.init == "xavier"} == {
        name for name in presets if name.startswith("ddpm") or (name.startswith("edm-") and "pp" in name)
    }
    assert "Ho et al. 2020" in presets["ddpm-cifar10"].source


def test_an_unknown_preset_gets_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"preset 'ddpm-cifar'.*ddpm-cifar10"):
        unet.preset("ddpm-cifar")
    with pytest.raises(ValueError, match=r"preset '\?!'.*: ddpm-cifar10, ddpm-256"):
        unet.preset("?!")


@pytest.mark.parametrize("channels", [2**18, 2**22])
@pytest.mark.parametrize("make", [UNetConfig, EDM2Config])
def test_a_network_larger_than_the_bound_is_refused_before_work(
    make: type[UNetConfig | EDM2Config], channels: int
) -> None:
    with pytest.raises(
        ValueError, match=r"weights would take [\d,]+\.\d GiB, more than max_bytes=1,099,511,627,776: .*channels"
    ):
        unet.build(make(base_channels=channels, size=(8, 8)))


@pytest.mark.parametrize("make", [UNetConfig, EDM2Config])
@pytest.mark.parametrize(
    "changes",
    [
        {"base_channels": 2**40},
        {"in_channels": 10**9},
        {"out_channels": 10**400},
        {"classes": 2**31},
        {"size": (8, 10**9)},
        {"channel_multipliers": (1, 1e308)},
        {"channel_multipliers": (1,) * 25},
        {"blocks_per_level": 501},
    ],
)
def test_absurd_counts_are_refused_by_the_config(make: type, changes: dict) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name}.*(at most|1 to|more than)"):
        make(**{"size": (8, 8), "channel_multipliers": (1, 2), "attention_levels": ()} | changes)


def test_no_bound_applies_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert parameters(unet.build(EDM2Config(base_channels=2**14))) > 1e12


def test_names_by_pattern() -> None:
    assert unet.list_presets("iddpm-*64*") == ["iddpm-imagenet64", "iddpm-imagenet64-cond"]
    assert unet.list_presets("unknown*") == []


def test_a_model_with_changed_fields() -> None:
    changes = {"base_channels": 16, "size": (8, 8), "head_channels": 16, "logvar_channels": 8}
    with torch.device("meta"):
        net = unet.create_model("edm2-img64-xs", **changes)
        assert type(unet.create_model("ddpm-cifar10")) is UNet
    assert net.config == replace(unet.preset("edm2-img64-xs"), **changes)
    with pytest.raises(ValueError, match=r"ddpm-cifar10.*'base_chanels'.*base_channels"):
        unet.create_model("ddpm-cifar10", base_chanels=16)


def test_every_kind_of_network_is_registered() -> None:
    assert {type(unet.preset(name)) for name in unet.list_presets()} == {config for config, _ in unet.NETWORKS.values()}
    for config, network in unet.NETWORKS.values():
        assert network.config_class is config
        assert all(isinstance(config(), layout.config_class) for layout in network.layouts.values())
