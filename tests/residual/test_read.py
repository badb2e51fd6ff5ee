"""Weights as people have them: wrapped, halved, split, damaged."""

import json
import os
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

import resnet
import unet
from residual.weights.layout import read_state
from residual.weights.pretrained import Pretrained
from residual.weights.read import plain_names, read_folder_weights, read_weights, usable

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "unet.",
        "net.",
        "backbone.",
        "encoder.",
        "ema_model.",
        "ema.module.",
        "state_dict.model.",
        "0.",
        "diffusion_model.",
    ],
)
def test_a_prefix_that_all_names_share_comes_off(prefix: str) -> None:
    found, messages = plain_names({prefix + name: tensor for name, tensor in STATE.items()})
    assert_close(found, STATE, rtol=0, atol=0)
    assert [prefix in message for message in messages] == [True]


@pytest.mark.parametrize("counter", ["n_averaged", "step", "initted", "num_updates"])
def test_a_lone_counter_comes_off(counter: str) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in STATE.items()} | {counter: torch.tensor(7)}
    found, messages = plain_names(wrapped)
    assert_close(found, STATE, rtol=0, atol=0)
    assert [counter in message for message in messages] == [True, False]


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_parts_of_names_from_wrappers_come_off(wrapper: str, prefix: str) -> None:
    first, *rest = STATE
    found, messages = plain_names(
        {prefix + first.replace(".", f".{wrapper}."): STATE[first], **{prefix + name: STATE[name] for name in rest}}
    )
    assert_close(found, STATE, rtol=0, atol=0)
    assert messages[-1] == f"{wrapper} is left out of 1 name"


def test_counters_of_a_profiler_come_off() -> None:
    counters = {name: torch.zeros(1, dtype=torch.float64) for name in ("total_ops", "a.total_params", "b.total_ops")}
    found, messages = plain_names(STATE | counters)
    assert_close(found, STATE, rtol=0, atol=0)
    assert [all(name in message for name in counters) for message in messages] == [True]


def test_plain_names_stay() -> None:
    assert plain_names(STATE) == (STATE, [])
    assert plain_names({}) == ({}, [])
    both = {"a._orig_mod.weight": torch.ones(1), "a.weight": torch.zeros(1), "b": torch.ones(1)}
    assert plain_names(both) == (both, [])
    assert plain_names({"weight": torch.ones(1)})[0].keys() == {"weight"}


def test_a_real_average_of_a_compiled_network() -> None:
    config = unet.UNetConfig(size=(8, 8), base_channels=16, channel_multipliers=(1, 2), groups=8, null_label=False)
    theirs = unet.UNet(config)
    average = torch.optim.swa_utils.AveragedModel(theirs)
    names = {f"_orig_mod.{name}" for name in average.state_dict()}
    published = theirs.export_weights("diffusers")
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in published.items()}
    assert "_orig_mod.n_averaged" in names
    net = unet.UNet(config)
    messages = net.import_weights(wrapped | {"n_averaged": average.n_averaged})
    assert len(messages) == 2
    assert_close(net.export_weights("diffusers"), published, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_numbers_that_are_not_finite_are_refused_by_name(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    state = STATE | {"bn.running_var": torch.tensor([1.0, value], dtype=dtype)}
    with pytest.raises(ValueError, match=r"bn\.running_var"):
        usable(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors.*bn\.running_var"):
        read_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_numbers_that_are_no_weights_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"b\.weight.*{str(dtype).removeprefix('torch.')}"):
        usable(STATE | {"b.weight": torch.ones(4).to(dtype)})
    counter = {"bn.num_batches_tracked": torch.tensor(3)}
    assert usable(STATE | counter).keys() == STATE.keys() | counter.keys()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("bn.running_var", torch.tensor([1.0, -0.1])),
        ("bn.running_var", torch.tensor([1.0, 1e30])),
        ("a.weight", torch.full((2, 3), 1e30)),
        ("a.weight", torch.full((2, 3), -1e30)),
        ("a.weight", torch.full((2, 3), 1e300, dtype=torch.float64)),
        ("a.weight", torch.ones(2, 3).to_sparse()),
        ("a.weight", torch.ones(2, 0)),
    ],
)
def test_numbers_that_would_overflow_are_refused_by_name(name: str, tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=name):
        usable(STATE | {name: tensor})
    assert usable({"running_mean": torch.tensor([-3.0]), "b": torch.tensor([-1e6])})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"state_dict": STATE}, "state_dict.*dict"),
        ({"epoch": 3} | STATE, "epoch.*int"),
        ({"a.weight": [1.0]}, r"a\.weight.*list"),
    ],
)
def test_what_is_no_state_dict_is_named(given: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read_state(given)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
)
def test_numbers_of_another_precision_become_float32_with_a_note(dtype: torch.dtype) -> None:
    with pytest.warns(UserWarning, match=f"3 of 3.*{str(dtype).removeprefix('torch.')}"):
        found = usable({name: tensor.to(dtype) for name, tensor in STATE.items()})
    assert_close(found, STATE, rtol=0, atol=0)


