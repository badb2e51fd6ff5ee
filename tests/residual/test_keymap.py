"""Renaming of weights; model folders."""

import itertools
import json
from dataclasses import dataclass, fields
from typing import Literal

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from residual.weights.config import read_config
from residual.weights.keymap import (
    Place,
    Rule,
    check_state,
    export_state,
    import_state,
    linear_to_conv,
    qkv_rows,
    stacked_to_conv,
)
from residual.weights.pretrained import Pretrained

TABLE = {
    "pair": [Rule("first", "a.0"), Rule("second", "b")],
    "attention": [Rule("qkv", ("q", "k", "v"), stacked_to_conv), Rule("out", "o", linear_to_conv())],
}
PLACES = [Place("pair", "net", "model"), Place("attention", "att", "mid.att")]
OURS = {
    "net.first.weight": torch.randn(2, 3),
    "net.first.bias": torch.randn(2),
    "net.second.gain": torch.randn(1),
    "att.qkv.weight": torch.randn(12, 4, 1, 1),
    "att.qkv.bias": torch.randn(12),
    "att.out.weight": torch.randn(4, 4, 1, 1),
}


def test_export_inverts_import_exactly() -> None:
    theirs = export_state(PLACES, TABLE, OURS)
    assert set(theirs) == {
        *("model.a.0.weight", "model.a.0.bias", "model.b.gain", "mid.att.o.weight"),
        *(f"mid.att.{n}.{leaf}" for n in "qkv" for leaf in ("weight", "bias")),
    }
    assert theirs["mid.att.k.weight"].shape == (4, 4)
    back = import_state(PLACES, TABLE, theirs, OURS)
    assert_close(back, OURS, rtol=0, atol=0)


@pytest.mark.parametrize("order", ["three n d", "n three d", "n d three"])
@pytest.mark.parametrize("axes", [2, 3, 4])
def test_attention_rows_are_reordered_in_both_directions(order: str, axes: int) -> None:
    """Row (head i, channel j, part k) of theirs is row (part k, head i, channel j) of ours, by value."""
    heads, width = 3, 2
    transform, n = qkv_rows(order, axes), 3 * heads * width
    ours = torch.arange(n)[:, None, None, None] * torch.ones(1, 4, 1, 1)
    (theirs,) = transform.outward(ours, heads)
    assert theirs.dim() == axes
    place = {"three": range(3), "n": range(heads), "d": range(width)}
    rows = list(itertools.product(*(place[axis] for axis in order.split())))
    index = [dict(zip(order.split(), row, strict=True)) for row in rows]
    expected = [(i["three"] * heads + i["n"]) * width + i["d"] for i in index]
    assert theirs.flatten(1)[:, 0].tolist() == expected
    assert_close(transform.inward([theirs], heads), ours, rtol=0, atol=0)


def test_mismatches_are_named() -> None:
    theirs = export_state(PLACES, TABLE, OURS)
    del theirs["model.a.0.bias"]
    theirs["stray"] = torch.zeros(1)
    theirs["model.b.gain"] = torch.zeros(7)
    with pytest.raises(
        ValueError, match=r"1 missing: model\.a\.0\.bias; 1 unknown: stray; .*gain has \(7,\), expected \(1,\)"
    ):
        import_state(PLACES, TABLE, theirs, OURS)
    with pytest.raises(ValueError, match=r"3 missing: mid\.att\.q\.weight, mid\.att\.k\.weight, mid\.att\.v\.weight"):
        import_state(
            PLACES,
            TABLE,
            {
                k: v
                for k, v in export_state(PLACES, TABLE, OURS).items()
                if "att" not in k or "weight" not in k or ".o." in k
            },
            OURS,
        )


def test_long_lists_of_mismatches_are_shortened() -> None:
    with pytest.raises(ValueError, match=r"6 missing: \S+, \S+, \S+, \S+, …"):
        check_state({}, OURS)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 2
    rate: float = 0.5
    sizes: tuple[int, ...] = (1,)
    pair: tuple[int, int] | None = None
    kind: Literal["a", "b"] = "a"
    flag: bool = False


class Net(Pretrained):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layer = nn.Conv2d(3, config.width, 3)
        self.norm = nn.BatchNorm2d(config.width)


def test_saved_folder_restores_the_network(tmp_path) -> None:
    net = Net(Config(width=3, sizes=(4, 5), pair=(6, 7), kind="b")).to(memory_format=torch.channels_last)
    net.save_pretrained(tmp_path / "model")
    again = Net.from_pretrained(tmp_path / "model")
    assert again.config == net.config
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())
    assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, "unknown field 'widht'; did you mean width"),
        ({"zzz": 3}, "unknown field 'zzz'"),
        ({"width": "3"}, "width='3' should be int"),
        ({"width": True}, "width=True should be int"),
        ({"rate": "fast"}, "rate='fast' should be float"),
        ({"sizes": [1, "2"]}, r"sizes=\[1, '2'\] should be tuple\[int, ...\]"),
        ({"sizes": 1}, r"sizes=1 should be tuple\[int, ...\]"),
        ({"pair": [1]}, r"pair=\[1\] should be tuple\[int, int\] \| None"),
        ({"kind": "c"}, r"kind='c' should be Literal\['a', 'b'\]"),
        ({"format_version": 3}, r"config\.json.*format_version 3.* 2"),
        ({"format_version": 1}, "format_version 1.*9782c87.* 2"),
        ({"model": "other.Net"}, "describes a 'other.Net', not a"),
    ],
)
def test_wrong_config_fields_are_named(tmp_path, change, message) -> None:
    Net(Config()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Net.from_pretrained(tmp_path)


def test_integers_fit_floats_and_lists_become_tuples() -> None:
    given = {"width": 2, "rate": 1, "sizes": [1, 2], "pair": None, "kind": "a", "flag": False}
    assert read_config(Config, given) == Config(rate=1, sizes=(1, 2))


@pytest.mark.parametrize("name", [field.name for field in fields(Config)])
def test_missing_fields_are_refused(tmp_path, name) -> None:
    """A default that changes later would change the network."""
    Net(Config()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    del document[name]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"config\.json: missing field '{name}': add it, or save the model again"):
        Net.from_pretrained(tmp_path)
    del document["model"], document["format_version"]
    assert read_config(Config, document, optional=[name]) == Config()


def test_damaged_files_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no folder '.*absent'; give a model folder or a hub id"):
        Net.from_pretrained(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"is not a model folder: it has no config\.json"):
        Net.from_pretrained(tmp_path)
    Net(Config()).save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        Net.from_pretrained(tmp_path)
    weights.unlink()
    config.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"config\.json.*UTF-8"):
        Net.from_pretrained(tmp_path)
    config.write_text(text)
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        Net.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps(json.loads(text) | {"width": 3}))
    with pytest.raises(
        ValueError, match=r"model\.safetensors: .* of another shape: layer\.weight has \(2, 3, 3, 3\), expected \(3"
    ):
        Net.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        Net.from_pretrained(tmp_path)
    config.write_text("[]")
    with pytest.raises(ValueError, match="should hold a JSON object, not a list"):
        Net.from_pretrained(tmp_path)


def test_unreachable_hub_id_is_named(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'someone/net' is neither a local folder nor a repository"):
        Net.from_pretrained("someone/net")
