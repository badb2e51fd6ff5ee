"""Model folders of diffusers and of this project; publishing to a replaced hub."""

import ast
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

import unet
from unet import EDM2Config, EDM2UNet, UNet, UNetConfig
from unet.layouts.diffusers import _REFUSED, Arguments, config_from

ARGUMENTS: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
TINY = UNetConfig(size=(8, 8), base_channels=16, channel_multipliers=(1, 2), attention_levels=(1,), blocks_per_level=1)
TINY_EDM2 = EDM2Config(
    size=(8, 8),
    base_channels=16,
    channel_multipliers=(1, 2),
    attention_levels=(1,),
    blocks_per_level=1,
    head_channels=16,
    logvar_channels=8,
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def theirs() -> UNet2DModel:
    torch.manual_seed(0)
    model = UNet2DModel(**ARGUMENTS).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.3)
    return model


@pytest.fixture
def folder(theirs: UNet2DModel, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_same(net: UNet, theirs: UNet2DModel) -> None:
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 977])
    with torch.no_grad():
        expected = theirs(x, t).sample
        assert_close(net(x, t), expected, rtol=0, atol=2e-5 * expected.std().item())
    assert not net.training
    assert all(p.requires_grad for p in net.parameters())


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_model_folder_of_diffusers(folder: Path, theirs: UNet2DModel) -> None:
    assert {file.name for file in folder.iterdir()} == {"config.json", WEIGHTS}
    assert_same(UNet.from_pretrained(folder), theirs)
    assert_same(UNet.from_pretrained(str(folder)), theirs)


def test_a_model_folder_with_a_table_of_frequencies(tmp_path: Path) -> None:
    theirs = UNet2DModel(**ARGUMENTS, time_embedding_type="fourier").eval()
    nn.init.normal_(theirs.conv_out.weight)
    theirs.save_pretrained(tmp_path)
    assert_same(UNet.from_pretrained(tmp_path), theirs)


def test_a_pipeline_folder_of_diffusers(theirs: UNet2DModel, tmp_path: Path) -> None:
    DDPMPipeline(unet=theirs, scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    assert (tmp_path / "unet" / WEIGHTS).is_file()
    assert_same(UNet.from_pretrained(tmp_path), theirs)


def test_the_old_names_of_attention(folder: Path, theirs: UNet2DModel) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(folder / WEIGHTS)
    renamed = {}
    for name, tensor in state.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = tensor
    assert len(set(renamed) - set(state)) == 4 * 8
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    assert_same(UNet.from_pretrained(folder), theirs)


def test_a_config_with_fields_left_out_has_the_defaults_of_diffusers(folder: Path, theirs: UNet2DModel) -> None:
    defaults = {name: value for name, value in UNet2DModel().config.items() if not name.startswith("_")}
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in defaults.items()}
    assert tuples == vars(Arguments())
    edit(folder / "config.json", lambda d: [d.pop(n) for n in list(d) if n not in ARGUMENTS and n != "_class_name"])
    assert_same(UNet.from_pretrained(folder), theirs)


