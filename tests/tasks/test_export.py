import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from PIL import Image

import export
import resnet
import sample
from diffusion import DDPM, EDM, Flow, generators
from exporting import diffusers_folder
from pictures.files import read_image, save_image
from pictures.pixel_format import BYTES, PixelFormat
from pictures.preprocessing import Preprocessing
from pipelines.classification import ImageClassifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from residual.weights.note import WeightsNote
from tasks.denoising import DiffusionAugment
from tasks.grid_evaluation import SampleConfig
from tasks.init import read_init
from tests import forks
from tests.tasks.small import CLASSES, SMALL, digits, shaken, small_run
from tests.unet.test_pretrained import Hub, hub  # noqa: F401, a fixture
from unet import UNet


def exported(model, out, *flags):
    export.main([str(model), "--to", "diffusers", "--out", str(out), *flags])
    return out


def difference(kind, folder, model, labels, steps, count=6, seed=0):
    """Largest difference of pixels in [0, 1] between a pipeline of diffusers and our own images."""
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=count, generator=generators(seed, range(count)), num_inference_steps=steps, output_type="np"
    ).images
    sampler = "ddim" if kind is DDIMPipeline else "ddpm"
    ours = model.draw(range(count), labels, sampler=sampler, steps=steps, seed=seed) / 2 + 0.5
    assert ours.std() > 0.1  # a picture, not a constant
    return np.abs(ours.permute(0, 2, 3, 1).numpy() - theirs).max()


def test_pipelines_draw_the_images_of_an_unconditional_model(unconditional, tmp_path):
    folder, model = exported(unconditional, tmp_path), load_model(unconditional)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "diffusion.json",
        "export.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert difference(DDIMPipeline, folder, model, None, 50) < 1e-4
    assert difference(DDPMPipeline, folder, model, None, 25, seed=4) < 1e-4


def test_the_export_of_a_model_without_labels_is_read_again(tmp_path):
    """A run has a null label by default, also on images without labels, where no row of the network belongs to it."""
    model = shaken(small_run().build(digits(labels=False))).diffusion
    assert model.null_label
    diffusers_folder.save_diffusers(model, tmp_path)
    loaded = load_model(tmp_path)
    options = {"seed": 1, "steps": 2}
    torch.testing.assert_close(loaded.draw(range(2), None, **options), model.draw(range(2), None, **options))
    weights, messages = read_init(model.net, str(tmp_path), None, model.formulation)
    torch.testing.assert_close(weights, dict(model.net.state_dict()))
    assert len(messages) == 1, "nothing was adapted"


@pytest.mark.parametrize("label", ["three", "none"])
def test_pipelines_draw_the_images_of_one_class(conditional, tmp_path, label):
    folder, model = exported(conditional, tmp_path, "--label", label), load_model(conditional)
    labels = [model.label(label)] * 6
    assert difference(DDIMPipeline, folder, model, labels, 50) < 1e-4
    assert difference(DDPMPipeline, folder, model, labels, 10, seed=4) < 1e-4
    assert UNet2DModel.from_pretrained(folder, subfolder="unet").config.num_class_embeds is None


def test_folding_a_class_into_the_time_bias_is_an_identity(conditional, tmp_path):
    folder, model = exported(conditional, tmp_path, "--label", "7"), load_model(conditional)
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        theirs = UNet2DModel.from_pretrained(folder, subfolder="unet")(x, t).sample
        ours = model.net(x, t, torch.full((4,), 7))
        other = model.net(x, t, torch.full((4,), 8))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-5)
    assert (ours - other).abs().max() > 1e-2


def test_the_input_for_augmentation_is_left_out(tmp_path):
    task = shaken(small_run(augment=DiffusionAugment(non_leaky=0.12)).build(digits()))
    diffusers_folder.save_diffusers(task.diffusion, tmp_path)
    x, t, label = torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        theirs = UNet2DModel.from_pretrained(tmp_path, subfolder="unet")(x, t, label).sample
        torch.testing.assert_close(theirs, task.model.eval()(x, t, label), rtol=0, atol=2e-5)


def code(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]


def test_the_loop_on_the_card_of_a_conditional_model_draws_its_images(conditional, tmp_path, monkeypatch):
    folder, model = exported(conditional, tmp_path), load_model(conditional)
    monkeypatch.chdir(folder)
    assert len(code(folder).splitlines()) <= 13
    names: dict = {}
    exec(code(folder), names)
    ours = model.draw(range(10), list(range(10)), steps=50) / 2 + 0.5
    torch.testing.assert_close(names["images"], ours, rtol=0, atol=1e-4)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"- {number}: {name}" in card for number, name in enumerate((*CLASSES, "no label")))


