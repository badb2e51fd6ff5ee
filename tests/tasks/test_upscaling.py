"""Diffusion models that enlarge: what they are conditioned on, tiles, what they save, what they refuse."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

import evaluate
import export
import resnet
import sample
from diffusion import DDPM, EDM, Condition, choose_sampler, generators
from diffusion import sample as draw
from pictures.pixel_format import BYTES, PixelFormat
from pictures.tiles import Tiles, finish
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.superresolution import DiffusionUpscaler, blurred, diffusion_upscaler, in_tiles, load_upscaler, shrunk
from tasks.denoising import DiffusionAugment, DiffusionConfig, DiffusionTask
from tasks.diffusion import DiffusionRun
from tasks.enlargement import measure
from tasks.grid_evaluation import SampleConfig
from tests.tasks.small import sample_on_two_processes
from training.data import DataConfig, Images, open_images
from training.random import GlobalRandom
from training.task import Batch
from unet import UNetConfig, build, preset

SMALL = UNetConfig(
    base_channels=8, channel_multipliers=(1, 2), attention_levels=(), blocks_per_level=1, groups=4, size=(16, 16)
)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def small_run(**fields) -> DiffusionRun:
    values = {
        "data": DataConfig(source="photographs", validation=None),
        "model": SMALL,
        "objective": EDM(),
        "diffusion": DiffusionConfig(upscale=2, label_dropout=0.1),
        "augment": DiffusionAugment(crop_px=16),
        "sample": SampleConfig(steps=2, num=1, batch=3),
    }
    return DiffusionRun(**values | fields)


def images(count: int = 3, *shape: int) -> Images:
    return Images(pixels(count, *(shape or (3, 20, 22))))


@pytest.fixture(scope="module")
def task() -> DiffusionTask:
    """A task whose network has random weights: with the initial ones the output is zero."""
    task = small_run().build(images())
    generator = torch.Generator().manual_seed(0)
    for weight in task.model.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    task.model.eval()
    return task


@pytest.fixture(scope="module")
def folder(task: DiffusionTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    task.save(task.model, path)
    return path


def labelled(folder: Path, **fields: int) -> Path:
    """A small network of the kind of ADM's upsamplers: it has a learned variance, and needs a label."""
    changes = {"base_channels": 8, "channel_multipliers": (1, 2), "attention_levels": (1,), "classes": 3}
    changes |= {"size": (16, 16), "blocks_per_level": 1, "groups": 4, "heads": 2} | fields
    config = replace(preset("adm-upsampler-64-256"), **changes)
    torch.manual_seed(0)
    model = DiffusionModel(build(config).eval(), DDPM(timesteps=100), ("a", "b", "c"), upscale=4)
    model.save(folder)
    return folder


# --- training --------------------------------------------------------------------------------------------------------


def test_the_network_receives_the_enlarged_small_image(task: DiffusionTask) -> None:
    seen = []

    class Net(nn.Module):
        def forward(self, x, c_noise, label=None):
            seen.append(x)
            return torch.zeros(len(x), 3, *x.shape[2:])

    random = GlobalRandom(0, 0, "augment", 3, slice(None), "cpu")
    batch = task.prepare(Batch(BYTES.to_unit(torch.from_numpy(images().read(np.arange(3)))), None), random)
    assert batch.image.shape == (3, 3, 16, 16)
    task.loss(Net(), batch, random)
    assert_close(seen[0][:, 3:], blurred(shrunk(batch.image, 2), 2))
    assert task.model.config.in_channels == 6
    assert [tuple(each.shape) for each in task.example(batch.image)] == [(3, 6, 16, 16), (3,)]


def test_the_evaluation_enlarges_the_first_held_out_images(task: DiffusionTask, tmp_path: Path) -> None:
    Image.fromarray(pixels(20, 24, 3)).save(tmp_path / "test.png")
    data = DataConfig(source=str(tmp_path), validation="train", labels=False, cache=tmp_path / "cache")
    (evaluation,) = small_run(data=data).build(open_images(data)).evaluations
    assert evaluation.conditions["count"] == 1
    upscaler = evaluation.make(task.model)
    assert (upscaler.tiles, upscaler.options["steps"]) == (Tiles(8, 2, 3), 2)
    figures, rows = measure(upscaler, images(3, 3, 20, 24), count=2)
    assert len(rows) == 2
    assert figures["bicubic_psnr"] > figures["psnr"] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": DiffusionAugment(crop_px=24)}, r"augment\.crop_px=24.*20 x 22 px"),
        ({"augment": DiffusionAugment(crop_px=18), "diffusion": DiffusionConfig(upscale=4)}, r"upscale=4.*18 x 18 px"),
        ({"sample": SampleConfig(sampler="ddim")}, "sampler=ddim"),
        ({"augment": DiffusionAugment(crop_px=15)}, "15"),
    ],
)
def test_what_cannot_be_trained(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_run(**fields).build(images())


def test_deep_pictures_cannot_be_trained() -> None:
    deep = Images(pixels(2, 3, 16, 16).astype(np.uint16), pixel_format=PixelFormat(dtype="uint16", high=65535))
    with pytest.raises(ValueError, match=r"diffusion\.upscale=2.*uint16.*data\.bits=8"):
        small_run().build(deep)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionConfig(upscale=1), "upscale=1"),
        (lambda: DiffusionConfig(upscale=17), "upscale=17"),
        (lambda: DiffusionAugment(crop_px=0), "crop_px=0"),
    ],
)
def test_settings_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- enlarging -------------------------------------------------------------------------------------------------------


