import json
import os
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file, save_file

import sample
import train as script
from diffusion import (
    DDPM,
    EDM,
    FORMULATIONS,
    SAMPLERS,
    Condition,
    Flow,
    Formulation,
    Stratified,
    VariationalBound,
    denoising_loss,
)
from pictures.pixel_format import PixelFormat
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from residual.weights.note import WeightsNote
from tasks import RUNS
from tasks.classification import ClassificationRun
from tasks.denoising import DiffusionAugment, DiffusionBatch, DiffusionConfig
from tasks.diffusion import MODELS, DiffusionRun
from tasks.distillation import DistillationRun
from tasks.grid_evaluation import SampleConfig
from tasks.regression import RegressionRun
from tasks.superresolution import SuperResolutionRun
from tests.tasks.small import CLASSES, SMALL, digits, shaken, small_run, train
from training.accelerator import make_accelerator
from training.config import TrainConfig
from training.data import Images
from training.optimizer import AdamW
from training.random import GlobalRandom
from training.schedule import Constant
from training.settings import changeable, field_texts, sections
from training.step import Step
from training.task import Batch, EvaluationContext
from unet import EDM2Config, UNet, list_presets, preset

ROOT = Path(__file__).parents[2]
VARIANCE = replace(SMALL, learned_variance=True)
NETWORKS = {
    "unet": replace(VARIANCE, logvar_channels=8),
    "edm2": EDM2Config(
        base_channels=16, channel_multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,), head_channels=16
    ),
}
"""networks with a log-variance of the loss"""


def batch(count=8):
    generator = torch.Generator().manual_seed(1)
    return DiffusionBatch(torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(count) % 10)


def random(part=slice(0, 8)):
    return GlobalRandom(0, 3, "task", 8, part, "cpu")


# --- the run ---


def test_a_resumed_run_may_draw_and_judge_otherwise():
    changes = changeable(small_run())
    assert {"sample.num", "sample.steps", "sample.batch", "quality.judge", "quality.steps", "data.source"} <= changes
    assert not {"model.base_channels", "objective.schedule", "train.seed", "optimizer.learning_rate"} & changes


def test_the_network_takes_its_shape_from_the_images():
    config = small_run().build(digits()).model.config
    assert (config.in_channels, config.out_channels, config.size) == (1, 1, (8, 8))
    assert (config.classes, config.null_label) == (10, True)
    colour = Images(np.zeros((2, 3, 8, 16), np.uint8))
    config = small_run().build(colour).model.config
    assert (config.in_channels, config.out_channels, config.size, config.classes) == (3, 3, (8, 16), None)