@pytest.mark.parametrize("kind", ["model", "pipeline", "ours"])
def test_hub_ids(kind: str, theirs: UNet2DModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "model":
        theirs.save_pretrained(tmp_path)
    elif kind == "pipeline":
        DDPMPipeline(unet=theirs, scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    else:
        net = UNet(config_from(dict(theirs.config)))
        net.import_weights(theirs.state_dict(), layout="diffusers")
        net.save_pretrained(tmp_path)
    asked: list[Any] = []

    def snapshot_download(repo_id: str, allow_patterns: list[str], revision: str | None = None) -> str:
        asked.extend([repo_id, revision, *allow_patterns])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for name, revision in (("someone/net", None), ("someone/net@1a2b3c", "1a2b3c"), ("someone/net@pr/1", "pr/1")):
        asked.clear()
        assert_same(UNet.from_pretrained(name), theirs)
        assert asked == ["someone/net", revision, "*.json", "*.safetensors"]
    for name in ("someone/net@", "net@1a2b3c", "@someone/net"):
        with pytest.raises(ValueError, match=f"no folder '{name}'.*owner/name@revision"):
            UNet.from_pretrained(name)


def test_pickled_and_missing_weights_are_refused(folder: Path, theirs: UNet2DModel) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"no {WEIGHTS} in "):
        UNet.from_pretrained(folder)
    torch.save(theirs.state_dict(), folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin.* pickle.*safe_serialization"):
        UNet.from_pretrained(folder)
    shutil.copy(folder / "diffusion_pytorch_model.bin", folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"safetensors is a pickle, which could run code, and is not opened;"):
        UNet.from_pretrained(folder)


def test_damaged_or_foreign_folders_are_refused(folder: Path) -> None:
    whole, config = (folder / WEIGHTS).read_bytes(), folder / "config.json"
    (folder / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is not a complete safetensors file .*: copy or save it again$"):
        UNet.from_pretrained(folder)
    (folder / WEIGHTS).write_bytes(whole)
    edit(config, lambda d: d.update(norm_num_groups=4, block_out_channels=[16, 64]))
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: the weights do not fit this network: .*, expected \("):
        UNet.from_pretrained(folder)
    edit(config, lambda d: d.update(_class_name="UNet2DConditionModel"))
    with pytest.raises(ValueError, match=r"config\.json describes a UNet2DConditionModel; only UNet2DModel can be"):
        UNet.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"describes a 'UNet2DConditionModel', not a unet\.EDM2UNet"):
        EDM2UNet.from_pretrained(folder)
    config.unlink()
    with pytest.raises(ValueError, match=r"is not a model folder: it has no config\.json"):
        UNet.from_pretrained(folder)


def test_a_config_too_large_for_memory_is_refused(folder: Path) -> None:
    """Networks are laid out without memory before any weight is read."""
    edit(folder / "config.json", lambda d: d.update(block_out_channels=[2**20, 2**20]))
    with pytest.raises(
        ValueError, match=r"do not fit this network: .*linear_1\.weight has \(128, 32\), expected \(4194304"
    ):
        UNet.from_pretrained(folder)
    edit(folder / "config.json", lambda d: d.update(block_out_channels=[2**31, 2**31]))
    with pytest.raises(ValueError, match=r"config\.json: base_channels=2147483648.*16,777,216"):
        UNet.from_pretrained(folder)


# Every argument that is refused, an example of it, and what is in the error besides the rule.
REFUSED: dict[str, dict[str, Any]] = {
    "block_out_channels": {"block_out_channels": [32, 64, 64]},
    "center_input_sample": {"center_input_sample": True},
    "time_embedding_type": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "time_embedding_dim": {"time_embedding_dim": 100},
    "down_block_types": {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
    "mid_block_type": {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
    "mid_block_scale_factor": {"mid_block_scale_factor": 1.4},
    "downsample_type": {"downsample_type": "resnet"},
    "act_fn": {"act_fn": "gelu"},
    "attn_norm_num_groups": {"attn_norm_num_groups": 4},
    "resnet_time_scale_shift": {"resnet_time_scale_shift": "spatial"},
    "norm_num_groups": {"norm_num_groups": None},
    "class_embed_type": {"class_embed_type": "timestep"},
    "downsample_padding": {"downsample_padding": 2},
}


def test_every_refusal_has_an_example() -> None:
    assert set(REFUSED) == set(_REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_arguments_are_refused_by_name(name: str, folder: Path) -> None:
    edit(folder / "config.json", lambda d: d.update(REFUSED[name]))
    line = rf"config\.json: UNet2DModel with {name}=.* cannot be expressed here: {re.escape(_REFUSED[name][0])}$"
    with pytest.raises(ValueError, match=line):
        UNet.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"flip_sin_to_cos": True, "freq_shift": 1},
            "time_embedding_type='positional' cannot be expressed here: ",
        ),
        (
            {"resnet_time_scale_shift": "scale_shift"},
            "attn_norm_num_groups=None cannot .*scale_shift",
        ),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, r"up_block_types=.* decoder mirrors the encoder, \('AttnUpBl"),
        (
            {"down_block_types": ["DownBlock2D", "NoBlock"]},
            "down_block_types=.* DownBlock2D, AttnDownBlock2D",
        ),
        ({"block_out_channels": []}, "block_out_channels=.* needs one width, above 0, for each"),
        ({"block_out_channels": [0, 32]}, "block_out_channels=.* needs one width, above 0, for each"),
        ({"block_out_channels": 32}, r"block_out_channels=32 should be tuple\[int, \.\.\.\]"),
        ({"norm_eps": "1e-5"}, "norm_eps='1e-5' should be float"),
        ({"sample_size": [8, 8, 8]}, r"sample_size=.8, 8, 8. should be int \| tuple\[int, int\] \| None"),
        ({"layers_per_bloc": 2}, "unknown field 'layers_per_bloc'; did you mean layers_per_block"),
        ({"attention_head_dim": 7}, "level 1: head_channels=7 does not divide 64 channels; one of: 1, 2, 4"),
        (
            {"norm_num_groups": 24},
            "cannot express groups=24: its GroupNorm of 32 channels has 24 groups",
        ),
        ({"sample_size": 9}, "9x9 px cannot be halved 1 times"),
        ({"layers_per_block": 0}, "blocks_per_level=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / "config.json", lambda d: d.update(change))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}") as error:
        UNet.from_pretrained(folder)
    assert "\n" not in str(error.value)


class Hub:
    """What stands in for `huggingface_hub.HfApi`: keeps what it is given in a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.error = root, list[tuple[str, dict[str, Any]]](), None

    def __call__(self) -> "Hub":
        return self

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if self.error:
            raise self.error
        self.calls.append((repo_id, options))
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://huggingface.co/{repo_id}"

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return (self.root / repo_id / filename).is_file()

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.calls.append((repo_id, {"commit_message": commit_message}))
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", stand_in)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo_id, **_: str(stand_in.root / repo_id))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return stand_in


@pytest.mark.parametrize("config", [TINY, TINY_EDM2])
def test_a_pushed_folder_can_be_loaded(config: UNetConfig | EDM2Config, hub: Hub) -> None:
    net = unet.build(replace(config, classes=3))
    assert net.push_to_hub("me/tiny", private=True, commit_message="First") == "https://huggingface.co/me/tiny"
    assert hub.calls == [
        ("me/tiny", {"private": True, "exist_ok": True}),
        ("me/tiny", {"commit_message": "First"}),
    ]
    folder = hub.root / "me" / "tiny"
    assert {file.name for file in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: residual-diffusion\ntags:\n- residual-diffusion\n- diffusion\n")
    assert f"{sum(p.numel() for p in net.parameters()):,} parameters (float32)" in card
    assert "# license: name yours here" in card
    assert '"classes": 3' in card
    assert not [file for file in folder.iterdir() if b"hf_secret" in file.read_bytes()]
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code.split("\n")) <= 4
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["net"].config == net.config
    assert_close(names["net"].state_dict(), net.state_dict(), rtol=0, atol=0)


def test_an_existing_card_is_kept(hub: Hub) -> None:
    net = UNet(TINY)
    net.push_to_hub("me/tiny")
    card = hub.root / "me" / "tiny" / "README.md"
    card.write_text("mine")
    with pytest.warns(UserWarning, match=r"me/tiny keeps its README\.md"):
        net.push_to_hub("me/tiny")
    assert card.read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            LocalTokenNotFoundError("Token is required, but no token found.\nMore."),
            "Token is required, but no token fo",
        ),
        (HFValidationError("Repo id must use alphanumeric chars"), "Repo id must use alphanumeric chars"),
        (ConnectionError("no route"), "no route"),
    ],
)
def test_hub_errors_are_one_line(error: Exception, reason: str, hub: Hub) -> None:
    hub.error = error
    with pytest.raises(ValueError, match=rf"the hub refused 'me/tiny': {reason}.* \(log in with") as found:
        UNet(TINY).push_to_hub("me/tiny")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["tiny", "/tiny", "me/", "a/b/c", ""])
def test_a_repository_has_an_owner_and_a_name(name: str, hub: Hub) -> None:
    with pytest.raises(ValueError, match=f"repo_id='{name}' should be of the form 'owner/name'"):
        UNet(TINY).push_to_hub(name)
    assert not hub.calls


@pytest.mark.parametrize(
    "name",
    ['x"); import os; ("', "x\n---\nlicense: mit", "<script>", "# heading", "```", "\x1b[31m", "bad \udcff byte"],
)
def test_a_name_has_no_effect_on_the_card(name: str) -> None:
    card = UNet(UNetConfig(size=(8, 8), base_channels=16, groups=8)).model_card(f"me/{name}")
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert ast.literal_eval(call.args[0]) == f"me/{name}"
    (title,) = [line for line in card.splitlines() if line.startswith("# ") and not line.startswith("# license")]
    assert not re.search(r"(?<!\\)[`<>#]", title[2:])
    assert card.count("\n---\n") == 1
    assert card.encode().decode().replace("\n", "").isprintable()