def test_a_picture_of_any_size(folder: Path) -> None:
    upscaler = replace(load_upscaler(folder), options={"steps": 2})
    made = upscaler.upscale([pixels(5, 7, 3), pixels(19, 4, 3), pixels(5, 7, 3)])
    assert [each.shape for each in made] == [(10, 14, 3), (38, 8, 3), (10, 14, 3)]
    assert (made[0] != made[2]).any(), "each picture has its own noise"
    again = replace(upscaler, seed=0).upscale([pixels(5, 7, 3)])[0]
    np.testing.assert_array_equal(again, made[0])
    assert (replace(upscaler, seed=1).upscale([pixels(5, 7, 3)])[0] != made[0]).any()
    other = upscaler.upscale([255 - pixels(5, 7, 3)])[0]
    assert (other != made[0]).any(), "it depends on the picture"


def test_enlarging_is_sampling_with_the_linearly_enlarged_picture_as_condition(tmp_path: Path) -> None:
    """As the network of ADM's upsamplers concatenates it, by a plain call of the sampler."""
    upscaler = load_upscaler_with_label(labelled(tmp_path), 1)
    low = BYTES.to_unit(torch.from_numpy(pixels(1, 3, 4, 4)))
    image = F.interpolate(low, (16, 16), mode="bilinear")
    condition, chosen = Condition(torch.tensor([1]), image), choose_sampler("ddim", upscaler.model.formulation, 3)
    shape, source = (3, 16, 16), generators(0, [7])
    *_, x = draw(upscaler.model.denoiser(), upscaler.model.formulation, chosen, source, shape, condition, steps=3)
    assert_close(upscaler.enlarge(low, 7), x.clamp(-1, 1), rtol=0, atol=0)


def test_there_is_a_pause_after_each_step(folder: Path) -> None:
    upscaler, low = replace(load_upscaler(folder), options={"steps": 2}), torch.rand(1, 3, 5, 7)
    assert list(upscaler.enlarging(low)) == [0, 0.5, 1]
    assert_close(finish(upscaler.enlarging(low, 3)), upscaler.enlarge(low, 3), rtol=0, atol=0)


def test_tiles_are_denoised_together() -> None:
    """A denoiser of single pixels is the same in tiles, for all that it is given; one of a tile's mean is not."""
    x, image = torch.rand(2, 1, 3, 20, 14).unbind(0)
    condition, time = Condition(label=torch.tensor([2]), image=image), torch.tensor([0.5])

    def by_pixel(x, time, condition):
        factor = (time + condition.label)[:, None, None, None]
        return factor * x - condition.image

    tiled = in_tiles(by_pixel, Tiles(8, 4, batch=3))
    assert_close(tiled(x, time, condition), by_pixel(x, time, condition))
    by_mean = lambda x, time, condition: x.mean(dim=(2, 3), keepdim=True).expand_as(x)  # noqa: E731
    mean = in_tiles(by_mean, Tiles(8, 4))(x, time, condition)
    assert (mean - by_mean(x, time, condition)).abs().max() > 0.01
    steps = (mean.diff(dim=2).abs().amax(), mean.diff(dim=3).abs().amax())
    spread = mean.amax() - mean.amin()
    assert max(steps) < spread, "neighbouring tiles are blended"


def test_guidance_and_labels_of_an_adm_upsampler(tmp_path: Path) -> None:
    upscaler = load_upscaler_with_label(labelled(tmp_path), 1)
    assert (upscaler.scale, upscaler.tiles) == (4, Tiles(4, 1))
    assert upscaler.upscale([pixels(5, 3, 3)])[0].shape == (20, 12, 3)
    for sampler in ("ddpm", "ddim", "heun"):
        found = replace(upscaler, options={"steps": 3, "sampler": sampler}).upscale([pixels(5, 3, 3)])[0]
        assert found.std() > 0
    with pytest.raises(ValueError, match="give a label"):
        load_upscaler(tmp_path).upscale([pixels(5, 3, 3)])


