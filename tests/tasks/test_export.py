import re
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel

import export
from diffusion import DDPM, EDM, generators
from pipelines.diffusion import load_model
from tasks.diffusion import DiffusionAugment
from tasks.grid_evaluation import SampleConfig
from tests.tasks.small import CLASSES, digits, shaken, small_run


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
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert difference(DDIMPipeline, folder, model, None, 50) < 1e-4
    assert difference(DDPMPipeline, folder, model, None, 25, seed=4) < 1e-4


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


def test_what_the_network_was_told_of_augmentation_is_left_out(tmp_path):
    task = shaken(small_run(augment=DiffusionAugment(non_leaky=0.12)).build(digits()))
    export.save_diffusers(task.diffusion, tmp_path)
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
    export.save_diffusers(task.diffusion, tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(code(tmp_path), {})
    assert labels or "num_inference_steps=20" in code(tmp_path).splitlines()[1]


def test_other_formulations_are_refused(tmp_path):
    task = small_run(objective=EDM()).build(digits())
    with pytest.raises(ValueError, match=r"objective\.kind=edm.*ddpm"):
        export.save_diffusers(task.diffusion, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_scheduler_holds_the_formulation(unconditional, tmp_path):
    config = DDPMPipeline.from_pretrained(exported(unconditional, tmp_path)).scheduler.config
    assert (config.beta_schedule, config.prediction_type, config.variance_type, config.clip_sample) == (
        "squaredcos_cap_v2", "v_prediction", "fixed_small", True,
    )  # fmt: skip


def test_an_export_replaces_an_earlier_one(conditional, tmp_path, capsys):
    exported(conditional, tmp_path / "out")
    exported(conditional, tmp_path / "out", "--label", "two")
    assert "It draws only this class: two." in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"model: {tmp_path / 'out'}" in capsys.readouterr().out


def test_the_card_states_the_training_images(conditional):
    model = replace(load_model(conditional), images_seen=4096)
    assert "after 4,096 training images" in export.card(model, None)


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


def test_a_label_needs_a_model_with_classes(unconditional, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main([str(unconditional), "--out", str(tmp_path), "--label", "3"])
    assert "label '3'" in capsys.readouterr().err


def test_the_folder_to_write_must_be_given(conditional, capsys):
    with pytest.raises(SystemExit):
        export.main([str(conditional)])
    assert "required: --out" in capsys.readouterr().err