def test_float32_gives_no_note() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable(STATE) == STATE


def header(tensors: dict) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
DAMAGED = {
    "empty": b"",
    "half a header": struct.pack("<Q", 1000) + b"{",
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "header that is no JSON": struct.pack("<Q", 4) + b"abcd",
    "header that is a list": struct.pack("<Q", 2) + b"[]",
    "header nested deeply": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "too few bytes": header({"a": ONE}) + bytes(3),
    "too many bytes": header({"a": ONE}) + bytes(5),
    "overlap": header({"a": ONE, "b": ONE}) + bytes(4),
    "a hole": header({"a": ONE, "b": ONE | {"data_offsets": [8, 12]}}) + bytes(12),
    "offsets backwards": header({"a": ONE | {"data_offsets": [4, 0]}}) + bytes(4),
    "shape of another size": header({"a": ONE | {"shape": [7]}}) + bytes(4),
    "overflowing shape": header({"a": ONE | {"shape": [2**62, 2**62]}}) + bytes(4),
    "negative shape": header({"a": ONE | {"shape": [-1]}}) + bytes(4),
    "unknown type": header({"a": ONE | {"dtype": "F99"}}) + bytes(4),
    "no type": header({"a": {"shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
    "one name twice": b'%s{"a":%s,"a":%s}' % (struct.pack("<Q", 109), *[json.dumps(ONE).encode()] * 2) + bytes(4),
    "no tensors": header({}),
    "only metadata": header({"__metadata__": {"format": "pt"}}),
    "no numbers": header({"a": ONE | {"shape": [0], "data_offsets": [0, 0]}}),
    "no numbers in a huge shape": header({"a": ONE | {"shape": [0, 2**40], "data_offsets": [0, 0]}}),
    "numbers of four bits": header({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}) + bytes(2),
    "scales of eight bits": header({"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}) + bytes(4),
    "text": b"<!DOCTYPE html><html>404</html>",
    "git pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x02}q\x00." + bytes(100),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=str(path)):
        read_weights(path)


def test_a_pointer_of_git_lfs_has_its_way_out(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(DAMAGED["git pointer"])
    with pytest.raises(ValueError, match=r"model\.safetensors.*git lfs pull"):
        read_weights(tmp_path / "model.safetensors")


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors.*pipe"):
        read_weights(tmp_path / "model.safetensors")


def shards(folder: Path, **weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    save_file({"a": torch.ones(1)}, folder / "one.safetensors")
    save_file({"b": torch.ones(1)}, folder / "two.safetensors")


def test_shards_are_joined(tmp_path: Path) -> None:
    shards(tmp_path, a="one.safetensors", b="two.safetensors")
    assert_close(read_folder_weights(tmp_path, "model"), {"a": torch.ones(1), "b": torch.ones(1)})


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, r"three\.safetensors"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, r"index\.json.* c"),
        ({"a": "../one.safetensors"}, r"index\.json.*\.\./one"),
        ({"a": "/etc/passwd"}, r"index\.json.*passwd"),
        ({"a": 3}, "weight_map"),
        ({"a": None}, "weight_map"),
        ({"a": ["one.safetensors"]}, "weight_map"),
    ],
)
def test_a_wrong_index_is_named(weight_map: dict, match: str, tmp_path: Path) -> None:
    shards(tmp_path, **weight_map)
    with pytest.raises(ValueError, match=match):
        read_folder_weights(tmp_path, "model")


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"weight_map": []}', "null", "[" * 100_000])
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        read_folder_weights(tmp_path, "model")


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        read_folder_weights(tmp_path, "model")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*safe_serialization"):
        read_folder_weights(tmp_path, "model")
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00002.*model\.safetensors\.index\.json"):
        read_folder_weights(tmp_path, "model")


def test_a_choice_among_weights_is_reported(tmp_path: Path) -> None:
    shards(tmp_path, a="one.safetensors", b="two.safetensors")
    for name in ("model.fp16.safetensors", "model.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    with pytest.warns(UserWarning, match=r"model\.safetensors is read.*index\.json, model\.fp16\.safetensors"):
        assert read_folder_weights(tmp_path, "model").keys() == {"a"}
    (tmp_path / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"index\.json is read.*: model\.fp16\.safetensors"):
        assert read_folder_weights(tmp_path, "model").keys() == {"a", "b"}
    with pytest.raises(ValueError, match=r"no other\.safetensors.*model\.fp16\.safetensors, one\.safetensors"):
        read_folder_weights(tmp_path, "other")


@dataclass(frozen=True)
class Config:
    width: int = 2
    later: int = 1


class Net(Pretrained):
    config_class = Config
    later_fields = frozenset({"later"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.linear = nn.Linear(config.width, config.later)


def test_a_field_that_an_earlier_version_did_not_write_has_its_default(tmp_path: Path) -> None:
    Net(Config(width=3)).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    del document["later"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert Net.from_pretrained(tmp_path).config == Config(width=3, later=1)
    del document["width"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="width"):
        Net.from_pretrained(tmp_path)


def test_a_half_precision_model_folder_is_opened_in_float32(tmp_path: Path) -> None:
    net = Net(Config())
    net.half().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="float16"):
        found = Net.from_pretrained(tmp_path)
    assert found.linear(torch.ones(1, 2)).dtype == torch.float32
    assert {p.dtype for p in found.parameters()} == {torch.float32}


SMALL = {"size": (8, 8), "base_channels": 16, "channel_multipliers": (1, 2), "attention_levels": (1,)}
NETWORKS: dict[str, Callable[[], Any]] = {
    "unet": lambda: unet.UNet(unet.UNetConfig(**SMALL, groups=8, classes=3)),
    "edm2": lambda: unet.EDM2UNet(unet.EDM2Config(**SMALL, head_channels=16)),
    "diffusers": lambda: UNet2DModel(
        8, block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
    ),
    "resnet": lambda: resnet.create_model("resnet20"),
    "densenet": lambda: resnet.create_model("densenet_40_12"),
    "highway": lambda: resnet.create_model("highway19"),
    "edsr": lambda: resnet.create_model("edsr_baseline_x2"),
}
ABSURD = [None, True, "x", -1, 0, 10**9, 2**63, 10**400, 1e308, float("nan"), [], [[]], [10**9] * 2, [1] * 9999, {}]


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_absurd_value_of_every_field_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    NETWORKS[kind]().save_pretrained(tmp_path)
    path, package = tmp_path / "config.json", unet if kind in ("unet", "edm2", "diffusers") else resnet
    document, messages = json.loads(path.read_text()), list[str]()
    for field in [*document, "unknown"]:
        for value in ABSURD:
            path.write_text(json.dumps(document | {field: value}))
            try:
                package.from_pretrained(tmp_path)
            except ValueError as error:
                messages.append(str(error))
    assert len(messages) > len(document) * len(ABSURD) / 2
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize("package", [unet, resnet])
@pytest.mark.parametrize("argument", [{"pretrained": True}, {"weights": "DEFAULT"}])
def test_the_way_to_published_weights_is_named(package, argument: dict) -> None:
    name = "ddpm-cifar10" if package is unet else "resnet18"
    with pytest.raises(ValueError, match=f"{next(iter(argument))}.*import_weights"):
        package.create_model(name, **argument)


def cifar(shortcut: str = "B") -> resnet.ResNetConfig:
    return resnet.ResNetConfig(
        blocks_per_stage=(1, 2, 1), widths=(16, 32, 64), stem="conv3", stem_channels=16, shortcut=shortcut
    )


NAMES = {
    "akamaster": ("conv1.weight", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.running_var", "linear.bias"),
    "chenyaofo": ("conv1.weight", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "fc.bias"),
    "transformers": (
        "resnet.embedder.embedder.convolution.weight",
        "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight",
        "resnet.encoder.stages.1.layers.0.layer.1.normalization.running_mean",
        "classifier.1.bias",
    ),
}


@pytest.mark.parametrize("layout", NAMES)
def test_published_names_of_resnets(layout: str) -> None:
    name = "resnet18" if layout == "transformers" else None
    make = (lambda: resnet.create_model(name)) if name else (lambda: resnet.build(cifar()))
    theirs = make().export_weights(layout)
    assert set(NAMES[layout]) <= theirs.keys()
    net = make()
    assert net.import_weights(theirs) == []
    assert_close(net.export_weights(layout), theirs, rtol=0, atol=0)


def test_a_missing_classifier_starts_fresh_with_a_message() -> None:
    theirs = resnet.create_model("resnet18").export_weights("transformers")
    body = {name.removeprefix("resnet."): t for name, t in theirs.items() if not name.startswith("classifier")}
    net = resnet.create_model("resnet18", num_classes=4)
    before = net.fc.weight.clone()
    (message,) = net.import_weights(body)
    assert "classifier.1.weight" in message
    assert_close(net.fc.weight, before, rtol=0, atol=0)
    assert_close(net.levels[0].conv1.weight, theirs["resnet.embedder.embedder.convolution.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("t", [7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor(7.0)])
@pytest.mark.parametrize("name", ["unet", "edm2"])
def test_one_time_for_all_images(name: str, t: float | torch.Tensor) -> None:
    shape = {"size": (8, 8), "base_channels": 16, "channel_multipliers": (1, 2), "attention_levels": (1,)}
    config = unet.UNetConfig(**shape, groups=8) if name == "unet" else unet.EDM2Config(**shape, head_channels=16)
    net = unet.build(config).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert_close(net(x, t), net(x, torch.tensor([7.0, 7.0])), rtol=0, atol=0)
        with pytest.raises(ValueError, match=r"4 channels.*3.*in_channels"):
            net(torch.randn(2, 4, 8, 8), t)


@pytest.mark.parametrize("label", [1, torch.tensor(1), torch.tensor([1]), torch.tensor([1], dtype=torch.int32)])
@pytest.mark.parametrize("embedding", ["table", "linear"])
def test_one_label_for_all_images(label: int | torch.Tensor, embedding: Any) -> None:
    size = {"base_channels": 16, "channel_multipliers": (1,), "groups": 8, "size": (8, 8)}
    net = unet.UNet(unet.UNetConfig(**size, attention_levels=(), classes=3, label_embedding=embedding))
    for weight in net.parameters():
        weight.data.add_(0.01 * torch.randn_like(weight))
    x = torch.randn(2, 3, 8, 8)
    assert_close(net(x, 7, label), net(x, 7, torch.tensor([1, 1])))
    assert not torch.equal(net(x, 7, label), net(x, 7, torch.tensor([1, 2])))


def test_fields_of_a_preset_can_be_changed() -> None:
    assert unet.preset("ddpm-cifar10", classes=np.int64(7), size=[8, 8]) == unet.preset(
        "ddpm-cifar10", classes=7, size=(8, 8)
    )
    assert type(unet.preset("ddpm-cifar10", classes=np.int64(7)).classes) is int
    assert unet.preset("ddpm-cifar10", in_channels=1).in_channels == 1
    with pytest.raises(ValueError, match=r"in_chanels.*in_channels"):
        unet.preset("ddpm-cifar10", in_chanels=1)