def test_weights_come_from_the_seed():
    run = small_run()
    other = replace(run, train=replace(run.train, seed=1))
    states = [each.build(digits()).model.state_dict() for each in (run, run, other)]
    name = "embedding.linear1.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": replace(SMALL, size=(32, 32), channel_multipliers=(1, 1, 1, 1, 1))},
         r"digits.*8x8 px.*16x16.*data\.size"),
        ({"model": NETWORKS["edm2"], "augment": DiffusionAugment(non_leaky=0.1)},
         r"augment\.non_leaky=0\.1.*model\.kind=edm2"),
        *(({"objective": objective, "sample": SampleConfig(sampler=sampler)}, f"sample: sampler={sampler} .*heun")
          for objective in (EDM(), Flow()) for sampler in ("ddim", "ddpm", "unipc", "dpmpp_2m_sde")),
        ({"objective": DDPM(prediction="v", zero_terminal_snr=True), "sample": SampleConfig(sampler="dpmpp_2m_sde")},
         r"sample: sampler=dpmpp_2m_sde .*zero_terminal_snr"),
        ({"sample": SampleConfig(sampler="dim")}, "sample: .*sampler 'dim'.*ddim"),
        ({"sample": SampleConfig(steps=2000)}, "sample: steps=2000 .*1000"),
        ({"sample": SampleConfig(guidance=2.0), "diffusion": DiffusionConfig(label_dropout=0.0)},
         r"sample: guidance=2 .*diffusion\.label_dropout"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_training(fields, message):
    with pytest.raises(ValueError, match=message):
        small_run(**fields).build(digits())


def test_arrays_with_channels_last_are_refused_with_their_order():
    images = Images(np.zeros((2, 8, 8, 3), np.uint8), pixel_format=PixelFormat(file="npy"))
    with pytest.raises(ValueError, match=r"8x3 px.*\(channels, height, width\)"):
        small_run().build(images)


def test_guidance_without_classes_is_refused():
    with pytest.raises(ValueError, match=r"guidance=2 .*classes"):
        small_run(sample=SampleConfig(guidance=2.0)).build(digits(labels=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionConfig(label_dropout=1.0), r"label_dropout=1\.0"),
        (lambda: DiffusionAugment(non_leaky=1.5), r"augment\.non_leaky=1\.5"),
        (lambda: DiffusionAugment(non_leaky=0.12, flip=True), r"augment\.flip=true.*augment\.non_leaky=0\.12"),
        (lambda: SampleConfig(num=-1), "num=-1.*0 or more"),
        (lambda: SampleConfig(num=10**12), "num=1000000000000 .*10000"),
        (lambda: SampleConfig(batch=0), "batch=0.*1 or more"),
    ],
)
def test_bad_fields_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_a_learned_variance_needs_the_steps_of_ddpm(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.learned_variance=true.*objective\.kind={kind}"):
        small_run(model=VARIANCE, objective=FORMULATIONS[kind]())


def test_the_table_of_runs_and_what_the_command_line_needs_of_them():
    assert {
        "diffusion": DiffusionRun,
        "classification": ClassificationRun,
        "superresolution": SuperResolutionRun,
        "distillation": DistillationRun,
        "regression": RegressionRun,
    } == RUNS
    assert next(iter(RUNS)) == "diffusion", "what is trained where no task is named"
    presets = sections(DiffusionRun)["model"].metadata["presets"]()
    assert list(presets) == list(list_presets())
    assert presets["ddpm-cifar10"] == preset("ddpm-cifar10")
    assert {name.partition(".")[0] for name in DiffusionRun.derived if name != "data.validation"} == {"model"}


def test_help_names_every_sampler():
    named = re.split(r"\W+", field_texts(SampleConfig)["sampler"])
    assert [name for name in dict.fromkeys(named) if name in SAMPLERS] == [*SAMPLERS]


# --- the loss ---


def test_loss_is_that_of_the_parts_it_is_made_of():
    task = shaken(small_run(diffusion=DiffusionConfig(label_dropout=0.5)).build(digits()))
    given, draws = batch(), random()
    t, noise = draws.integers(1000), draws.normal(1, 8, 8)
    label = torch.where(draws.uniform() < 0.5, 10, given.label)
    assert 0 < (label == 10).sum() < 8
    expected = denoising_loss(task.model, DDPM(), given.image, noise, t.float(), Condition(label))
    torch.testing.assert_close(task.loss(task.model, given, random()), expected)


@pytest.mark.parametrize(
    ("pixels", "spacing"), [(PixelFormat(), 2 / 255), (PixelFormat(dtype="float32", low=-1, high=3, file="npy"), None)]
)
def test_the_loss_of_a_learned_variance_is_the_hybrid_one(pixels: PixelFormat, spacing: float | None) -> None:
    images = Images(np.zeros((2, 1, 8, 8), pixels.stored), np.zeros(2, np.int64), CLASSES, pixel_format=pixels)
    task, given, draws = shaken(small_run(model=VARIANCE).build(images)), batch(), random()
    t, noise = draws.integers(1000).float(), draws.normal(1, 8, 8)
    condition = Condition(torch.where(draws.uniform() < 0.1, 10, given.label))
    bound = VariationalBound(DDPM(), spacing)
    expected = denoising_loss(task.model, DDPM(), given.image, noise, t, condition, bound=bound)
    torch.testing.assert_close(task.loss(task.model, given, random()), expected)


@pytest.mark.parametrize("kind", ["unet", "edm2"])
def test_the_loss_of_a_network_with_a_log_variance_reaches_all_of_its_parameters(kind: str) -> None:
    """As training on several processes needs."""
    task = shaken(small_run(model=NETWORKS[kind]).build(digits()))
    given, draws = batch(), random()
    t, noise = draws.integers(1000).float(), draws.normal(1, 8, 8)
    condition = Condition(torch.where(draws.uniform() < 0.1, 10, given.label))
    net = partial(task.model, return_logvar=True)
    expected = denoising_loss(net, DDPM(), given.image, noise, t, condition, bound=task.bound)
    loss = task.loss(task.model, given, random())
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert all(weight.grad is not None for weight in task.model.parameters())


def test_loss_does_not_depend_on_how_the_batch_is_divided():
    task, given = shaken(small_run().build(digits())), batch()
    whole = task.loss(task.model, given, random())
    parts = [
        task.loss(task.model, DiffusionBatch(given.image[part], given.label[part]), random(part))
        for part in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def whole(count: int) -> GlobalRandom:
    return GlobalRandom(0, 0, "task", count, slice(0, count), "cpu")


def losses(**fields) -> torch.Tensor:
    task = shaken(small_run(**fields).build(digits()))
    return task.loss(task.model, batch(), random()).detach()


@pytest.mark.parametrize(
    ("base", "objective"),
    [
        (DDPM(), DDPM(schedule="cosine")),
        (DDPM(), DDPM(schedule="scaled_linear")),
        (DDPM(), DDPM(timesteps=100)),
        (DDPM(), DDPM(prediction="x0")),
        (DDPM(), DDPM(prediction="v")),
        (DDPM(), EDM()),
        (DDPM(), Flow()),
        (EDM(), EDM(sigma_data=1.0)),
        (EDM(), EDM(p_mean=0.0)),
        (EDM(), EDM(p_std=0.5)),
        (DDPM(prediction="v"), DDPM(prediction="v", zero_terminal_snr=True)),
        (Flow(), Flow(time_scale=1.0)),
        (Flow(), Flow(times_in_training="logit_normal")),
        (Flow(times_in_training="logit_normal"), Flow(times_in_training="logit_normal", logit_mean=1.0)),
        (Flow(times_in_training="logit_normal"), Flow(times_in_training="logit_normal", logit_std=0.5)),
        (Flow(), Flow(shift=3.0)),
    ],
    ids=str,
)
def test_every_objective_changes_the_loss(base: Formulation, objective: Formulation) -> None:
    assert not torch.allclose(losses(objective=base), losses(objective=objective))


@pytest.mark.parametrize("weighting", ["min_snr", "sigmoid", "edm"])
def test_the_published_weightings_change_the_loss(weighting: str) -> None:
    weighted = losses(objective=Flow(), diffusion=DiffusionConfig(weighting=weighting))
    assert not torch.allclose(losses(objective=Flow()), weighted)


@pytest.mark.parametrize("weighting", ["noise", "x0", "v"])
def test_the_weighting_changes_the_loss_except_that_of_the_prediction(weighting: str) -> None:
    found = {
        prediction: torch.allclose(
            losses(objective=DDPM(prediction=prediction)),
            losses(objective=DDPM(prediction=prediction), diffusion=DiffusionConfig(weighting=weighting)),
        )
        for prediction in ("epsilon", "x0", "v")
    }
    assert found == {"epsilon": weighting == "noise", "x0": weighting == "x0", "v": weighting == "v"}


@pytest.mark.parametrize("objective", [DDPM(timesteps=400), EDM(), Flow(times_in_training="logit_normal")])
def test_stratified_noise_levels_fall_into_different_parts(objective: Formulation) -> None:
    task = small_run(objective=objective, diffusion=DiffusionConfig(stratified=True)).build(digits())
    seen = []
    task.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    task.loss(task.model, DiffusionBatch(torch.zeros(400, 1, 8, 8), torch.zeros(400, dtype=torch.long)), whole(400))
    edges = objective.level(objective.draw_time(Stratified(lambda: torch.arange(401) / 400))).c_noise
    found = seen[0].sort().values
    assert ((edges[:-1] - 1e-4 <= found) & (found <= edges[1:] + 1e-4)).all()  # one in each part


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_labels_are_dropped_as_often_as_set(share):
    task = small_run(diffusion=DiffusionConfig(label_dropout=share)).build(digits())
    seen = []
    task.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    many = DiffusionBatch(torch.zeros(400, 1, 8, 8), torch.zeros(400, dtype=torch.long))
    task.loss(task.model, many, whole(400))
    assert (seen[0] == 10).float().mean().item() == pytest.approx(share, abs=0.06)


def test_labels_are_ignored_by_a_model_without_classes():
    task = small_run().build(digits(labels=False))
    assert task.loss(task.model, replace(batch(), label=None), random()).shape == (8,)


def test_loss_is_float32_whatever_the_network_computes_in():
    task = small_run().build(digits())
    task.model.register_forward_hook(lambda module, inputs, output: output.bfloat16())
    assert task.loss(task.model, batch(), random()).dtype == torch.float32


@pytest.mark.parametrize("labels", [True, False])
def test_the_example_can_be_given_to_the_model(labels):
    task = small_run().build(digits(labels))
    assert task.model(*task.example(torch.zeros(3, 1, 8, 8))).shape == (3, 1, 8, 8)


# --- augmentation ---


def test_non_leaky_changes_are_labelled():
    given, draws = batch(), GlobalRandom(0, 3, "augment", 8, slice(0, 8), "cpu")
    plain = small_run().build(digits()).prepare(given, draws)
    torch.testing.assert_close(plain.image, given.image, rtol=0, atol=0)
    assert plain.augment is None
    changed = small_run(augment=DiffusionAugment(non_leaky=0.2)).build(digits()).prepare(given, draws)
    assert changed.augment.shape == (8, 9)
    untouched = (changed.augment == 0).all(dim=1)
    assert 0 < untouched.sum() < 8
    torch.testing.assert_close(changed.image[untouched], given.image[untouched], rtol=0, atol=0)
    assert not torch.isclose(changed.image[~untouched], given.image[~untouched]).all()


def test_flips_happen_to_half_of_the_images():
    many = Batch(torch.rand(64, 1, 8, 8), torch.zeros(64, dtype=torch.long))
    task = small_run(augment=DiffusionAugment(flip=True)).build(digits())
    prepared = task.prepare(many, GlobalRandom(0, 3, "augment", 64, slice(0, 64), "cpu"))
    mirrored = (prepared.image == many.image.flip(3)).flatten(1).all(dim=1)
    kept = (prepared.image == many.image).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~kept)
    assert 16 < mirrored.sum() < 48
    assert prepared.augment is None


# --- evaluation ---


def evaluate(task, folder, interrupted=lambda: False):
    (evaluation,) = task.evaluations
    with torch.no_grad():
        return evaluation.run(task.model, EvaluationContext(folder, 12345, Accelerator(cpu=True), interrupted))


def evaluated(folder, sample=None, **fields):
    """A task of fixed weights that are not the initial ones, evaluated."""
    task = shaken(small_run(sample=sample or SampleConfig(num=13, steps=5), **fields).build(digits()))
    sizes = []
    task.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    task.model.eval()
    return evaluate(task, folder), sizes


def test_evaluation_draws_the_same_grid_every_time(tmp_path):
    numbers, _ = evaluated(tmp_path / "a")
    again, _ = evaluated(tmp_path / "b")
    assert numbers == again
    pictures = [Image.open(tmp_path / name / "000012345.png") for name in "ab"]
    assert np.array_equal(*map(np.array, pictures))
    assert -1 <= numbers["sample_mean"] <= 1
    assert numbers["sample_std"] > 0


def test_the_grid_is_sent_to_the_trackers(tmp_path):
    task, sent = small_run(sample=SampleConfig(num=4, steps=1)).build(digits()), {}
    (evaluation,) = task.evaluations
    with torch.no_grad():
        context = EvaluationContext(tmp_path, 7, Accelerator(cpu=True), lambda: False, sent.__setitem__)
        evaluation.run(task.model.eval(), context)
    assert np.array_equal(sent["grid"], np.asarray(Image.open(tmp_path / "000000007.png").convert("RGB")))


@pytest.mark.parametrize("guidance", [1e300, float("nan"), float("-inf")])
def test_guidance_beyond_all_bounds_is_refused(guidance):
    with pytest.raises(ValueError, match=rf"guidance={re.escape(str(guidance))} .*1,000"):
        SampleConfig(guidance=guidance)


@pytest.mark.parametrize(
    "sample",
    [
        SampleConfig(num=12, steps=5),
        SampleConfig(num=13, steps=6),
        SampleConfig(num=13, steps=5, sampler="ddpm"),
        SampleConfig(num=13, steps=5, sampler="unipc"),
        SampleConfig(num=13, steps=5, guidance=3.0),
    ],
)
def test_every_choice_changes_the_grid(tmp_path, sample):
    assert evaluated(tmp_path, sample)[0] != evaluated(tmp_path)[0]


def test_the_variance_of_ddpm_is_that_of_the_config(tmp_path):
    sample = SampleConfig(num=13, steps=5, sampler="ddpm")
    small = DDPM(variance="fixed_small")
    assert evaluated(tmp_path, sample, objective=small)[0] != evaluated(tmp_path, sample)[0]


def test_the_grid_is_drawn_in_batches(tmp_path):
    assert evaluated(tmp_path, SampleConfig(num=13, steps=1, batch=5))[1] == [5, 5, 3]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_grid_replaces_what_has_its_name(tmp_path, kind):
    task = small_run(sample=SampleConfig(num=2, steps=1)).build(digits())
    (tmp_path / "grids").mkdir()
    (tmp_path / "mine").write_text("mine")
    grid = tmp_path / "grids" / "000012345.png"
    os.mkfifo(grid) if kind == "pipe" else grid.symlink_to(tmp_path / "mine")
    assert evaluate(task, grid.parent)
    assert not grid.is_symlink()
    assert grid.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "mine").read_text() == "mine"