def test_the_code_on_the_card_of_a_pipeline_draws_images(unconditional, tmp_path, monkeypatch):
    folder, model = exported(unconditional, tmp_path), load_model(unconditional)
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code(folder), names)
    ours = (model.draw(range(4), None, steps=50) / 2 + 0.5).squeeze(1).numpy() * 255
    theirs = np.stack([np.array(image) for image in names["images"]])
    assert np.abs(ours - theirs).max() <= 0.51
    assert (folder / "000003.png").is_file()


def test_the_scheduler_that_the_card_recommends_draws_our_images(unconditional, tmp_path):
    folder, model = exported(unconditional, tmp_path), load_model(unconditional)
    pipeline = DDPMPipeline.from_pretrained(folder)
    names = {"diffusers": diffusers, "scheduler": pipeline.scheduler}
    exec(
        re.search(r"^    (scheduler = .*)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)[1], names
    )
    pipeline.scheduler = names["scheduler"]
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=4, generator=generators(0, range(4)), num_inference_steps=15, output_type="np").images
    ours = model.draw(range(4), None, sampler="dpmpp_2m", steps=15) / 2 + 0.5
    torch.testing.assert_close(torch.from_numpy(drawn).permute(0, 3, 1, 2), ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("labels", [True, False])
def test_the_code_on_the_card_goes_with_few_timesteps(tmp_path, monkeypatch, labels):
    objective = DDPM(schedule="cosine", timesteps=20)
    task = small_run(objective=objective, sample=SampleConfig(steps=10)).build(digits(labels))
    diffusers_folder.save_diffusers(task.diffusion, tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(code(tmp_path), {})
    assert labels or "num_inference_steps=20" in code(tmp_path).splitlines()[1]


def test_other_formulations_are_refused(tmp_path):
    task = small_run(objective=EDM()).build(digits())
    with pytest.raises(ValueError, match=r"objective\.kind=edm.*ddpm"):
        diffusers_folder.save_diffusers(task.diffusion, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_scheduler_holds_the_formulation(unconditional, tmp_path):
    config = DDPMPipeline.from_pretrained(exported(unconditional, tmp_path)).scheduler.config
    assert (config.beta_schedule, config.prediction_type, config.variance_type, config.clip_sample) == (
        "squaredcos_cap_v2", "v_prediction", "fixed_small", True,
    )  # fmt: skip


def test_an_export_replaces_an_earlier_one_as_a_whole(conditional, tmp_path, capsys):
    exported(conditional, tmp_path / "out")
    (tmp_path / "out" / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_text("stale")
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "out" / "README.md").unlink()
    (tmp_path / "out" / "README.md").symlink_to(tmp_path / "elsewhere")
    exported(conditional, tmp_path / "out", "--label", "two")
    assert "It draws only this class: two." in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"model: {tmp_path / 'out'}" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.fp16.*"))
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]


def test_a_pipeline_that_is_no_export_is_kept(conditional, tmp_path, capsys):
    folder = exported(conditional, tmp_path / "out")
    (folder / "export.json").unlink()
    with pytest.raises(SystemExit):
        exported(conditional, folder)
    assert str(folder) in capsys.readouterr().err
    assert DDPMPipeline.from_pretrained(folder).unet.config.num_class_embeds == 11


def test_the_record_of_an_export(conditional, tmp_path):
    facts = json.loads((exported(conditional, tmp_path / "out", "--label", "7") / "export.json").read_text())
    assert (facts["label"], facts["model"], facts["images_seen"]) == (7, str(conditional), None)
    assert re.fullmatch("[0-9a-f]{64}", facts["weights_sha256"])


FIELD = PixelFormat(dtype="float32", low=-50, high=150, file="npy")
GREY16 = PixelFormat(dtype="uint16", high=65535)
FEW = DDPM(schedule="cosine", timesteps=20)
FAST = {"objective": FEW, "base_channels": 8, "channel_multipliers": (1,), "attention_levels": ()}
"""timesteps, and so steps of a card, that take less time than the usual 50, and a network that does"""
KINDS = {
    "unconditional": {"objective": DDPM(prediction="v")},
    "colour": {"channels": 3},
    "five channels": {"channels": 5, "pixels": FIELD},
    "two channels of integers": {"channels": 2, "pixels": PixelFormat(dtype="int16", low=-300, high=40, file="npy")},
    "one field": {"pixels": FIELD},
    "bytes as arrays": {"channels": 3, "pixels": PixelFormat(file="npy")},
    "greys of 16 bits": {"pixels": GREY16},
    "colours of 16 bits": {"channels": 3, "pixels": GREY16},
    "not square": {"size": (8, 16)},
    "a field that is not square": {"size": (24, 40), "channels": 4, "pixels": FIELD},
    "classes": {"classes": ("cat", "dog")},
    "classes and no label": {"classes": ("cat", "dog"), "null_label": True},
    "fields with classes": {"classes": ("cat", "dog"), "channels": 5, "pixels": FIELD},
    "many classes": {"classes": tuple(map(str, range(40)))},
    "one class": {"classes": ("cat", "dog"), "label": 1},
    "one class of fields": {"classes": ("cat", "dog"), "label": 1, "channels": 2, "pixels": FIELD},
    "one class, 16 bits": {"classes": ("cat", "dog"), "label": 1, "pixels": GREY16},
    "the null label": {"classes": ("cat", "dog"), "null_label": True, "label": 2},
    "x0 prediction": {"objective": DDPM(prediction="x0")},
    "epsilon prediction": {"objective": DDPM()},
    "cosine schedule": {"objective": DDPM(prediction="v", schedule="cosine")},
    "few timesteps": {"objective": FEW},
}


def some_model(channels=1, pixels=BYTES, size=(8, 8), classes=None, null_label=False, objective=None, **fields):
    """A model of such images with random weights."""
    count = None if classes is None else len(classes)
    config = replace(
        SMALL, in_channels=channels, out_channels=channels, size=size, classes=count,
        null_label=null_label, **fields,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    net = UNet(config).eval()
    for weight in net.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.01)
    return DiffusionModel(net, objective or DDPM(prediction="v"), classes, null_label, pixels, images_seen=123_456)


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_on_the_card_draws_the_images_of_sample(tmp_path, monkeypatch, kind):
    fields = dict(KINDS[kind])
    label = fields.pop("label", None)
    model = some_model(**({} if "objective" in fields else FAST) | fields)
    out = tmp_path / "out"
    out.mkdir()
    diffusers_folder.save_diffusers(model, out, label)
    monkeypatch.chdir(out)
    names: dict = {}
    exec(code(out), names)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "after 123,456 training images" in card
    assert f"{model.shape[1]}x{model.shape[2]} px with {model.shape[0]} channel" in card
    pixels = model.pixel_format
    steps = min(50, model.formulation.timesteps)
    if model.classes is not None and label is None:
        count = min(len(model.classes), 10)
        unit = model.draw(range(count), list(range(count)), steps=steps)
        span = (pixels.high - pixels.low, pixels.low) if pixels.file == "npy" else (1, 0)
        torch.testing.assert_close(names["images"], span[0] * (unit / 2 + 0.5) + span[1], rtol=0, atol=2e-4 * span[0])
        return
    expected = model.draw(range(4), None if label is None else [label] * 4, steps=steps)
    for k in range(4):
        save_image(expected[k], pixels, tmp_path / f"ours.{pixels.file}")
        ours = read_image(tmp_path / f"ours.{pixels.file}")
        theirs = read_image(out / f"{k:06d}.{pixels.file}")
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape)
        level = 2e-4 * (pixels.high - pixels.low) + (ours.dtype.kind in "iu")
        np.testing.assert_allclose(theirs.astype(float), ours.astype(float), rtol=0, atol=level)


@pytest.mark.parametrize("field", [{"learned_variance": True}, {"logvar_channels": 8}], ids=str)
def test_what_diffusers_does_not_read_is_left_out_and_reported(tmp_path, monkeypatch, field):
    model = some_model(channels=3, **field)
    with pytest.warns(WeightsNote, match=f"model.{next(iter(field))}"):
        diffusers_folder.save_diffusers(model, tmp_path)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        theirs = UNet2DModel.from_pretrained(tmp_path, subfolder="unet")(x, t).sample
        torch.testing.assert_close(theirs, model.net(x, t)[:, :3], rtol=0, atol=2e-5)
    monkeypatch.chdir(tmp_path)
    exec(code(tmp_path), {})
    assert (tmp_path / "000003.png").is_file()


HOSTILE = [
    "<script>alert(1)</script>",
    "```\nimport os\n```",
    "---\nlicense: mit\n---",
    "[link](javascript:alert(1))",
    "![](http://example.com/x.png)",
    "# heading",
    "a|b",
    "\x1b]0;title\x07",
    "bad \udcff byte",
    "\u202egnp.exe",
    "{0.__class__}",
    "%s %d",
    "&lt;b&gt;",
    "日本",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("label", [None, 1])
def test_names_of_classes_have_no_effect_on_the_card(tmp_path, name, label):
    def card(name):
        folder = tmp_path / "plain" if name == "plain" else tmp_path / "hostile"
        folder.mkdir()
        diffusers_folder.save_diffusers(some_model(classes=("cat", name)), folder, label)
        return (folder / "README.md").read_text(encoding="utf-8")

    hostile, plain = card(name).splitlines(), card("plain").splitlines()
    assert len(hostile) == len(plain)
    (changed,) = [line for line, other in zip(hostile, plain, strict=True) if line != other]
    assert not re.search(r"(?<!\\)[`<>\[\]#|!]", changed.removeprefix("- 1: "))
    assert changed.isprintable()


def test_any_name_of_a_class_is_exported_by_the_command(tmp_path, capsys):
    some_model(classes=("cat", "bad \udcff\x1b[31m")).save(tmp_path / "model")
    folder = exported(tmp_path / "model", tmp_path / "out", "--label", "bad \udcff\x1b[31m")
    assert json.loads((folder / "export.json").read_text())["label"] == 1
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("operation", [*((os, name) for name in ("fsync", "rename", "replace")), (Path, "write_text")])
def test_a_full_disk_is_one_line_and_leaves_the_old_export(conditional, tmp_path, monkeypatch, capsys, operation):
    folder = exported(conditional, tmp_path / "out")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*operation, full)
        with pytest.raises(SystemExit) as end:
            exported(conditional, folder, "--label", "3")
    assert end.value.code == 2
    assert f"the disk of '{folder}' is full" in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [3, *(pytest.param(other, marks=pytest.mark.slow) for other in (0, 1, 2, 4, 5))])
