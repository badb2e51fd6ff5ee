"""Folders of diffusers as models to draw with and to start from: the scheduler determines what the network predicts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch.testing import assert_close

import resnet
import sample as script
from diffusion import DDPM, EDM, SAMPLERS, Flow, generators
from pictures.pixel_format import BYTES
from pictures.preprocessing import Preprocessing
from pipelines.classification import ImageClassifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import _without_variance, load_model
from pipelines.from_diffusers import formulation_of
from residual.names import rows_by_name
from tasks.init_classifier import init_config, load_init
from tests.tasks.small import CLASSES, SMALL, digits, small_run
from tests.tasks.test_init import net, started
from unet import UNet, diffusers_config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return tmp_path


def unet2d(**changes: Any) -> UNet2DModel:
    """A network of diffusers whose output depends on everything."""
    config = replace(SMALL, in_channels=1, out_channels=1)
    theirs = UNet2DModel(**diffusers_config(config) | changes).eval()
    torch.manual_seed(0)
    for weight in theirs.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.05)
    return theirs


def scheduler(name: str, **config: Any) -> None:
    Path("scheduler").mkdir()
    Path("scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name} | config))


# --- formulations ---


@pytest.mark.parametrize(
    "name",
    [
        "DDPMScheduler",
        "DDIMScheduler",
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "DEISMultistepScheduler",
    ],
)
@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({}, {}),
        ({"prediction_type": "v_prediction"}, {"prediction": "v"}),
        ({"prediction_type": "sample"}, {"prediction": "x0"}),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"schedule": "cosine"}),
        (
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            {"schedule": "scaled_linear"},
        ),
    ],
)
def test_schedulers_of_ddpm(name: str, config: dict, fields: dict) -> None:
    published = {"beta_start": 1e-4, "beta_end": 0.02}  # the defaults of some of them are others
    getattr(diffusers, name)(**published | config).save_pretrained("scheduler")
    found = formulation_of(Path())
    assert isinstance(found, DDPM)
    assert replace(found, variance="fixed_large") == DDPM(**fields)


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_a_rescaled_schedule_of_ddpm(name: str) -> None:
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02, **config).save_pretrained("scheduler")
    found = formulation_of(Path())
    assert isinstance(found, DDPM)
    assert replace(found, variance="fixed_large") == DDPM(prediction="v", zero_terminal_snr=True)


def test_a_pipeline_may_be_named_like_a_part_of_one() -> None:
    diffusers.DDPMScheduler().save_pretrained("scheduler")
    for name in ("unet-cats", "checkpoint-cats"):
        folder = Path(name)
        diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
        (folder / "model_index.json").write_text(
            json.dumps({"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "unet": ["diffusers", "x"]})
        )
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        del config["_class_name"]
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        assert formulation_of(folder) == formulation_of(folder / "unet") == Flow()


def test_schedulers_of_flow_and_edm() -> None:
    diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500).save_pretrained("a")
    assert formulation_of(Path("a")) == Flow(time_scale=500)
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained("shifted")
    assert formulation_of(Path("shifted")) == Flow(shift=3.0)
    diffusers.EDMEulerScheduler(sigma_data=0.4, sigma_max=70).save_pretrained("b")
    assert formulation_of(Path("b")) == EDM(sigma_data=0.4, sigma_max=70)
    assert formulation_of(Path("c")) is None


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("ScoreSdeVeScheduler", {}, "ScoreSdeVeScheduler"),
        ("ScoreSdeVpScheduler", {}, "ScoreSdeVpScheduler"),
        ("CMStochasticIterativeScheduler", {}, "CMStochasticIterativeScheduler"),
        ("KarrasVeScheduler", {}, "KarrasVeScheduler"),
        ("VQDiffusionScheduler", {}, "VQDiffusionScheduler"),
        ("LCMScheduler", {}, "LCMScheduler"),
        ("NoScheduler", {}, "NoScheduler"),
        (None, {}, "None"),
        (["DDPMScheduler"], {}, "DDPMScheduler"),
        ("DDPMScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
        (
            "DDPMScheduler",
            {"rescale_betas_zero_snr": "yes", "prediction_type": "sample"},
            "rescale_betas_zero_snr='yes'",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting=true"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 0}, "shift=0"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
        ("DDPMScheduler", {"prediction_type": None}, "prediction_type=None"),
        ("DDPMScheduler", {"prediction_type": ["epsilon"]}, "prediction_type"),
        ("DDPMScheduler", {"beta_schedule": None}, "None betas"),
        ("DDPMScheduler", {"beta_schedule": ["linear"]}, "linear"),
        ("DDPMScheduler", {"beta_start": "low"}, "low"),
        ("DDPMScheduler", {"beta_end": float("nan")}, "nan"),
        ("DDPMScheduler", {"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ("DDPMScheduler", {"num_train_timesteps": -5}, "num_train_timesteps=-5"),
        ("DDPMScheduler", {"num_train_timesteps": 10**12}, "num_train_timesteps=1e"),
        ("DDPMScheduler", {"num_train_timesteps": 10**400}, "num_train_timesteps"),
        ("DDPMScheduler", {"num_train_timesteps": "many"}, "num_train_timesteps='many'"),
        ("DDPMScheduler", {"num_train_timesteps": True}, "num_train_timesteps=True"),
        ("DDPMScheduler", {"num_train_timesteps": None}, "num_train_timesteps=None"),
        ("DDPMScheduler", {"trained_betas": []}, "trained_betas"),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "prediction_type='v_prediction'"),
        ("EDMEulerScheduler", {"sigma_data": -1}, "sigma_data=-1"),
        ("EDMEulerScheduler", {"sigma_min": 100}, "sigma_min=100"),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": float("inf")}, "num_train_timesteps=inf"),
    ],
)
def test_other_formulations_are_refused_by_name(name: Any, config: dict, match: str) -> None:
    scheduler(name, **config)
    with pytest.raises(ValueError, match=rf"scheduler_config\.json.*{match}"):
        formulation_of(Path())


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_damaged_scheduler_is_named(text: str) -> None:
    scheduler("DDPMScheduler")
    Path("scheduler/scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"scheduler_config\.json"):
        formulation_of(Path())


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("FlowMatchEulerDiscreteScheduler", "--objective.kind flow"), ("EDMEulerScheduler", "--objective.kind edm")],
)
def test_the_error_of_another_formulation_names_the_flag(kind: str, flags: str) -> None:
    unet2d().save_pretrained("p/unet")
    getattr(diffusers, kind)().save_pretrained("p/scheduler")
    with pytest.raises(ValueError, match=flags):
        started(small_run(init="p"), labels=False)


@pytest.mark.parametrize("own", [{}, {"_class_name": "DDIMScheduler"}])
def test_the_pipeline_names_the_class_of_its_scheduler(own: dict) -> None:
    """As in diffusers, also if the config of the scheduler names another."""
    scheduler("unused")
    Path("scheduler/scheduler_config.json").write_text(json.dumps({"num_train_timesteps": 500} | own))
    for name, expected in (("FlowMatchEulerDiscreteScheduler", Flow(time_scale=500)), ("EDMEulerScheduler", EDM())):
        Path("model_index.json").write_text(json.dumps({"scheduler": ["diffusers", name]}))
        assert formulation_of(Path()) == expected
        assert formulation_of(Path("unet")) == expected
    Path("model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "ScoreSdeVeScheduler"]}))
    with pytest.raises(ValueError, match="ScoreSdeVeScheduler"):
        formulation_of(Path())


def test_another_network_is_named_by_its_class() -> None:
    Path("u").mkdir()
    Path("u/config.json").write_text(json.dumps({"_class_name": "UNet1DModel"}))
    with pytest.raises(ValueError, match=r"u/config\.json describes a UNet1DModel"):
        load_model("u")


def test_pipelines_on_latents_are_named() -> None:
    unet2d().save_pretrained("p/unet")
    index = {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]}
    Path("p/model_index.json").write_text(json.dumps(index))
    for read in (load_model, lambda path: started(small_run(init=path), labels=False)):
        with pytest.raises(ValueError, match=r"latents.*vqvae"):
            read("p")
    Path("dit").mkdir()
    Path("dit/model_index.json").write_text(json.dumps({"transformer": ["a", "b"], "vae": ["a", "b"]}))
    with pytest.raises(ValueError, match=r"latents.*vae"):
        load_model("dit")
    Path("p/model_index.json").write_text(json.dumps({"prior": ["a", "b"]}))
    with pytest.raises(ValueError, match=r"unet.*prior"):
        load_model("p")


# --- drawing ---


def pipeline(path: Path, **changes: Any) -> DDIMPipeline:
    made = DDIMPipeline(unet=unet2d(**changes), scheduler=DDIMScheduler())
    made.save_pretrained(path)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_pipeline_draws_what_diffusers_draws(folder: Path) -> None:
    theirs, model = pipeline(folder / "p"), load_model("p")
    found = model.draw(range(3), None, sampler="ddim", steps=10, seed=5) / 2 + 0.5
    expected = theirs(batch_size=3, generator=generators(5, range(3)), num_inference_steps=10, output_type="np").images
    assert_close(found, torch.from_numpy(np.asarray(expected)).permute(0, 3, 1, 2), rtol=0, atol=1e-4)


def test_the_script_draws_from_a_pipeline_and_from_its_network(folder: Path) -> None:
    pipeline(folder / "p")
    for model in ("p", "p/unet"):
        script.main([model, "--num", "2", "--steps", "2", "--device", "cpu", "--out", f"out-{model[2:]}"])
    assert sorted(path.name for path in Path("out-/images").iterdir()) == ["000000.png", "000001.png"]


@pytest.mark.parametrize("module", ["", "time_embedding", "attentions"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_images_of_huge_weights_are_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str], module: str, sampler: str
) -> None:
    network = unet2d()
    for name, weight in network.named_parameters():
        if module in name:
            weight.data.mul_(1e16)
    DDIMPipeline(unet=network, scheduler=DDIMScheduler()).save_pretrained("p")
    with pytest.raises(SystemExit) as end:
        script.main(["p", "--num", "2", "--steps", "3", "--sampler", sampler, "--device", "cpu", "--out", "out"])
    assert end.value.code == 2
    assert "image 0 has values that are not finite" in capsys.readouterr().err
    assert not list(folder.rglob("*.png"))
    with pytest.raises(ValueError, match=r"image 5 .* not finite"):
        load_model("p").draw([5], None, sampler=sampler, steps=3)


def test_a_network_without_a_scheduler_is_taken_for_ddpm_with_a_note() -> None:
    unet2d().save_pretrained("u")
    with pytest.warns(UserWarning, match="scheduler"):
        assert load_model("u").formulation == DDPM()


def test_classes_of_a_pipeline_are_numbers(folder: Path) -> None:
    pipeline(folder / "p", num_class_embeds=3)
    model = load_model("p")
    assert model.classes == ("0", "1", "2")
    assert model.draw(range(2), [0, 2], steps=2).shape == (2, 1, 8, 8)


def with_variance(path: Path, **config: Any) -> DDPMPipeline:
    """A pipeline whose network also predicts the variance."""
    made = DDPMPipeline(unet=unet2d(out_channels=2), scheduler=DDPMScheduler(**{"clip_sample": True, **config}))
    made.save_pretrained(path)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, 10),
        ({"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}, 3),
        ({"num_train_timesteps": 25, "beta_start": 0.004, "beta_end": 0.8}, 25),
        ({"rescale_betas_zero_snr": True, "prediction_type": "sample"}, 7),
    ],
    ids=str,
)
def test_ddpm_draws_with_a_learned_variance_what_diffusers_draws(folder: Path, config: dict, steps: int) -> None:
    """At any number of steps, whose variance is that between the timesteps that are used."""
    theirs, model = with_variance(folder / "p", variance_type="learned_range", **config), load_model("p")
    found = model.draw(range(3), None, sampler="ddpm", steps=steps, seed=5) / 2 + 0.5
    sources = generators(5, range(3))
    expected = theirs(batch_size=3, generator=sources, num_inference_steps=steps, output_type="np").images
    assert_close(found, torch.from_numpy(np.asarray(expected)).permute(0, 3, 1, 2), rtol=0, atol=1e-4)
    with pytest.warns(UserWarning, match="variance"):
        fixed = replace(model, net=_without_variance(model.net, folder))
    assert (fixed.draw(range(3), None, sampler="ddpm", steps=steps, seed=5) / 2 + 0.5 - found).abs().max() > 0.01
    for sampler in sorted({*SAMPLERS} - {"ddpm"}):  # none of them has a use for it
        if sampler == "dpmpp_2m_sde" and "rescale_betas_zero_snr" in config:
            continue
        drawn, same = (each.draw(range(2), None, sampler=sampler, steps=3) for each in (model, fixed))
        assert_close(drawn, same, rtol=0, atol=1e-6)


def test_a_learned_variance_of_another_kind_is_left_out_with_a_note(folder: Path) -> None:
    theirs = with_variance(folder / "p", variance_type="learned")
    with pytest.warns(UserWarning, match="variance"):
        model = load_model("p")
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([7.0])
    with torch.no_grad():
        expected = theirs.unet(x, t).sample[:, :1]
        assert_close(model.net(x, t), expected, rtol=0, atol=2e-5 * expected.std().item())


def test_a_run_from_a_learned_variance_keeps_or_drops_it(folder: Path) -> None:
    theirs = with_variance(folder / "p")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([7.0, 900.0])
    with torch.no_grad():
        expected = theirs.unet(x, t).sample
        kept, lines = started(small_run(init="p", model=replace(SMALL, learned_variance=True)), labels=False)
        assert_close(kept.eval()(x, t), expected, rtol=0, atol=2e-5)
        assert len(lines) == 1
        dropped, lines = started(small_run(init="p"), labels=False)
        assert_close(dropped.eval()(x, t), expected[:, :1], rtol=0, atol=2e-5)
        assert any("variance" in line for line in lines)


def test_a_run_from_a_learned_variance_of_another_kind_has_to_drop_it(folder: Path) -> None:
    with_variance(folder / "p", variance_type="learned")
    with pytest.raises(ValueError, match=r"init=p.*learned_variance=true.*variance_type=learned.*false"):
        started(small_run(init="p", model=replace(SMALL, learned_variance=True)), labels=False)
    _, lines = started(small_run(init="p"), labels=False)
    assert any("variance" in line for line in lines)


def test_a_network_of_unknown_size_is_refused(folder: Path) -> None:
    pipeline(folder / "p")
    config = json.loads(Path("p/unet/config.json").read_text()) | {"sample_size": None}
    Path("p/unet/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json.*sample_size"):
        load_model("p")


def test_the_average_beside_a_checkpoint_is_named(folder: Path) -> None:
    pipeline(folder / "run")
    for name in ("unet", "unet_ema"):
        shutil.copytree("run/unet", f"run/checkpoint-500/{name}")
    network, lines = started(small_run(init="run/checkpoint-500"), labels=False)
    assert any("unet_ema" in line for line in lines)
    assert "formulation" not in lines[0]
    with pytest.warns(UserWarning, match="unet_ema"):
        load_model("run/checkpoint-500")
    assert isinstance(network, UNet)
    shutil.rmtree("run/checkpoint-500/unet")  # the average alone
    assert load_model("run/checkpoint-500").formulation == DDPM(variance="fixed_small")


def test_a_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(ValueError, match="someone/model"):
        load_model("someone/model")


# --- classes by name ---


def test_rows_by_name() -> None:
    assert rows_by_name(("cat", "dog"), ("ant", "dog", "cat")) == [None, 1, 0]
    assert rows_by_name(None, ("a",)) is rows_by_name(("a",), None) is None
    assert rows_by_name(("0", "1"), ("a", "b")) is rows_by_name(("a", "b"), ("0", "1")) is None
    assert rows_by_name(("1", "0"), ("0", "2")) is not None


def test_labels_keep_their_rows_by_name() -> None:
    source = DiffusionModel(net(replace(SMALL, in_channels=1, out_channels=1, classes=10)), DDPM(), CLASSES, True)
    source.save(Path("m"))
    images = digits()
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8]
    images.classes, images.labels = (*(CLASSES[i] for i in order), "ant"), images.labels % 9
    run = small_run(init="m")
    task = run.build(images)
    lines = run.load_init(task)
    rows = source.net.embedding.label.weight
    found = task.model.embedding.label.weight
    assert_close(found[:9], rows[order], rtol=0, atol=0)
    assert_close(found[9], rows[:10].mean(dim=0))
    assert_close(found[10], rows[10], rtol=0, atol=0)
    assert any("9 of 10 classes" in line for line in lines)


def classifier(path: Path, classes: tuple[str, ...], **changes: Any) -> ImageClassifier:
    network = resnet.create_model("resnet20", num_classes=len(classes), **changes)
    torch.nn.init.normal_(network.fc.bias)
    model = ImageClassifier(network.eval(), classes, Preprocessing(size=(32, 32), channels=3), BYTES)
    model.save(path)
    return model


def test_a_classifier_starts_from_a_model_folder_by_names(folder: Path) -> None:
    source = classifier(folder / "m", ("cat", "dog", "emu"))
    target = resnet.create_model("resnet20", num_classes=3)
    fresh = target.fc.weight[0].clone()
    assert init_config("m") == source.net.config
    lines = load_init(target, "m", ("ant", "emu", "cat"))
    assert "2 of 3" in lines[-1]
    assert_close(target.fc.weight, torch.stack([fresh, source.net.fc.weight[2], source.net.fc.weight[0]]))
    assert_close(target.levels[1].state_dict(), source.net.levels[1].state_dict(), rtol=0, atol=0)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(target.eval()(x)[:, 1:], source.net(x)[:, [2, 0]])


def test_classes_of_a_classifier_go_by_number_with_a_message(folder: Path) -> None:
    source = classifier(folder / "m", ("0", "1", "2"))
    target = resnet.create_model("resnet20", num_classes=3)
    assert any("by number" in line for line in load_init(target, "m", ("ant", "emu", "cat")))
    assert_close(target.fc.weight, source.net.fc.weight, rtol=0, atol=0)


def test_a_description_of_another_classifier_is_refused(folder: Path) -> None:
    classifier(folder / "m", ("cat", "dog", "emu"))
    described = json.loads(Path("m/classification.json").read_text())
    Path("m/classification.json").write_text(json.dumps(described | {"classes": ["a", "b", "c", "d"]}))
    with pytest.raises(ValueError, match=r"init=m: m/classification\.json names 4 classes, .* 3"):
        load_init(resnet.create_model("resnet20", num_classes=1), "m", ("d",))


def test_a_classifier_starts_from_a_run_with_other_channels(folder: Path) -> None:
    source = classifier(folder / "run/model", ("cat", "dog"))
    Path("run/config.yaml").touch()
    target = resnet.create_model("resnet20", num_classes=2, in_channels=1)
    lines = load_init(target, "run", ("cat", "dog"))
    assert "3 channels in the source, 1 here" in lines[1]
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert_close(target.eval()(x), source.net(x.expand(2, 3, 32, 32)), rtol=1e-4, atol=1e-4)


def test_another_network_or_task_is_refused(folder: Path) -> None:
    classifier(folder / "m", ("cat", "dog"))
    with pytest.raises(ValueError, match=r"init=m: .*blocks_per_stage"):
        load_init(resnet.create_model("resnet32"), "m", None)
    with pytest.raises(ValueError, match=r"init=m: .*config\.json"):
        started(small_run(init="m"))
    net(SMALL).save_pretrained("u")
    with pytest.raises(ValueError, match=r"init=u: .*config\.json"):
        init_config("u")
    with pytest.raises(ValueError, match="init=absent"):
        init_config("absent")
    Path("run").mkdir()
    Path("run/config.yaml").touch()
    with pytest.raises(ValueError, match=r"init=run: .*model"):
        init_config("run")
