"""Classifiers of noisy images: the loss, the folder, and the diffusion models that they guide."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

import sample
from diffusion import DDPM, EDM, Flow
from pictures.files import to_uint8
from pictures.pixel_format import PixelFormat
from pipelines.classification import CLEAN, load_classifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from resnet import DenseNetConfig, HighwayConfig, ResNetConfig
from tasks import RUNS
from tasks.accuracy import accuracy
from tasks.classification import ClassificationRun, ClassificationTask, NoNoise
from tests.tasks.small import CLASSES, digits, train
from tests.tasks.test_classification import BATCH, batch, random
from training.cli import parse

SMALL = ResNetConfig(
    block="preact_basic", blocks_per_stage=(1, 1), widths=(8, 16), stem="conv3", stem_channels=8, norm="group"
)


def noisy_run(formulation=DDPM(), **fields) -> ClassificationRun:  # noqa: B008
    return ClassificationRun(**{"model": SMALL, "noise": formulation, **fields})


@pytest.fixture(scope="module")
def trained() -> ClassificationTask:
    """A classifier of digits with the noise of the fixture `conditional`."""
    return train(noisy_run(), digits(), 200)


@pytest.fixture(scope="module")
def guided(trained: ClassificationTask, conditional: Path) -> DiffusionModel:
    return load_model(conditional).classified_by(trained.classifier)


@pytest.mark.parametrize("formulation", [DDPM(schedule="cosine", prediction="v"), EDM(), Flow()])
def test_the_loss_is_the_cross_entropy_of_noisy_images_and_their_levels(formulation) -> None:
    task = noisy_run(formulation).build(digits())
    seen, numbers = batch(task), random()
    level = formulation.level(formulation.draw_time(numbers))
    noisy = level.noisy(seen.image, numbers.normal(1, 8, 8))
    logits = (level.alpha / torch.hypot(level.alpha, level.sigma)).flatten(1) * task.model(
        level.c_in * noisy, level.c_noise
    )
    expected = F.cross_entropy(logits, seen.label, reduction="none")
    found = task.loss(task.model, task.prepare(seen, random("augment")), random())
    assert_close(found, expected)
    assert task.classifier.formulation == formulation
    assert task.model.config.noise


@pytest.mark.parametrize("given", [None, (0.5, 0.5, 0.5)])
def test_noisy_images_are_scaled_by_their_formulation_alone(given) -> None:
    task = noisy_run(model=replace(SMALL, mean=given, std=given)).build(digits())
    assert task.model.config.mean == task.model.config.std == (0.5,)


def test_a_preset_is_trained_on_noisy_images_without_its_mean() -> None:
    flags = ["--task", "classification", "--model.preset", "resnet18", "--model.norm", "group", "--noise.kind", "ddpm"]
    with pytest.raises(ValueError, match=r"model\.mean=.*model\.mean=null"):
        parse(RUNS, flags)
    run = parse(RUNS, [*flags, "--model.mean", "null", "--model.std", "null"]).run
    assert isinstance(run, ClassificationRun)
    assert run.outline().config.noise


def test_the_folder_keeps_the_formulation(trained: ClassificationTask, tmp_path: Path) -> None:
    trained.save(trained.model, tmp_path)
    found, (image, time) = load_classifier(tmp_path), trained.example(torch.randn(2, 1, 8, 8))
    assert found.formulation == trained.classifier.formulation == DDPM()
    assert_close(found.net(image, time), trained.model(image, time))
    path = tmp_path / "classification.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"noise": None, "format_version": 3}))
    with pytest.raises(ValueError, match=r"classification\.json and config\.json.*noisy"):
        load_classifier(tmp_path)
    path.write_text(json.dumps(document | {"noise": {"kind": "dppm"}}))
    with pytest.raises(ValueError, match=r"classification\.json.*dppm.*ddpm"):
        load_classifier(tmp_path)
    path.write_text(json.dumps(document | {"format_version": 3}))
    with pytest.raises(ValueError, match=r"classification\.json.*format_version 3"):
        load_classifier(tmp_path)


def test_clean_images_are_classified_at_a_low_level(trained: ClassificationTask) -> None:
    classifier, seen = trained.classifier, batch(trained)
    time = DDPM().time_at(torch.full((len(seen.image),), CLEAN))
    assert seen.label is not None
    with torch.no_grad():
        expected = (logits := trained.model(seen.image, time)).softmax(dim=1)
        of_labels = classifier.log_probability(seen.image, time, seen.label)
        assert_close(classifier.net.fc(classifier.features(seen.image)).softmax(dim=1), expected)
    assert_close(classifier.probabilities(seen.image), expected)
    noisy = (logits / (1 + CLEAN**2) ** 0.5).softmax(dim=1)
    assert_close(of_labels.exp(), noisy.gather(1, seen.label[:, None])[:, 0])
    found = accuracy(classifier, digits().part(np.arange(BATCH)), 7)
    assert found is not None
    assert found["top1"] == pytest.approx((expected.argmax(dim=1) == seen.label).double().mean().item())


@pytest.mark.parametrize("formulation", [DDPM(schedule="cosine"), EDM(), Flow()])
def test_logits_of_much_noise_are_those_of_classes_around_their_means(trained, formulation) -> None:
    means = torch.nn.functional.normalize(torch.randn(10, 64, dtype=torch.float64))
    classifier = replace(trained.classifier, formulation=formulation)
    time = formulation.time_at(torch.full((5,), 300.0, dtype=torch.float64))
    level = formulation.level(time)
    x = level.scale() * torch.randn(5, 1, 8, 8, dtype=torch.float64)
    found = classifier.noisy_logits(lambda x, _: x.flatten(1) @ means.T.to(x), x, time)
    distance = (x.flatten(1)[:, None] - level.alpha.flatten(1)[:, None] * means).square().sum(dim=2)
    exact = -distance / (2 * level.sigma.square().flatten(1))
    centred = (found - found.mean(dim=1, keepdim=True), exact - exact.mean(dim=1, keepdim=True))
    assert_close(*centred, rtol=1 / 250, atol=1e-6, check_dtype=False)  # equal but for terms of alpha / sigma


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": replace(SMALL, norm="batch")}, r"noise\.kind=ddpm.*norm='batch'.*model\.norm"),
        ({"model": replace(SMALL, block="split_attention")}, r"noise\.kind=ddpm.*split_attention.*model\.block"),
        ({"model": DenseNetConfig()}, r"noise\.kind=ddpm.*model\.kind=resnet"),
        ({"model": HighwayConfig()}, r"noise\.kind=ddpm.*model\.kind=resnet"),
        ({"model": replace(SMALL, mean=(0.1, 0.2, 0.3), std=(0.5,) * 3)}, r"noise\.kind=ddpm.*model\.mean=\(0\.1"),
        ({"model": replace(SMALL, mean=(0.5,) * 3, std=(0.2, 0.3, 0.4))}, r"noise\.kind=ddpm.*model\.std=\(0\.2"),
    ],
)
def test_networks_that_take_no_noise_level_are_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noisy_run(**fields)
    assert ClassificationRun(**{**fields, "noise": NoNoise()}).formulation is None


def test_a_network_that_takes_a_noise_level_needs_noise() -> None:
    with pytest.raises(ValueError, match=r"model\.noise=true.*noise\.kind=none"):
        ClassificationRun(model=replace(SMALL, noise=True))


def test_the_noise_of_a_formulation_is_chosen_by_settings() -> None:
    flags = ["--task", "classification", "--noise.kind", "flow", "--noise.shift", "2", "--model.norm", "group"]
    run = parse({"classification": ClassificationRun}, flags).run
    assert isinstance(run, ClassificationRun)
    assert run.formulation == Flow(shift=2.0)


# --- as a guide ------------------------------------------------------------------------------------------------------


def test_images_become_more_likely_for_the_classifier(guided: DiffusionModel, conditional: Path) -> None:
    plain, labels = load_model(conditional), list(range(10)) * 2
    options = {"steps": 6, "sampler": "dpmpp_2m"}
    low, high = (guided.draw(range(20), labels, guidance=0, classifier_scale=scale, **options) for scale in (1.0, 4.0))
    drawn = [plain.draw(range(20), labels, guidance=0, **options), low, high]
    assert guided.classifier is not None
    shares = [guided.classifier.probabilities(x).gather(1, torch.tensor(labels)[:, None]).mean() for x in drawn]
    assert shares[0] < shares[1] < shares[2]


def test_classifier_and_classifier_free_guidance_add_up(guided: DiffusionModel, conditional: Path) -> None:
    labels = [3, 4]
    both = guided.draw([0, 1], labels, steps=2, guidance=2.0)
    for other in (
        guided.draw([0, 1], labels, steps=2),
        load_model(conditional).draw([0, 1], labels, steps=2, guidance=2.0),
    ):
        assert (both - other).abs().max() > 1e-3
    within = guided.draw([0, 1], labels, steps=2, guidance_interval=(1e6, 2e6))
    assert_close(within, load_model(conditional).draw([0, 1], labels, steps=2))
    strong = guided.draw([0, 1], labels, steps=2, classifier_scale=10.0)
    rescaled = guided.draw([0, 1], labels, steps=2, classifier_scale=10.0, guidance_rescale=0.7)
    assert (rescaled - strong).abs().max() > 1e-3


def test_classes_are_matched_by_name(guided: DiffusionModel, trained: ClassificationTask) -> None:
    net = reordered(trained, order := list(range(9, -1, -1)))
    names = tuple(CLASSES[k] for k in order)
    other = replace(guided, classifier=None).classified_by(replace(trained.classifier, net=net, classes=names))
    assert_close(other.draw([0, 1], [3, 4], steps=2), guided.draw([0, 1], [3, 4], steps=2))


def reordered(task: ClassificationTask, order: list[int]):
    """The network with its last layer in another order."""
    net = noisy_run().build(digits()).model.eval()
    net.load_state_dict(task.model.state_dict())
    for weight in (net.fc.weight, net.fc.bias):
        weight.data = weight.data[order]
    return net


REFUSED = {
    "no noise": ({"formulation": None}, r"noise.*noise\.kind"),
    "another formulation": ({"formulation": EDM()}, "kind=edm.*ddpm"),
    "another schedule": ({"formulation": DDPM(schedule="cosine")}, "schedule=cosine.*linear"),
    "another number of timesteps": ({"formulation": DDPM(timesteps=500)}, "timesteps=500.*1000"),
    "other values": ({"pixel_format": PixelFormat(low=0.0, high=1.0, dtype="float32")}, "pixel_format=.*float32"),
    "other classes": ({"classes": (*CLASSES[:9], "ten")}, "lacks.*nine.*ten"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_classifiers_of_other_images_are_refused(case: str, trained: ClassificationTask, conditional: Path) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"classifier .*{message}"):
        load_model(conditional).classified_by(replace(trained.classifier, **fields))


def test_a_prediction_may_differ_and_other_sizes_are_refused(trained: ClassificationTask, conditional: Path) -> None:
    model, classifier = load_model(conditional), trained.classifier
    assert model.classified_by(replace(classifier, formulation=DDPM(prediction="x0"))).classifier is not None
    larger = replace(classifier, preprocessing=replace(classifier.preprocessing, size=(16, 16)))
    with pytest.raises(ValueError, match=r"shape=\(1, 16, 16\).*\(1, 8, 8\)"):
        model.classified_by(larger)
    with pytest.raises(ValueError, match=r"classes.*none"):
        replace(model, classes=None).classified_by(classifier)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([3, 10], {}, "'none'.*class"),
        (None, {}, "classifier.*label"),
        ([3, 4], {"classifier_scale": 0.0}, "classifier_scale=0 .*effect"),
        ([3, 4], {"classifier_scale": float("nan")}, "classifier_scale=nan .*range"),
        ([3, 4], {"classifier_scale": -1e4}, "classifier_scale=-10000 .*1,000"),
    ],
)
def test_what_a_classifier_cannot_guide_is_refused(labels, options, message: str, guided: DiffusionModel) -> None:
    with pytest.raises(ValueError, match=message):
        guided.draw([0, 1], labels, steps=2, **options)


def test_a_scale_needs_a_classifier(conditional: Path) -> None:
    with pytest.raises(ValueError, match=r"classifier_scale=2 .*classifier"):
        load_model(conditional).draw([0], [1], steps=2, classifier_scale=2.0)


# --- sample.py -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(trained: ClassificationTask, tmp_path_factory) -> Path:
    """The model folder of the classifier of noisy images."""
    path = tmp_path_factory.mktemp("classifier")
    trained.save(trained.model, path)
    return path


def draw(model: Path, out: Path, *flags: object) -> np.ndarray:
    sample.main([str(model), "--out", str(out), "--device", "cpu", "--num", "4", "--steps", "3", *map(str, flags)])
    return np.stack([np.array(Image.open(path)) for path in sorted((out / "images").iterdir())]).astype(int)


def test_a_classifier_guides_the_command(
    conditional: Path, folder: Path, guided: DiffusionModel, tmp_path: Path
) -> None:
    flags = ["--label", "three", "--guidance", 0, "--classifier", folder, "--classifier-scale", 3]
    found = draw(conditional, tmp_path / "out", *flags)
    expected = to_uint8(guided.draw(range(4), [3] * 4, steps=3, guidance=0.0, classifier_scale=3.0))[..., 0]
    assert abs(found - expected).max() <= 1
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["classifier"], record["classifier_scale"]) == (str(folder), 3.0)
    with Image.open(tmp_path / "out/images/000000.png") as picture:
        assert (picture.text["classifier"], picture.text["classifier_scale"]) == (str(folder), "3.0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classifier-scale", 2], "classifier_scale=2 .*classifier"),
        (["--classifier", "CLASSIFIER", "--classifier-scale", 0], "classifier_scale=0 .*effect"),
        (["--classifier", "CLASSIFIER", "--classifier-scale", "inf"], "classifier_scale=inf .*range"),
        (["--classifier", "CLASSIFIER", "--label", "none"], "label is none"),
        (["--classifier", "CLASSIFIER", "--morph", "none", "three"], "classifier .*morph=none three"),
        (["--classifier", "CLASSIFIER", "--label", "eleven"], "eleven.*seven"),
        (["--classifier", "CLASSIFIER", "--guidance-interval", 2, 1], "guidance_interval=2,1"),
        (["--classifier", "CLASSIFIER", "--guidance-rescale", 2], "guidance_rescale=2"),
        (["--classifier", "MODEL"], "UNet.*not a classifier|no .*classification.json"),
        (["--classifier", "absent"], "absent"),
        (["--classifier", "CLEAN"], "without noise.*noise.kind"),
    ],
)
def test_the_command_refuses_what_cannot_be_guided(
    flags, message: str, conditional: Path, folder: Path, trained: ClassificationTask, tmp_path: Path, capsys
) -> None:
    places = {"CLASSIFIER": folder, "MODEL": conditional, "CLEAN": tmp_path / "clean"}
    ClassificationRun(model=replace(SMALL, widths=(8, 8))).build(digits()).classifier.save(tmp_path / "clean")
    with pytest.raises(SystemExit):
        draw(conditional, tmp_path / "out", *(places.get(str(flag), flag) for flag in flags))
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()