def test_files_that_may_not_grow(conditional, tmp_path, number):
    """Without any stand-in: the system refuses the first byte beyond each of several sizes."""
    limit = 100 * 4**number
    code = "import resource, signal, sys, export; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); export.main(sys.argv[1:])"
    done = forks.run(code, str(conditional), "--out", str(tmp_path / "out"))
    assert done.returncode in (0, 2), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if done.returncode else ["out"])
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert str(tmp_path / "out") in done.stderr.splitlines()[-1]


def test_the_card_states_the_training_images(conditional):
    model = replace(load_model(conditional), images_seen=4096)
    assert "after 4,096 training images" in diffusers_folder.card(model, None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "diffuser"], "'diffuser'; did you mean diffusers"),
        (["--label", "11"], "label 11"),
        (["--label", "fiv"], "class 'fiv'; did you mean five"),
        (["--out", "."], "out='.'"),
        (["--out", __file__], __file__),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(conditional, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        export.main([str(conditional), "--out", str(tmp_path / "out"), *flags])
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push", "digits"], "'digits' should be"),
        (["--push", "me/x", "--label", "3"], "label='3'"),
        (["--push", "me/x", "--to", "nothing"], "'nothing'"),
        (["--push", "me/x", "--out", "folder"], "--out"),
        (["--out", "folder", "--private"], "private"),
    ],
)
def test_what_does_not_go_with_an_upload(conditional, hub, capsys, flags, message):  # noqa: F811
    with pytest.raises(SystemExit) as end:
        export.main([str(conditional), *flags])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not hub.calls