def test_no_images_no_grid(tmp_path):
    assert evaluated(tmp_path, SampleConfig(num=0)) == ({}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [1, 4, 17])
def test_an_evaluation_that_is_interrupted_draws_nothing_more(tmp_path, asked):
    task = small_run(sample=SampleConfig(num=13, steps=5, batch=5)).build(digits())
    interrupted = iter([False] * (asked - 1) + [True])
    assert evaluate(task, tmp_path, lambda: next(interrupted)) is None
    assert list(interrupted) == []
    assert list(tmp_path.iterdir()) == []


TWO_PROCESSES = """
import sys
from pathlib import Path
from accelerate import Accelerator
from pipelines.diffusion_folder import load_model
from tasks.grid_evaluation import GridEvaluation, SampleConfig
from training.task import EvaluationContext
model, accelerator = load_model(sys.argv[1]), Accelerator(cpu=True)
context = EvaluationContext(Path(sys.argv[2]), 12345, accelerator, lambda: False)
numbers = GridEvaluation(model, SampleConfig(num=13, steps=5), 1).run(model.net, context)
print(f"rank {accelerator.process_index} of {accelerator.num_processes}: {numbers['sample_mean']:.3f}")
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_draw_the_grid_of_one(conditional, tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [str(tmp_path / "script.py"), str(conditional)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments, str(tmp_path / "two")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2" in done.stdout
    model = load_model(conditional)
    task = small_run().build(digits())
    task.model.load_state_dict(model.net.state_dict())
    evaluate(task, tmp_path / "one")
    one, two = (np.array(Image.open(tmp_path / name / "000012345.png")).astype(int) for name in ("one", "two"))
    assert one.shape == two.shape
    assert abs(one - two).max() <= 1


# --- the model folder ---


@pytest.mark.parametrize("labels", [True, False])
def test_a_saved_model_comes_back_whole(tmp_path, labels):
    objective, config = DDPM(schedule="cosine", timesteps=50, prediction="v"), DiffusionConfig(label_dropout=0.0)
    run = small_run(objective=objective, diffusion=config, sample=SampleConfig(steps=5))
    task = shaken(run.build(digits(labels)))
    task.save(task.model, tmp_path)
    model = load_model(tmp_path)
    assert model.formulation == objective
    assert (model.shape, model.null, model.images_seen) == ((1, 8, 8), None, None)
    assert model.classes == (CLASSES if labels else None)
    assert not model.net.training
    options = {"steps": 3, "seed": 5}
    numbers = range(4)
    ours, theirs = (each.draw(numbers, each.cycle(numbers), **options) for each in (task.diffusion, model))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


def test_a_run_folder_gives_its_model_and_the_images_it_has_seen(conditional, tmp_path):
    (tmp_path / "config.yaml").write_text("task: diffusion\n")
    with pytest.raises(ValueError, match=r"no model in .*"):
        load_model(tmp_path)
    os.symlink(conditional, tmp_path / "model")
    assert load_model(tmp_path).images_seen is None
    for name in ("000001024", "000002048", "tmp-000004096"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert load_model(str(tmp_path)).images_seen == 2048


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json"], r"neither config\.yaml nor diffusion\.json.*RUN/model"),
        (["config.json", "classification.json", "best.json"], r"nor diffusion\.json, but classification\.json"),
    ],
)
def test_a_folder_without_such_a_model_is_described(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def damaged(source, target, change):
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((source / name).read_bytes())
    document = json.loads((source / "diffusion.json").read_text())
    change(document)
    (target / "diffusion.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=9), "format_version 9.* 3"),
        (lambda d: d.update(format_version=2), "format_version 2.*9782c87.* 3"),
        (lambda d: d.pop("formulation"), "'formulation'"),
        (lambda d: d["formulation"].pop("kind"), "formulation 'None'.*ddpm, edm, flow"),
        (lambda d: d["formulation"].update(kind="edn"), "formulation 'edn'.*edm"),
        (lambda d: d["formulation"].pop("schedule"), "'schedule'"),
        (lambda d: d["formulation"].update(prediction="epsilom"), "prediction='epsilom'.*epsilon"),
        (lambda d: d["formulation"].update(timesteps="1000"), "timesteps='1000'.*int"),
        (lambda d: d["formulation"].update(timestep=1000), "'timestep'.*timesteps"),
        (lambda d: d.update(classes="0123456789"), "classes='0123456789'.*tuple"),
        (lambda d: d.update(classes=[0, 1]), r"classes=\[0, 1\].*tuple"),
        (lambda d: d.pop("pixel_format"), "'pixel_format'"),
        (lambda d: d["pixel_format"].update(low="0"), "low='0'.*float"),
        (lambda d: d["pixel_format"].update(high=0), r"low=0 and high=0"),
        (lambda d: d.update(pixel_format=None), "None .*PixelFormat"),
        (lambda d: d.update(formulation=None), "formulation=None"),
        (lambda d: d.update(formulation="ddpm"), "formulation='ddpm'"),
        (lambda d: d.update(null_label="yes"), "null_label='yes'.*bool"),
        (lambda d: d.update(classes=["a"]), "1 class, config.json has 10"),
        (lambda d: d.update(classes=None), "0 classes, config.json has 10"),
        (lambda d: d.update(class_counts=[1] * 9), r"class_counts=\[1, .*10 classes"),
        (lambda d: d.update(class_counts=[0] * 10), r"class_counts=\[0, .*10 classes"),
        (lambda d: d.update(class_counts=[-1] + [1] * 9), r"class_counts=\[-1, .*10 classes"),
        (lambda d: d.update(class_counts="many"), "class_counts='many'"),
        (lambda d: d.update(class_counts={"zero": 1}), "class_counts={'zero': 1}"),
    ],
)
def test_an_incomplete_folder_is_refused(conditional, tmp_path, change, message):
    damaged(conditional, tmp_path / "model", change)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")


def test_arrays_of_any_channels_and_range_are_trained_on_and_drawn(tmp_path, capsys):
    pixels = PixelFormat(dtype="float32", low=-3.0, high=5.0, file="npy")
    array = np.random.default_rng(0).uniform(-3, 5, (64, 4, 8, 8)).astype(np.float32)
    array[:, 3] = 4.5  # a channel to be recognised by
    images = Images(array, pixel_format=pixels)
    run = small_run()
    task = train(run, images, 60)
    assert run.load_init(task) == []
    evaluate(task, tmp_path)
    with Image.open(tmp_path / "000012345.png") as picture:
        assert picture.mode == "RGB"
    task.save(task.model, tmp_path / "model")
    assert load_model(tmp_path / "model").pixel_format == pixels
    sample.main(
        [str(tmp_path / "model"), "--num", "2", "--steps", "20", "--out", str(tmp_path / "out"), "--device", "cpu"]
    )
    for name in ("000000.npy", "000001.npy"):
        drawn = np.load(tmp_path / "out" / "images" / name)
        assert (drawn.shape, drawn.dtype) == ((4, 8, 8), np.float32)
        assert drawn.min() >= -3
        assert drawn.max() <= 5
        assert drawn[3].mean() > drawn[:3].mean() + 1


def test_text_that_is_not_json_is_refused(conditional, tmp_path):
    damaged(conditional, tmp_path / "model", lambda document: None)
    (tmp_path / "model" / "diffusion.json").write_text("{")
    with pytest.raises(ValueError, match=r"diffusion\.json.*JSON"):
        load_model(tmp_path / "model")


def test_weights_of_a_diverged_training_are_refused(conditional, tmp_path):
    damaged(conditional, tmp_path / "model", lambda document: None)
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    state["embedding.linear1.weight"][0, 0] = float("nan")
    save_file(state, file)
    with pytest.raises(ValueError, match=r"embedding\.linear1\.weight.*nan"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_type_are_sampled_in_float32(conditional, tmp_path, dtype):
    model = load_model(conditional)
    whole = model.draw(range(2), [3, 4], steps=5)
    model.net.to(dtype)
    model.save(tmp_path)
    halved = f"129 of 129 tensors are {str(dtype).removeprefix('torch.')}"
    with pytest.warns(WeightsNote, match=halved):
        loaded = load_model(tmp_path)
    torch.testing.assert_close(loaded.draw(range(2), [3, 4], steps=5), whole, rtol=0, atol=0.1)


def test_a_network_that_needs_more_than_noise_is_refused(tmp_path):
    net = UNet(replace(SMALL, in_channels=4, out_channels=1))
    DiffusionModel(net, DDPM()).save(tmp_path)
    with pytest.raises(ValueError, match=r"4 channels .*draws 1"):
        load_model(tmp_path)


def test_folders_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.yaml.*diffusion\.json"):
        load_model(tmp_path)


# --- labels ---


def test_labels_by_name_and_number(conditional):
    model = load_model(conditional)
    assert [model.label(text) for text in ("three", "3", "none")] == [3, 3, 10]
    assert model.names([3, 10]) == ["three", "none"]
    assert model.cycle(range(8, 12)) == [8, 9, 0, 1]


def test_a_name_counts_before_a_number(conditional):
    assert replace(load_model(conditional), classes=("7", "1", "none")).label("1") == 1
    assert replace(load_model(conditional), classes=("1", "0")).label("0") == 1


@pytest.mark.parametrize(
    ("classes", "text", "label"),
    [
        (("all", "none"), "none", 1),
        (("all", "none"), "all", 0),
        (("all", "none"), "1", 1),
        (("cat", ""), "", 1),
        (("caf\u00e9", "x"), "cafe\u0301", 0),
        (("3", "5", "7"), "7", 2),
        (("3", "5", "7"), "none", 3),
    ],
)
def test_names_that_mean_something_else_too(conditional, classes, text, label):
    assert replace(load_model(conditional), classes=classes).label(text) == label


@pytest.mark.parametrize("text", ["0", "2", "-1", "07"])
def test_a_number_is_a_name_where_names_are_numbers(conditional, text):
    with pytest.raises(ValueError, match=f"label {text} .*3, 5, 7"):
        replace(load_model(conditional), classes=("3", "5", "7")).label(text)


def test_classes_without_training_images_are_not_drawn_by_default(tmp_path):
    images = digits()
    chosen = np.flatnonzero(np.isin(images.labels, (1, 3, 9)))
    task = small_run().build(images.part(chosen))
    counts = tuple(np.bincount(images.labels[chosen]).tolist())
    task.save(task.model, tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.class_counts == task.diffusion.class_counts == counts
    assert model.cycle(range(4)) == [1, 3, 9, 1]
    assert model.label("0") == 0


def test_a_folder_without_counts_draws_all_classes(conditional, tmp_path):
    damaged(conditional, tmp_path / "model", lambda d: d.pop("class_counts"))
    assert load_model(tmp_path / "model").cycle(range(8, 12)) == [8, 9, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thre", "class 'thre'.*three"),
        ("10", "label 10 .*0 … 9.*zero, one, two"),
        ("-1", "label -1 .*0 … 9"),
    ],
)
def test_unknown_labels_are_refused(conditional, text, message):
    with pytest.raises(ValueError, match=message):
        load_model(conditional).label(text)


def test_labels_that_a_model_was_not_trained_with_are_refused(conditional, unconditional):
    with pytest.raises(ValueError, match=r"label '3'.*no classes"):
        load_model(unconditional).label("3")
    with pytest.raises(ValueError, match=r"label 'none'.*diffusion\.label_dropout"):
        replace(load_model(conditional), null_label=False).label("none")
    with pytest.raises(ValueError, match=r"guidance=3 .*classes"):
        load_model(unconditional).draw(range(1), None, guidance=3.0)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([], [], "image numbers"),
        ([0, 1], [3], "1 label for 2 images"),
        ([0, 1], [3, 11], "label 11 .*0 to 10"),
        ([0], [-1], "label -1 .*0 to 10"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_any_work(conditional, images, labels, message):
    with pytest.raises(ValueError, match=message):
        load_model(conditional).denoising(images, labels)


def test_labels_must_be_given_or_left_out_as_trained(conditional, unconditional):
    always = replace(load_model(conditional), null_label=False)
    with pytest.raises(ValueError, match="trained without labels"):
        always.denoising([0], None)
    with pytest.raises(ValueError, match=r"label 10 .*0 to 9"):
        always.denoising([0], [10])
    with pytest.raises(ValueError, match="no classes"):
        load_model(unconditional).denoising([0], [0])


def test_guidance_0_is_no_label_and_1_is_plain(conditional):
    model, labels = load_model(conditional), [3, 4, 5]
    options = {"steps": 10}
    plain = model.draw(range(3), labels, **options)
    free = model.draw(range(3), [10] * 3, **options)
    torch.testing.assert_close(model.draw(range(3), labels, guidance=1.0, **options), plain, rtol=0, atol=0)
    torch.testing.assert_close(model.draw(range(3), labels, guidance=0.0, **options), free, rtol=0, atol=0)
    assert (plain - free).abs().max() > 0.1
    assert (model.draw(range(3), labels, guidance=3.0, **options) - plain).abs().max() > 0.1


def test_the_augmentation_label_reaches_the_network_and_zero_is_the_default():
    run = small_run(augment=DiffusionAugment(non_leaky=0.12))
    task = shaken(run.build(digits()))
    assert task.model.config.augment_channels == 9
    image, label = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)

    def losses(augment):
        random = GlobalRandom(0, 0, "task", 4, slice(0, 4), "cpu")
        return task.loss(task.model, DiffusionBatch(image, label, augment), random)

    plain = losses(None)
    torch.testing.assert_close(losses(torch.zeros(4, 9)), plain)
    assert not torch.isclose(losses(torch.ones(4, 9)), plain).any()


def test_a_network_of_log_time_is_not_trained():
    with pytest.raises(ValueError, match=r"model\.time_embedding=log_fourier"):
        small_run(model=replace(SMALL, time_embedding="log_fourier")).build(digits())


@pytest.mark.slow
def test_a_run_with_a_learned_variance_resumes_bit_for_bit_and_is_drawn_from(tmp_path, monkeypatch):
    """From a file of ADM's weights, whose learned variance is kept and goes on training."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    config = replace(VARIANCE, time_embedding="adm", conditioning="scale_shift", resample="block")
    config = replace(config, in_channels=1, out_channels=1, base_channels=32, groups=32, classes=10)
    trained = UNet(config)
    for weight in trained.parameters():
        weight.data.add_(torch.randn(weight.shape), alpha=0.02)
    save_file(trained.export_weights("adm"), tmp_path / "adm.safetensors")
    (tmp_path / "run.yaml").write_text(
        "data: {source: digits}\nsample: {num: 1, steps: 1, sampler: ddpm, guidance: 2}\n"
        "model: {base_channels: 32, channel_multipliers: [1, 2], attention_levels: [1], blocks_per_level: 1,\n"
        "        time_embedding: adm, conditioning: scale_shift, resample: block, learned_variance: true}\n"
        "train: {images: 32, batch: 16, log_every_images: 16, trackers: [], precision: float32}\n"
        f"schedule: {{warmup_images: 0}}\ninit: {tmp_path / 'adm.safetensors'}\ninit_layout: adm\n"
    )

    def run(name: str, *flags: str) -> Path:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        script.main(["--config", str(tmp_path / "run.yaml"), "--run", str(tmp_path / name), *flags])
        return tmp_path / name

    straight, pieces = run("straight"), run("pieces", "--train.images", "16")
    assert run("pieces") == pieces
    ends = [load_file(folder / "checkpoints" / "000000032" / "model.safetensors") for folder in (straight, pieces)]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
    rows = [weights["head.conv.weight"][1:] for weights in (ends[0], trained.state_dict())]
    assert not torch.allclose(*rows)
    drawn = load_model(straight).draw(range(2), [3, 4], sampler="ddpm", steps=3, guidance=2.0)
    assert drawn.isfinite().all()
    assert drawn.std() > 0.05