def load_upscaler_with_label(folder: Path, label: int) -> DiffusionUpscaler:
    return diffusion_upscaler(load_model(folder), label=label, options={"steps": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tiles": Tiles(3, 0)}, r"tile=3 makes 6 px.*stride of 4 px.*multiple of 2"),
        ({"options": {"steps": 0}}, "steps=0"),
        ({"options": {"sampler": "dimm"}}, "dimm"),
        ({"options": {"guidance": 2.0}}, "guidance=2"),
        ({"tiles": Tiles(2, 0)}, r"tile=2 makes 4 px.*mirrors.*8 px.*at least 4"),
    ],
)
def test_options_that_do_not_suit(folder: Path, fields: dict, message: str) -> None:
    deeper = replace(SMALL, channel_multipliers=(1, 1, 1), in_channels=6, padding="reflect")
    model = replace(load_model(folder), net=build(deeper))
    with pytest.raises(ValueError, match=message):
        diffusion_upscaler(model, **fields).check()


def test_the_model_folder(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "diffusion.json").read_text())
    assert document["upscale"] == 2
    assert load_model(folder).upscale == 2
    with pytest.raises(ValueError, match="enlarges images"):
        load_model(folder).draw([0], None, steps=2)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for wrong, message in (
        (None, "upscale"),
        (1, "upscale=1"),
        (True, "upscale=True"),
        ("2", "upscale='2'"),
        (99, "16"),
    ):
        (tmp_path / "diffusion.json").write_text(json.dumps(document | {"upscale": wrong}))
        with pytest.raises(ValueError, match=message):
            load_upscaler(tmp_path) if wrong is not None else load_model(tmp_path)
    del document["upscale"]
    (tmp_path / "diffusion.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="6 channels"):
        load_model(tmp_path)


def test_a_model_that_draws_is_no_upscaler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DiffusionModel(build(replace(SMALL, size=(16, 16))).eval(), EDM()).save(tmp_path)
    with pytest.raises(ValueError, match=r"diffusion\.upscale"):
        load_upscaler(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        sample.main([str(tmp_path), "--upscale", "."])
    assert "enlarges none" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        sample.main([str(tmp_path), "--tile", "8"])
    assert "tile=8" in capsys.readouterr().err


@pytest.mark.parametrize("padding", ["reflect", "periodic_width"])
def test_pictures_that_are_too_small_to_mirror_are_extended(folder: Path, padding: str) -> None:
    model = load_model(folder)
    net = build(replace(model.net.config, padding=padding)).eval()
    upscaler = diffusion_upscaler(replace(model, net=net), options={"steps": 1})
    assert [each.shape for each in upscaler.upscale([pixels(1, 1, 3), pixels(1, 9, 3)])] == [(2, 2, 3), (2, 18, 3)]


def test_guidance_needs_a_label() -> None:
    net = build(replace(SMALL, in_channels=6, classes=2, null_label=True)).eval()
    model = DiffusionModel(net, EDM(), ("a", "b"), null_label=True, upscale=2)
    for label in (None, model.null):
        with pytest.raises(ValueError, match=r"guidance=8 .*label is none"):
            diffusion_upscaler(model, label=label, options={"guidance": 8.0}).check()
    diffusion_upscaler(model, label=1, options={"guidance": 8.0}).check()
    diffusion_upscaler(model).check()


def test_an_upscaler_with_classes_needs_label_dropout_to_be_evaluated(tmp_path: Path) -> None:
    Image.fromarray(pixels(20, 24, 3)).save(tmp_path / "test.png")
    data = DataConfig(source=str(tmp_path), validation="train", labels=False, cache=tmp_path / "cache")
    classes = Images(pixels(2, 3, 20, 24), labels=np.arange(2), classes=("a", "b"))
    run = small_run(data=data, diffusion=DiffusionConfig(upscale=2, label_dropout=0.0))
    with pytest.raises(ValueError, match=r"diffusion\.label_dropout=0\.1"):
        run.build(classes)
    assert not replace(run, data=replace(data, validation=None)).build(classes).evaluations


# --- from the command line -------------------------------------------------------------------------------------------


def test_sample_upscales_with_the_options_of_a_diffusion_model(tmp_path: Path) -> None:
    Image.fromarray(pixels(6, 5, 3)).save(tmp_path / "picture.png")
    model = labelled(tmp_path / "model")
    picture, out = tmp_path / "picture.png", tmp_path / "out"
    flags = ["--upscale", str(tmp_path / "*.png"), "--out", str(out), "--device", "cpu", "--steps", "3", "--seed", "4"]
    sample.main([str(model), *flags, "--label", "b", "--sampler", "ddpm", "--tile", "4"])
    upscaler = replace(load_upscaler_with_label(model, 1), seed=4, options={"steps": 3, "sampler": "ddpm"})
    with Image.open(out / "images" / "000000.png") as found:
        np.testing.assert_array_equal(np.asarray(found), upscaler.upscale([picture])[0])
    record = json.loads((out / "upscaled.json").read_text())
    assert (record["label"], record["seed"], record["sampler"], record["scale"]) == ("b", 4, "ddpm", 4)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["edsr", "diffusion"])
def test_two_processes_upscale_what_one_does(model: str, tmp_path: Path) -> None:
    """Three pictures of different sizes on two processes, in tiles."""
    for k, side in enumerate((5, 9, 7)):
        Image.fromarray(pixels(side, 6, 3)).save(tmp_path / f"{k}.png")
    home, options = tmp_path / "model", []
    if model == "edsr":
        resnet.create_model("edsr_baseline_x2", channels=8, blocks=1).eval().save_pretrained(home)
    else:
        labelled(home)
        options = ["--label", "b", "--steps", "2"]
    words = [str(home), "--upscale", str(tmp_path / "*.png"), "--device", "cpu", "--tile", "4", *options]
    sample.main([*words, "--out", str(tmp_path / "one")])
    sample_on_two_processes(*words, "--out", str(tmp_path / "two"))
    for k in range(3):
        with (
            Image.open(tmp_path / "one" / "images" / f"{k:06d}.png") as one,
            Image.open(tmp_path / "two" / "images" / f"{k:06d}.png") as two,
        ):
            np.testing.assert_allclose(np.asarray(two).astype(int), np.asarray(one).astype(int), atol=1)
    assert (tmp_path / "two" / "files.csv").read_text() == (tmp_path / "one" / "files.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label", "d", "--upscale", "."], "'d'"),
        (["--upscale", "."], "give a label"),
        (["--label", "a", "--upscale", ".", "--tile", "5", "--guidance", "2"], "guidance=2"),
        (["--label", "a", "--upscale", ".", "--seed", "-1"], "seed=-1"),
        (["--label", "a", "--upscale", ".", "--steps", "101"], "steps=101"),
        (["--label", "a", "--upscale", ".", "--npz"], "npz has no effect"),
        (["--label", "a"], "give --upscale"),
    ],
)
def test_what_sample_refuses(tmp_path: Path, flags: list[str], message: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        sample.main([str(labelled(tmp_path / "model")), *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "model" / "upscaled").exists()


@pytest.mark.parametrize("flags", [["--to", "diffusers", "--out", "exported"], ["--push", "me/model"]])
def test_what_enlarges_is_not_exported(folder: Path, tmp_path: Path, flags: list[str], capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        export.main([str(folder), *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert "upscale=2" in line
    assert not (tmp_path / "exported").exists()


@pytest.mark.slow
def test_evaluate_compares_what_a_diffusion_model_enlarges(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    Image.fromarray(pixels(20, 24, 3)).save(tmp_path / "pictures" / "a.png")
    evaluate.main([str(folder), "--data.source", str(tmp_path / "pictures"), "--data.validation", "train"])
    printed = capsys.readouterr().out
    assert "20 x 24 px" in printed
    assert re.search(r"^psnr: \d+\.\d+ dB$", printed, re.MULTILINE)


def test_weights_in_the_layout_of_adm_upscale_as_docs_superresolution_shows(tmp_path: Path) -> None:
    Image.fromarray(pixels(6, 5, 3)).save(tmp_path / "picture.png")
    original = load_model(labelled(tmp_path / "original", base_channels=32, groups=32))
    generator = torch.Generator().manual_seed(0)
    for weight in original.net.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    save_file(original.net.export_weights("adm"), tmp_path / "upsampler.safetensors")
    net = build(original.net.config).eval()
    net.import_weights(tmp_path / "upsampler.safetensors", layout="adm")
    assert_close(net.state_dict(), original.net.state_dict(), rtol=0, atol=0)
    DiffusionModel(net, original.formulation, original.classes, upscale=4).save(tmp_path / "model")
    flags = ["--upscale", str(tmp_path / "picture.png"), "--device", "cpu", "--steps", "3", "--label", "b"]
    sample.main([str(tmp_path / "model"), *flags, "--out", str(tmp_path / "out")])
    upscaler = diffusion_upscaler(original, label=1, options={"steps": 3})
    with Image.open(tmp_path / "out" / "images" / "000000.png") as found:
        difference = np.asarray(found, np.int64) - upscaler.upscale([tmp_path / "picture.png"])[0]
    assert np.abs(difference).max() <= 1, "but for rounding"