PUSHED = {name: KINDS[name] for name in ("few timesteps", "fields with classes")} | {
    "flow, with classes": {"objective": Flow(), "classes": ("a\\`b", "<i>"), "null_label": True},
}


@pytest.mark.parametrize("kind", PUSHED)
def test_a_model_on_the_hub(tmp_path, hub: Hub, kind):  # noqa: F811
    """Everything is there, and the code on the card draws the images."""
    model = some_model(**PUSHED[kind])
    model.save(tmp_path / "model")
    export.main([str(tmp_path / "model"), "--push", "me/x", "--private"])
    assert hub.calls[0] == ("me/x", {"private": True, "exist_ok": True})
    assert {path.name for path in (hub.root / "me/x").iterdir()} == {
        "README.md", "config.json", "diffusion.json", "model.safetensors",
    }  # fmt: skip
    assert_same_model(load_model("me/x"), replace(model, images_seen=None))
    names: dict = {}
    exec(code(hub.root / "me/x"), names)
    assert names["images"].std() > 0.1
    np.testing.assert_array_equal(names["values"], model.pixel_format.from_unit(names["images"]))


def assert_same_model(found: DiffusionModel, model: DiffusionModel) -> None:
    torch.testing.assert_close(found.net.state_dict(), model.net.state_dict(), rtol=0, atol=0)
    assert (found.net.config.classes, found.net.config.null_label) == (
        model.net.config.classes, model.net.config.null_label,
    )  # fmt: skip
    assert replace(found, net=model.net) == model