# --- every network and every objective ---


FIRST = {("unet", "ddpm"), ("unet", "flow"), ("edm2", "edm")}
"""pairs of the default suite; tests/tasks/test_objectives.py has all of them, without the trainer's step"""


@pytest.mark.parametrize(
    ("kind", "objective"),
    [pytest.param(*pair, marks=[] if pair in FIRST else pytest.mark.slow) for pair in product(MODELS, FORMULATIONS)],
)
def test_every_network_trains_under_every_objective(tmp_path, kind: str, objective: str) -> None:
    """Through the trainer's own step: the loss falls, the folder is enough to sample with the default sampler."""
    settings = TrainConfig(images=40 * 32, batch=32, precision="float32", trackers=())
    run = small_run(
        model={"unet": SMALL, "edm2": NETWORKS["edm2"]}[kind],
        objective=FORMULATIONS[objective](),
        train=settings,
        optimizer=AdamW(learning_rate=5e-3),
        schedule=Constant(warmup_images=0),
    )
    task = run.build(digits())
    with closing(Step(task, digits(), run, make_accelerator(settings))) as step:
        losses = [step.update().loss.item() for _ in range(40)]
        assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])
        if kind == "edm2":  # weights of unit magnitude per output, and a head for the uncertainty that trains too
            weight = task.model.middle.block0.res.branch.conv1.weight
            torch.testing.assert_close(weight.square().mean(dim=(1, 2, 3)), torch.ones(len(weight)), rtol=1e-3, atol=0)
        task.save(step.ema.model, tmp_path)
    model = load_model(tmp_path)
    assert model.formulation == FORMULATIONS[objective]()
    assert type(model.net.config) is MODELS[kind]
    drawn = model.draw(range(2), [3, 10], steps=4, guidance=2.0)
    assert drawn.isfinite().all()
    assert drawn.std() > 0.05
