"""Layouts of other libraries: found by names, refused for other networks, files and configs."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from tests.golden.networks import BARE, EDM2_SMALL
from unet import EDM2UNet, UNet, UNetConfig, build
from unet.layouts import LAYOUTS

NETWORKS = {
    "diffusers": UNetConfig(size=(16, 16), base_channels=32, channel_multipliers=(1, 2), attention_levels=(1,)),
    "adm": BARE["adm_small_plain"][1],
    "adm-new-order": BARE["adm_small_new_attention_order"][1],
    "edm": BARE["edm_ddpmpp_small"][1],
    "edm2": EDM2_SMALL,
}
LIKELY = {
    "diffusers": ["diffusers"],
    "adm": ["adm", "adm-new-order"],
    "adm-new-order": ["adm", "adm-new-order"],
    "edm": ["edm"],
    "edm2": ["edm2"],
}


def weights(layout: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build(NETWORKS[layout]).export_weights(layout)


def alike(one: str, other: str) -> bool:
    """Whether two layouts have the same names. Such layouts differ only in the order of the rows of attention."""
    return LAYOUTS[one].signature_key == LAYOUTS[other].signature_key


def test_every_layout_is_tried() -> None:
    assert set(NETWORKS) == set(LIKELY) == set(LAYOUTS)


@pytest.mark.parametrize(("asked", "given"), [(a, g) for a in LAYOUTS for g in LAYOUTS if not alike(a, g)])
def test_names_of_another_layout_are_recognised(asked: str, given: str) -> None:
    net = build(NETWORKS[asked])
    with pytest.raises(ValueError, match=f"layout '{asked}' does not fit") as error:
        net.import_weights(weights(given), layout=asked)
    assert re.findall(r"'([\w-]+)' \(", str(error.value)) == LIKELY[given]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_found_by_the_names(layout: str) -> None:
    net, theirs = build(NETWORKS[layout]), weights(layout)
    if len(LIKELY[layout]) == 1:
        assert net.import_weights(theirs) == []
        assert_close(net.export_weights(layout), theirs, rtol=0, atol=0)
    else:
        with pytest.raises(ValueError, match=r"'adm' \(.*'adm-new-order' \("):
            net.import_weights(theirs)


def test_names_of_no_layout_or_of_another_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'x'.*diffusers, adm, adm-new-order, edm"):
        build(NETWORKS["edm"]).import_weights({"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="'edm2'"):
        build(NETWORKS["edm"]).import_weights(weights("edm2"))
    with pytest.raises(ValueError, match="'edm'"):
        build(NETWORKS["edm2"]).import_weights(weights("edm"))


def test_prefixed_names_are_recognised() -> None:
    wrapped = {f"model.{name}": tensor for name, tensor in weights("edm").items()}
    with pytest.raises(ValueError, match=r"layout 'adm' does not fit.*'edm' "):
        build(NETWORKS["adm"]).import_weights(wrapped, layout="adm")
    build(NETWORKS["edm"]).import_weights(wrapped, layout="edm")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_own_names_are_recognised(layout: str) -> None:
    net = build(NETWORKS[layout])
    with pytest.raises(ValueError, match=f"layout '{layout}' .*our own.*load_state_dict"):
        net.import_weights(net.state_dict(), layout=layout)


def test_the_two_orders_of_adm_differ_in_the_attention_alone() -> None:
    one, other = (build(NETWORKS["adm"]) for _ in range(2))
    one.import_weights(weights("adm"), layout="adm")
    other.import_weights(weights("adm"), layout="adm-new-order")
    differ = {name for name, tensor in one.state_dict().items() if not torch.equal(tensor, other.state_dict()[name])}
    assert differ == {name for name in one.state_dict() if ".qkv." in name}


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (NETWORKS["diffusers"], "difusers", "'difusers'; did you mean diffusers"),
        (NETWORKS["diffusers"], "keras", "layout 'keras'.*: diffusers, adm, adm-new-order, edm$"),
        (
            NETWORKS["diffusers"],
            "edm2",
            "layout 'edm2' is for .*EDM2Config; .*UNetConfig have diffusers, adm, adm-new-order, edm$",
        ),
        (EDM2_SMALL, "edm-2", "'edm-2'; did you mean edm2"),
        (EDM2_SMALL, "keras", "layout 'keras'.*: edm2$"),
        (EDM2_SMALL, "diffusers", "layout 'diffusers' is for .*UNetConfig; .*EDM2Config have edm2$"),
    ],
)
def test_an_unknown_layout_is_refused(config: Any, layout: str, message: str) -> None:
    net = build(config)
    with pytest.raises(ValueError, match=message):
        net.import_weights({}, layout=layout)
    with pytest.raises(ValueError, match=message):
        net.export_weights(layout)


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("adm", {"eps": 1e-6}, r"UNetModel cannot express eps=1e-06: it has 1e-05"),
        ("adm", {"time_embedding": "ddpm"}, "UNetModel cannot express time_embedding='ddpm': it has 'adm'"),
        ("edm", {"eps": 1e-5}, "SongUNet cannot express eps=1e-05: it has 1e-06"),
        ("edm", {"residual_scale": 1.0}, "SongUNet cannot express residual_scale=1.0"),
        ("adm", {"channel_multipliers": (2, 2, 3)}, "as wide as its first level: start with 1"),
        ("adm", {"base_channels": 48, "heads": 4}, "groups=32: its GroupNorm of 48 channels has 32 groups"),
        ("edm", {"heads": 4}, r"SongUNet cannot express heads=\(1, 4, 4\): it has one head everywhere"),
        ("edm", {"base_channels": 50}, "groups=32: its GroupNorm of 50 channels has 12 groups"),
        ("edm", {"input_skips": True}, "input_skips=True with resample='block_project': it has one filter for both"),
        ("edm2", {"size": (16, 8)}, r"EDM2's network cannot express size=\(16, 8\)"),
        (
            "edm2",
            {"blocks_per_level": (1, 2, 2)},
            r"blocks_per_level=\(1, 2, 2\): it has one number of blocks for all levels",
        ),
        ("edm2", {"head_channels": (32, 32, 64)}, r"head_channels=\(32, 32, 64\): it has one width of a head"),
        ("edm2", {"channel_multipliers": (2, 2, 2)}, "as wide as its first level: start with 1"),
    ],
)
def test_configs_that_a_layout_cannot_express_are_refused(layout: str, change: dict[str, Any], message: str) -> None:
    """Names and shapes fit, but the output would be wrong."""
    net = build(replace(NETWORKS[layout], **change))
    with pytest.raises(ValueError, match=message):
        net.import_weights(weights(layout), layout=layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_channels": 16}, r"DhariwalUNet cannot express heads=\(1, 4, 4\): each of its heads has 64 channels"),
        ({"channel_multipliers": (2, 2, 2)}, "as wide as its first level: start with 1"),
    ],
)
def test_configs_that_edms_adm_cannot_express_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(replace(BARE["edm_adm_small"][1], **change)).export_weights("edm")


def test_other_filters_are_refused() -> None:
    """They are no weights of ours, but the resampling that the weights were trained with."""
    theirs = weights("edm")
    name = "dec.16x16_up.skip.resample_filter"
    with pytest.warns(UserWarning, match="float16"):
        build(NETWORKS["edm"]).import_weights(theirs | {name: theirs[name].half()}, layout="edm")
    for other in (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 4, 4) / 16):
        with pytest.raises(ValueError, match=rf"{name} .*filter.*resample='block_project'"):
            build(NETWORKS["edm"]).import_weights(theirs | {name: other}, layout="edm")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_read_like_a_state_dict(layout: str, tmp_path: Path) -> None:
    theirs, path = weights(layout), tmp_path / "weights.safetensors"
    save_file(theirs, path)
    for source in (path, str(path)):
        net = build(NETWORKS[layout])
        net.import_weights(source, layout=layout)
        assert_close(net.export_weights(layout), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("network", [UNet(NETWORKS["adm"]), EDM2UNet(EDM2_SMALL)], ids=["UNet", "EDM2UNet"])
def test_damaged_files_and_pickles_are_refused(network: UNet | EDM2UNet, tmp_path: Path) -> None:
    layout = "edm2" if isinstance(network, EDM2UNet) else "adm"
    theirs = weights(layout)
    for name, legacy in (("new.pt", False), ("old.pkl", True)):
        torch.save(theirs, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(
            ValueError, match=rf"{name} is a pickle, which could run code, .*; save a plain state dict first: safetens"
        ):
            network.import_weights(tmp_path / name, layout=layout)
    path = tmp_path / "weights.safetensors"
    save_file(theirs, path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], whole[:4], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is not a complete safetensors file .*: copy or save it again"):
            network.import_weights(path, layout=layout)
    with pytest.raises(ValueError, match=r"no weights at .*absent"):
        network.import_weights(tmp_path / "absent", layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_on_the_meta_device_takes_the_weights(layout: str) -> None:
    """The tensors themselves become the parameters."""
    theirs = weights(layout)
    with torch.device("meta"):
        net = build(NETWORKS[layout])
    net.import_weights(theirs, layout=layout)
    assert not [name for name, tensor in net.state_dict().items() if tensor.is_meta]
    assert all(p.requires_grad for p in net.parameters())
    assert_close(net.export_weights(layout), theirs, rtol=0, atol=0)


def test_a_pickle_converts_as_in_the_message(tmp_path: Path) -> None:
    torch.save(weights("edm"), tmp_path / "weights.pt")
    save_file(torch.load(tmp_path / "weights.pt", weights_only=True), tmp_path / "weights.safetensors")
    net = build(NETWORKS["edm"])
    net.import_weights(tmp_path / "weights.safetensors", layout="edm")
    assert_close(net.export_weights("edm"), weights("edm"), rtol=0, atol=0)


def test_a_safetensors_header_that_starts_like_a_pickle_is_read(tmp_path: Path) -> None:
    """A safetensors file begins with the length of its header: 640 is 80 02 in hexadecimal, as a pickle begins."""
    net, path = build(NETWORKS["adm"]), tmp_path / "weights.safetensors"
    theirs = weights("adm")
    save_file(theirs, path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    for mark in (b"\x80\x02", b"PK"):
        padding = (int.from_bytes(mark, "little") - length - 26) % 2**16
        save_file(theirs, path, metadata={"x": "-" * padding})
        short = (int.from_bytes(mark, "little") - int.from_bytes(path.read_bytes()[:8], "little")) % 2**16
        save_file(theirs, path, metadata={"x": "-" * (padding + short)})
        assert path.read_bytes()[:2] == mark
        net.import_weights(path, layout="adm")


@pytest.mark.parametrize(
    ("layout", "name", "shape"),
    [
        ("diffusers", "mid_block.attentions.0.to_k.weight", (64, 5)),
        ("adm", "middle_block.1.qkv.weight", (289, 96, 1)),
        ("adm", "middle_block.1.qkv.weight", ()),
    ],
)
def test_attention_rows_of_a_wrong_number_are_a_shape_error(layout: str, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"^the weights do not fit .* of another shape: .*{name} has {re.escape(str(shape))}"
    ):
        build(NETWORKS[layout]).import_weights(weights(layout) | {name: torch.zeros(shape)}, layout=layout)


def test_missing_names_are_listed() -> None:
    theirs = weights("adm")
    del theirs["input_blocks.0.0.weight"]
    with pytest.raises(ValueError, match=r"do not fit this network: 1 missing: input_blocks\.0\.0\.weight$"):
        build(NETWORKS["adm"]).import_weights(theirs, layout="adm")