@pytest.mark.parametrize("place", ["", "unet"])
@pytest.mark.parametrize(("null_label", "counts"), [(True, None), (False, (3, 0))])
def test_an_export_comes_back_as_the_model(tmp_path, place, null_label, counts):
    field = {"channels": 2, "pixels": FIELD}
    model = replace(some_model(classes=("cat", "dog"), null_label=null_label, **field), images_seen=None)
    model = replace(model, class_counts=counts)
    diffusers_folder.save_diffusers(model, tmp_path)
    assert_same_model(load_model(tmp_path / place), model)


def test_an_export_of_one_class_comes_back_without_classes(tmp_path):
    model = some_model(classes=("cat", "dog"), null_label=True)
    diffusers_folder.save_diffusers(model, tmp_path, 1)
    found = load_model(tmp_path)
    assert (found.classes, found.null, found.formulation) == (None, None, model.formulation)
    ours, theirs = model.draw([0], [1], steps=3), found.draw([0], None, steps=3)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_a_pipeline_on_the_hub(conditional, hub, tmp_path, monkeypatch):  # noqa: F811
    export.main([str(conditional), "--to", "diffusers", "--push", "me/digits"])
    assert load_model("me/digits").classes == CLASSES
    assert load_model("me/digits").null == 10
    monkeypatch.chdir(hub.root)  # diffusers opens the repository's folder
    names: dict = {}
    exec(code(hub.root / "me/digits"), names)
    assert names["images"].shape == (10, 1, 8, 8)


def test_a_model_on_the_hub_is_sampled_and_trained(conditional, hub, tmp_path):  # noqa: F811
    export.main([str(conditional), "--push", "me/digits"])
    flags = ["--num", "4", "--steps", "3", "--device", "cpu"]
    for name in ("me/digits", str(conditional)):
        sample.main([name, *flags, "--out", str(tmp_path / name.rpartition("/")[2])])
    drawn = [read_image(tmp_path / name / "images/000003.png") for name in ("digits", conditional.name)]
    np.testing.assert_array_equal(*drawn)
    run = small_run(init="me/digits")
    task = run.build(digits())
    assert run.load_init(task) == ["init: me/digits, 1 x 8 x 8, 10 classes"]
    torch.testing.assert_close(task.model.state_dict(), load_model(conditional).net.state_dict(), rtol=0, atol=0)


def test_two_layouts_do_not_mix_on_the_hub(conditional, hub, capsys):  # noqa: F811
    export.main([str(conditional), "--push", "me/x"])
    with pytest.raises(SystemExit):
        export.main([str(conditional), "--to", "diffusers", "--push", "me/x"])
    assert "'me/x' holds a model of another kind, with config.json" in capsys.readouterr().err
    assert not (hub.root / "me/x/unet").exists()
    with pytest.raises(ValueError, match=r"me/x.*diffusion\.json"):
        load_model(conditional).net.push_to_hub("me/x")  # the old diffusion.json would describe the new network


@pytest.mark.parametrize("pixels", [BYTES, FIELD])
def test_a_classifier_on_the_hub(hub, tmp_path, monkeypatch, pixels):  # noqa: F811
    network = resnet.create_model("resnet20", num_classes=2).eval()
    model = ImageClassifier(network, ("cat", "<i>dog"), Preprocessing(size=(16, 16), channels=3), pixels)
    model.save(tmp_path / "model")
    export.main([str(tmp_path / "model"), "--push", "me/x"])
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 30)).save("picture.png")
    names: dict = {}
    exec(code(hub.root / "me/x"), names)
    assert names["model"].classes == model.classes
    assert len(names["found"]) == 1
    assert "<i>" not in (hub.root / "me/x/README.md").read_text()


def test_the_error_of_a_network_alone_names_the_way_out(conditional, hub):  # noqa: F811
    load_model(conditional).net.push_to_hub("me/x")
    with pytest.raises(ValueError, match=r"nor diffusion\.json.*RUN/model.*--push"):
        load_model("me/x")


def test_a_label_needs_a_model_with_classes(unconditional, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main([str(unconditional), "--out", str(tmp_path), "--label", "3"])
    assert "label '3'" in capsys.readouterr().err


def test_the_folder_to_write_must_be_given(conditional, capsys):
    with pytest.raises(SystemExit):
        export.main([str(conditional)])
    assert "--out --push is required" in capsys.readouterr().err
