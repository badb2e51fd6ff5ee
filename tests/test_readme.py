"""The Python of the README and of the page about published networks runs, and recipes and files exist."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import save_file
from torch.testing import assert_close

import resnet
import unet
from diffusion import DDPM
from pipelines.diffusion import DiffusionModel
from tasks import RUNS
from tests.tasks.small import SMALL
from training.cli import parse
from unet.layouts import LAYOUTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "published.md").read_text()
DRAWING, BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PUBLISHED, ZOO = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_python_about_drawing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    config = replace(SMALL, in_channels=1, out_channels=1, classes=10, null_label=True)
    classes = tuple(map(str, range(10)))
    DiffusionModel(unet.UNet(config), DDPM(), classes, null_label=True).save(tmp_path / "runs" / "digits")
    names: dict = {}
    exec(DRAWING, names)
    assert names["images"].shape == (16, 1, 8, 8)
    assert names["images"].abs().max() <= 1


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(BLOCKS, names)
    assert names["y"].shape == (2, 128, 16, 16)
    assert names["eps"].shape == (2, 3, 32, 32)
    assert (tmp_path / "folder" / "model.safetensors").is_file()


def test_the_python_about_published_networks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder in the place of the hub's repository, and a list in the place of the upload."""
    monkeypatch.chdir(tmp_path)
    pushed: list[str] = []
    ddpm = unet.UNet(unet.preset("ddpm-cifar10"))
    save_file(ddpm.export_weights("diffusers"), tmp_path / "diffusion_pytorch_model.safetensors")
    arguments = {"_class_name": "UNet2DModel", **unet.diffusers_config(ddpm.config)}
    (tmp_path / "config.json").write_text(json.dumps(arguments))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    monkeypatch.setattr(unet.UNet, "push_to_hub", lambda net, name, private: pushed.append(name))
    edm = unet.build(unet.preset("edm-cifar10-ddpmpp")).export_weights("edm")
    save_file(edm, tmp_path / "edm.safetensors")
    names: dict = {}
    exec(PUBLISHED, names)
    assert pushed == ["me/ddpm-cifar10"]
    assert f"# {len(unet.list_presets())} of them" in PUBLISHED
    assert set(re.findall(r"^\| `(.*?)` \|", PAGE, re.MULTILINE)) == set(LAYOUTS)
    assert_close(names["weights"], edm, rtol=0, atol=0)


def test_the_python_about_the_zoo_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(resnet.create_model("resnet50").export_weights("torchvision"), tmp_path / "resnet50.safetensors")
    names: dict = {"torch": torch}
    exec(ZOO, names)
    assert "1000 classes in the file and 10 in this network" in capsys.readouterr().out
    assert names["c5"].shape == (2, 2048, 7, 7)


def test_the_files_that_the_readme_names_exist() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(links) > 4
    for name in [*links, *re.findall(r"configs/\S+?\.yaml", README)]:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_recipe_can_be_parsed_and_states_hardware_time_and_result(recipe: str) -> None:
    path = ROOT / "configs" / recipe
    assert parse(RUNS, ["--config", str(path)]).folder.name == path.stem
    header = " ".join(line.strip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    items = dict(re.findall(r"\b(Hardware|Time|Result): (.+?)(?= (?:Time|Result): |$)", header))
    assert items.keys() == {"Hardware", "Time", "Result"}, items
    assert re.search(r"\b(CPU|GPU)s?\b", items["Hardware"]), items
    for name in ("Time", "Result"):
        assert re.search(r"\d|minute|not yet measured", items[name]), items


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs" / "accelerate").glob("*.yaml")))
def test_accelerate_reads_its_config_files(name: str) -> None:
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / name))
    assert config.num_processes >= 1
    assert config.mixed_precision == "no"
