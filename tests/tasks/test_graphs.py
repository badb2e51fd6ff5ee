"""Networks and sampler steps as ONNX and as programs of torch.export: equal to PyTorch, and what is refused."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import export
import resnet
from diffusion import DDPM, EDM, Flow, generators
from diffusion.seeds import standard_normal
from pictures.pixel_format import BYTES
from pictures.preprocessing import Preprocessing
from pipelines import graphs
from pipelines.classification import ImageClassifier
from pipelines.diffusion import DiffusionModel
from pipelines.superresolution import DiffusionUpscaler, EDSRUpscaler, diffusion_upscaler
from resnet import EDSR, EDSRConfig
from tests.tasks.small import SMALL
from tests.tasks.test_export import code
from unet import EDM2Config, EDM2UNet, UNet, UNetConfig

CLASSES = ("zero", "one", "two")
ADM = UNetConfig(
    in_channels=1, out_channels=1, size=(8, 8), base_channels=32, channel_multipliers=(1, 2), blocks_per_level=1,
    attention_levels=(1,), time_embedding="adm", conditioning="scale_shift", resample="block",
)  # fmt: skip
"""a small network that guided-diffusion can express"""
EDM2 = EDM2Config(
    in_channels=1, out_channels=1, size=(8, 8), base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1,
    attention_levels=(1,), head_channels=8,
)  # fmt: skip


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    """The network with random weights everywhere, so that no output is zero."""
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return net.eval()


def diffusion_model(objective=None, classes=True, net: UNetConfig | EDM2Config | None = None, **fields):
    config = net or replace(SMALL, in_channels=1, out_channels=1, base_channels=8, groups=4)
    is_edm2 = isinstance(config, EDM2Config)
    config = replace(config, classes=3, **({} if is_edm2 else {"null_label": True})) if classes else config
    network = (EDM2UNet if is_edm2 else UNet)(config)
    names = {"classes": CLASSES, "null_label": True} if classes else {}
    return DiffusionModel(shaken(network), objective or DDPM(), **names, **fields)


def upscaler() -> DiffusionUpscaler:
    net = replace(SMALL, in_channels=2, out_channels=1, base_channels=8, groups=4)
    return diffusion_upscaler(diffusion_model(classes=False, net=net, upscale=2))


def classifier() -> ImageClassifier:
    net = resnet.create_model("resnet20", num_classes=3, in_channels=1)
    return ImageClassifier(shaken(net), CLASSES, Preprocessing(size=(8, 8), channels=1), BYTES)


def edsr() -> EDSRUpscaler:
    return EDSRUpscaler(shaken(EDSR(EDSRConfig(channels=4, blocks=1))))


MODELS = {
    "ddpm": diffusion_model,
    "edm without labels": lambda: diffusion_model(EDM(), classes=False),
    "flow by EDM2": lambda: diffusion_model(Flow(), net=EDM2),
    "upscaler": upscaler,
    "classifier": classifier,
    "edsr": edsr,
}


@pytest.mark.parametrize("guidance", [0.5, 3.0])
@pytest.mark.parametrize(("objective", "sampler"), [(DDPM(), "ddim"), (EDM(), "euler"), (Flow(), "euler")])
def test_the_steps_draw_the_images_of_the_sampler(objective, sampler, guidance):
    model, steps = diffusion_model(objective), 5
    step = graphs.StepGraph(model).eval()
    times, label = objective.times(steps, "leading"), torch.tensor([2, 3])
    first = objective.level(times[:1])
    x = standard_normal(generators(0, range(2)), model.shape, "cpu")
    x = x if isinstance(objective, DDPM) else first.sigma * x
    with torch.no_grad():
        for k in range(steps):
            x = step(x, times[k], times[k + 1], label, guidance=torch.tensor(guidance))
    drawn = model.draw(range(2), label.tolist(), sampler=sampler, steps=steps, guidance=guidance)
    assert_close(x.clamp(-1, 1), drawn, rtol=0, atol=1e-5)


def written(folder: Path, model: graphs.Model, kind: str) -> dict:
    graphs.save_graphs(model, folder, kind)
    found = json.loads((folder / "graph.json").read_text())
    assert all(0 <= graph["difference"] <= found["tolerance"] for graph in found["graphs"].values())
    return found


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code(folder), names)
    return names


@pytest.mark.slow
def test_a_program_runs_without_this_project(tmp_path, monkeypatch):
    model = diffusion_model(EDM())
    found = written(tmp_path, model, "pt2")
    assert found["graphs"]["step.pt2"]["inputs"]["guidance"] == {"dtype": "float32", "shape": []}
    assert found["null_label"] == 3
    assert found["start_scale"] == 80
    names = run_card(tmp_path, monkeypatch)
    step = graphs.StepGraph(model).eval()
    x = found["start_scale"] * np.random.default_rng(0).standard_normal((4, *model.shape), np.float32)
    x, times = torch.from_numpy(x), torch.tensor(found["times"])
    with torch.no_grad():
        for k in range(len(times) - 1):
            x = step(x, times[k], times[k + 1], torch.arange(4) % 3, guidance=torch.tensor(1.0))
    assert_close(torch.from_numpy(names["x"]), x.clamp(-1, 1), rtol=0, atol=1e-5)
    assert names["images"].dtype == np.uint8


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("target", graphs.SUFFIXES)
def test_every_kind_of_model(tmp_path, monkeypatch, kind, target):
    found = written(tmp_path, MODELS[kind](), target)
    names = {"step", "network"} if "times" in found else {"network"}
    assert {Path(name).stem for name in found["graphs"]} == names
    result = run_card(tmp_path, monkeypatch)
    assert any(name in result for name in ("images", "found", "enlarged"))


@pytest.mark.slow
def test_code_of_onnx_needs_no_pytorch(tmp_path, monkeypatch):
    written(tmp_path, diffusion_model(), "onnx")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "residual", None)
    assert run_card(tmp_path, monkeypatch)["images"].shape == (4, 1, 8, 8)


def test_what_no_graph_holds_is_refused(monkeypatch):
    graphs.check_graphs(diffusion_model(), "onnx")
    with pytest.raises(ValueError, match="windows"):
        graphs.check_graphs(diffusion_model().in_windows(), "pt2")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    graphs.check_graphs(diffusion_model(), "pt2")  # needs no other package


def test_the_program_of_a_network_for_any_size_is_checked_before_it_is_published(tmp_path, capsys, monkeypatch):
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    edsr().save(model)
    run = [str(model), "--to", "pt2", "--out", str(out)]
    export.main(run)
    assert run_card(out, monkeypatch)["enlarged"].shape == (1, 3, 80, 60)
    before = {path: path.read_bytes() for path in out.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(graphs, "TOLERANCE", -1.0)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        export.main(run)
    assert re.fullmatch(r".*network\.pt2 differs.*\n", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("ddpm", "adm"), ("classifier", "akamaster"), ("edsr", "edsr-pytorch"), ("flow by EDM2", "edm2")],
)
def test_weights_under_the_names_of_another_library(tmp_path, kind, layout):
    model, folder = MODELS[kind](), tmp_path / "model"
    if layout == "adm":
        model = diffusion_model(net=ADM)
    folder.mkdir()
    model.save(folder)
    export.main([str(folder), "--to", layout, "--out", str(tmp_path / "out")])
    found = load_file(tmp_path / "out" / "weights.safetensors")
    assert_close(found, dict(model.net.export_weights(layout)), rtol=0, atol=0)
    assert found.keys() != model.net.state_dict().keys()
    assert "weights.safetensors" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--to", "onnx", "--label", "one"], "label='one'"),
        (["--to", "timm"], "'timm'"),
        (["--to", "onx"], "'onx'; did you mean onnx"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flags, named):
    model = tmp_path / "model"
    model.mkdir()
    diffusion_model().save(model)
    with pytest.raises(SystemExit) as end:
        export.main([str(model), *flags, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert named in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_graphs_are_not_uploaded(tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main([str(tmp_path), "--to", "onnx", "--push", "me/model"])
    assert "--to onnx" in capsys.readouterr().err
