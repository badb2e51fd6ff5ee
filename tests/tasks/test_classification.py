"""Classification as a task: its loss, its evaluation, what it saves, what it refuses; and a run on the digits."""

import json
import math
import re
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

import resnet
from pipelines.classification import ImageClassifier, load_classifier
from resnet import ResNetConfig
from tasks.accuracy import AccuracyEvaluation, accuracy
from tasks.augment import cutout, mixed, padded_crop, random_flip
from tasks.classification import (
    MODELS,
    ClassificationAugment,
    ClassificationConfig,
    ClassificationRun,
    ClassificationTask,
    as_trained,
)
from tests.tasks.small import CLASSES, digits
from tests.training import toy
from training.cli import parse
from training.config import TrainConfig
from training.data import DataConfig, Images, PixelFormat, Preprocessing, open_images
from training.ema import EmaConfig
from training.loop import fit
from training.optimizer import SGD
from training.random import GlobalRandom
from training.run_folder import RunFolder
from training.task import Batch, EvaluationContext

SMALL = ResNetConfig(blocks_per_stage=(1, 1), widths=(8, 16), stem="conv3", stem_channels=8)
BATCH = 16


def small_run(**fields) -> ClassificationRun:
    return ClassificationRun(**{"model": SMALL, **fields})


def batch(task: ClassificationTask, count: int = BATCH) -> Batch:
    images = digits()
    assert images.labels is not None
    stored = torch.from_numpy(images.read(np.arange(count)))
    return Batch(images.pixel_format.to_unit(stored), torch.from_numpy(images.labels[:count]))


def random(stream: str = "task") -> GlobalRandom:
    return GlobalRandom(0, 0, stream, BATCH, slice(None), "cpu")


def loss(task: ClassificationTask) -> torch.Tensor:
    return task.loss(task.model, task.prepare(batch(task), random("augment")), random())


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_smoothed_cross_entropy_of_the_normalised_images() -> None:
    model = replace(SMALL, in_channels=1, mean=(0.2,), std=(0.3,))
    task = small_run(model=model, classification=ClassificationConfig(label_smoothing=0.1)).build(digits())
    seen, found = batch(task), loss(task)
    logs = task.model(((seen.image + 1) / 2 - 0.2) / 0.3).log_softmax(dim=1)
    assert seen.label is not None
    expected = -0.9 * logs.gather(1, seen.label[:, None])[:, 0] - 0.1 * logs.mean(dim=1)
    assert_close(found, expected)
    assert found.dtype == torch.float32


def test_images_of_which_nothing_is_known_go_in_as_they_are() -> None:
    task = small_run().build(digits())
    assert task.model.config.mean == task.model.config.std == (0.5,)
    seen = batch(task)
    assert_close(task.classifier.normalise(seen.image), seen.image)


def test_the_loss_of_a_mixed_image_is_that_of_both_labels() -> None:
    config = ClassificationAugment(flip=True, pad_px=1, cutout_px=2, mixup=0.4, cutmix=1.0)
    task = small_run(augment=config).build(digits())
    seen, numbers = batch(task), random()
    assert seen.label is not None
    image = task.classifier.normalise(random_flip(seen.image, random("augment")))
    image = cutout(padded_crop(image, numbers, 1), numbers, 2)
    image, other, share = mixed(image, seen.label, numbers, 0.4, 1.0)
    logits = task.model(image)
    of = [F.cross_entropy(logits, label, reduction="none") for label in (seen.label, other)]
    assert_close(loss(task), share * of[0] + (1 - share) * of[1])


CHANGED = {"flip": True, "pad_px": 1, "cutout_px": 3, "mixup": 0.2, "cutmix": 1.0, "padding": "reflect"}


@pytest.mark.parametrize("name", CHANGED)
def test_every_field_of_the_augmentation_matters(name: str) -> None:
    others = {"pad_px": 2} if name == "padding" else {}
    runs = [small_run(augment=ClassificationAugment(**given)) for given in (others, others | {name: CHANGED[name]})]
    assert not torch.equal(*(loss(run.build(digits())) for run in runs))
    assert set(CHANGED) == set(ClassificationAugment.__dataclass_fields__)


def test_label_smoothing_matters() -> None:
    configs = [ClassificationConfig(label_smoothing=share) for share in (0.0, 0.1)]
    assert not torch.equal(*(loss(small_run(classification=config).build(digits())) for config in configs))


def test_the_weights_follow_from_the_seed() -> None:
    nets = [small_run(train=TrainConfig(seed=seed)).build(digits()).model for seed in (0, 0, 1)]
    first, again, other = (net.levels[0].conv1.weight for net in nets)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- the evaluation --------------------------------------------------------------------------------------------------


def by_hand(task: ClassificationTask, images: Images) -> dict[str, float]:
    assert images.labels is not None
    label = torch.from_numpy(images.labels)
    with torch.no_grad():
        logits = task.model(
            task.classifier.normalise(
                images.pixel_format.to_unit(torch.from_numpy(images.read(np.arange(len(images)))))
            )
        )
    ranked = logits.argsort(dim=1, descending=True)
    found = {f"top{k}": (ranked[:, :k] == label[:, None]).any(dim=1).double().mean().item() for k in (1, 5)}
    return found | {"validation_loss": F.cross_entropy(logits.double(), label).item()}


@pytest.mark.parametrize("size", [7, 100, 1000])
def test_the_figures_are_those_of_all_images_each_once(size: int) -> None:
    task = small_run().build(digits())
    images = digits().part(np.arange(101))
    task.model.eval()
    assert accuracy(task.classifier, images, size) == pytest.approx(by_hand(task, images), abs=1e-6)


def test_a_loss_that_is_not_finite_is_part_of_the_mean() -> None:
    task, images = small_run().build(digits()), digits().part(np.arange(11))
    task.model.eval().register_forward_hook(lambda net, x, logits: logits.index_fill(0, torch.tensor([2]), math.nan))
    found = accuracy(task.classifier, images, 11)
    assert found is not None
    assert math.isnan(found["validation_loss"])
    assert math.isfinite(found["top1"])


def test_few_classes_have_no_top_5() -> None:
    images = Images(np.zeros((6, 1, 8, 8), np.uint8), np.arange(6) % 3)
    task = small_run().build(images)
    task.model.eval()
    assert list(accuracy(task.classifier, images, 4) or ()) == ["top1", "validation_loss"]


def test_the_batch_of_an_evaluation_matters_and_it_can_be_interrupted(config, tmp_path) -> None:
    data = config(validation=0.1)
    run = small_run(data=data, classification=ClassificationConfig(validation_batch=50))
    task, asked = run.build(open_images(data)), []
    task.model.eval()
    engine = toy.accelerator(run)
    (evaluation,) = task.evaluations
    assert isinstance(evaluation, AccuracyEvaluation)
    assert evaluation.every_images == run.train.eval_every_images
    numbers = evaluation.run(task.model, EvaluationContext(tmp_path / "samples", 0, engine, lambda: asked.append(1)))
    assert len(asked) == 4, "180 images"
    assert list(numbers or ()) == ["top1", "top5", "validation_loss"]
    assert (tmp_path / "samples" / "confusion.png").is_file()
    assert evaluation.run(task.model, EvaluationContext(tmp_path / "samples", 0, engine, lambda: True)) is None
    assert small_run().build(digits()).evaluations == ()


@pytest.fixture
def config(tmp_path: Path):
    return lambda **fields: DataConfig(cache=tmp_path / "cache", **fields)


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "fields", "named"),
    [
        (ClassificationConfig, {"label_smoothing": 1.0}, "label_smoothing=1.0"),
        (ClassificationConfig, {"validation_batch": 0}, "validation_batch=0"),
        (ClassificationAugment, {"pad_px": -1}, "augment.pad_px=-1"),
        (ClassificationAugment, {"cutout_px": -1}, "augment.cutout_px=-1"),
        (ClassificationAugment, {"mixup": -0.1}, "augment.mixup=-0.1"),
        (ClassificationAugment, {"cutmix": float("nan")}, "augment.cutmix=nan"),
        (ClassificationAugment, {"padding": "reflect"}, "augment.padding=reflect"),
    ],
)
def test_settings_out_of_range_are_named(config: type, fields: dict, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        config(**fields)


def test_images_that_cannot_be_classified() -> None:
    with pytest.raises(ValueError, match=r"digits have no labels.*data\.label_file"):
        small_run().build(digits(labels=False))
    deep = replace(SMALL, blocks_per_stage=(1,) * 5, widths=(8,) * 5)
    with pytest.raises(ValueError, match=r"8 x 8 px.*16 px.*data\.size"):
        small_run(model=deep).build(digits())
    with pytest.raises(ValueError, match=r"augment\.pad_px=8.*8 x 8 px"):
        small_run(augment=ClassificationAugment(pad_px=8)).build(digits())
    with pytest.raises(ValueError, match=r"augment\.cutout_px=16.*8 x 8 px"):
        small_run(augment=ClassificationAugment(cutout_px=16)).build(digits())
    with pytest.raises(ValueError, match=r"one class \(0\)"):
        small_run().build(Images(np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, np.int64)))
    with pytest.raises(ValueError, match=r"data\.labels=false"):
        small_run(data=DataConfig(labels=False))


def test_mixed_pairs_must_not_be_split() -> None:
    mixes = ClassificationAugment(mixup=0.2)
    with pytest.raises(ValueError, match=r"train\.batch=63.*mixup"):
        small_run(augment=mixes, train=TrainConfig(batch=63))
    run = small_run(augment=mixes, train=TrainConfig(batch=66, micro_batch=33))
    with pytest.raises(ValueError, match=r"train\.batch.*33.*mixup"):
        run.build(digits())


def test_validation_images_of_another_kind(tmp_path: Path, config) -> None:
    def write(part: str, name: str, size: int) -> None:
        folder = tmp_path / "pets" / part / name
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((size, size), np.uint8)).save(folder / "0.png")

    for part, size in (("train", 8), ("val", 9)):
        write(part, "cat", size)
        write(part, "dog", size)
    data = config(source=str(tmp_path / "pets"))
    with pytest.raises(ValueError, match=r"data\.validation.*\(1, 9, 9\).*\(1, 8, 8\).*data\.size"):
        small_run(data=replace(data, validation="val")).build(open_images(data))
    classes = ("zero", "eins", *CLASSES[2:])
    with pytest.raises(ValueError, match=r"image 1 of data\.validation.*'one'.*10"):
        as_trained((1, 8, 8), PixelFormat(), classes, digits())
    with pytest.raises(ValueError, match=r"data\.validation have no labels"):
        as_trained((1, 8, 8), PixelFormat(), CLASSES, digits(labels=False))


def test_classes_of_validation_images_are_those_of_the_same_names() -> None:
    array = np.zeros((3, 1, 8, 8), np.uint8)
    few, trained = Images(array, np.array([0, 1, 1]), ["cat", "dog"]), ("ape", "dog", "cat", "eel")
    found = as_trained((1, 8, 8), PixelFormat(), trained, few)
    assert found.classes == trained
    assert [trained[i] for i in found.labels] == [("cat", "dog")[i] for i in few.labels]
    assert few.classes == ("cat", "dog")


# --- published weights -----------------------------------------------------------------------------------------------


def test_published_weights_are_adapted_with_a_message(tmp_path: Path) -> None:
    theirs = resnet.create_model("resnet18", num_classes=7)
    save_file(theirs.export_weights("torchvision"), tmp_path / "r18.safetensors")
    init = str(tmp_path / "r18.safetensors")
    run = small_run(model=resnet.model_info("resnet18").config, init=init, data=DataConfig(size=32))
    run.check_init()
    images = Images(np.zeros((4, 1, 32, 32), np.uint8), np.arange(4) % 2)
    task = run.build(images)
    lines = run.load_init(task)
    assert lines[0] == "validation: none, so nothing is evaluated; see data.validation"
    assert lines[1] == f"init: {init}"
    assert len(lines) == 4, "the classifier and the first convolution"
    assert torch.equal(
        task.model.levels[1].get_submodule("0.branch.conv1").weight,
        theirs.levels[1].get_submodule("0.branch.conv1").weight,
    )
    other = replace(run, model=resnet.model_info("resnet50").config)
    with pytest.raises(ValueError, match=f"init={re.escape(init)}: .*resnet18"):
        other.check_init()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("source", [1, 3, 4])
def test_a_run_starts_from_a_classifier_of_any_channels(tmp_path: Path, source: int, channels: int) -> None:
    """As the settings are read: they hold no number of channels, but mean and deviation have one value for each."""
    net = resnet.create_model("resnet20", 2, source, mean=(0.2,) * source, std=(0.3,) * source)
    model = ImageClassifier(net, ("a", "b"), Preprocessing(size=(8, 8), channels=source), PixelFormat())
    model.save(tmp_path / "model")
    run = parse({"classification": ClassificationRun}, ["--init", str(tmp_path / "model"), "--data.size", "8"]).run
    run.check_init()
    task = run.build(Images(np.zeros((4, channels, 8, 8), np.uint8), np.arange(4) % 2, ("b", "a")))
    run.load_init(task)
    assert (task.model.config.mean, task.model.config.std) == ((0.2,) * channels, (0.3,) * channels)
    assert_close(task.model.fc.weight, net.fc.weight.flip(0), rtol=0, atol=0)


# --- the model folder ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ClassificationTask, Path]:
    data = DataConfig(size=8, channels=1, center_share=0.5)
    task = small_run(data=data).build(digits())
    task.model.eval()
    folder = tmp_path / "model"
    folder.mkdir()
    task.save(task.model, folder)
    return task, folder


def test_a_classifier_comes_back_as_it_was(saved) -> None:
    task, folder = saved
    found = load_classifier(folder)
    assert (found.classes, found.preprocessing, found.pixel_format, found.images_seen) == (
        CLASSES,
        Preprocessing(size=(8, 8), channels=1, center_share=0.5),
        PixelFormat(),
        None,
    )
    seen = batch(task).image
    assert_close(found.probabilities(seen), task.classifier.probabilities(seen), rtol=0, atol=0)
    assert_close(found.probabilities(seen).sum(dim=1), torch.ones(BATCH))


def test_pictures_are_named_whatever_they_are_given_as(saved, tmp_path: Path) -> None:
    """With half of the side kept, a picture of 16 x 20 px is its middle 8 x 8, pixel for pixel."""
    classifier = load_classifier(saved[1])
    pixels = np.random.default_rng(0).integers(0, 256, (70, 16, 20), np.uint8)
    unit = classifier.pixel_format.to_unit(torch.from_numpy(pixels[:, None, 4:12, 6:14].copy()))
    best = classifier.probabilities(unit).max(dim=1)
    expected = [(CLASSES[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    assert classifier.predict(list(pixels)) == [(name, pytest.approx(p, abs=1e-6)) for name, p in expected]
    Image.fromarray(pixels[0]).save(tmp_path / "0.png")
    Image.fromarray(pixels[0]).convert("RGB").save(encoded := BytesIO(), "png")
    forms = [tmp_path / "0.png", str(tmp_path / "0.png"), encoded.getvalue(), pixels[0]]
    assert [name for name, _ in classifier.predict(forms)] == [expected[0][0]] * 4
    (ranked,) = classifier.rank([pixels[0]], len(CLASSES))
    assert ranked[:1] == classifier.predict([pixels[0]])
    assert {name for name, _ in ranked} == set(CLASSES)
    assert sum(share for _, share in ranked) == pytest.approx(1)
    assert [share for _, share in ranked] == sorted((share for _, share in ranked), reverse=True)
    assert classifier.predict([]) == []
    with pytest.raises(ValueError, match=r"\['none\.png'\]"):
        classifier.predict("none.png")
    with pytest.raises(ValueError, match=r"none\.png.*bytes or pixels"):
        classifier.predict(["none.png"])
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png"):
        classifier.predict([tmp_path / "empty.png"])
    with pytest.raises(ValueError, match=r"ndarray.*32 bits"):
        classifier.predict([np.zeros((8, 8), np.float32)])
    arrays = replace(classifier, pixel_format=PixelFormat(file="npy"))
    with pytest.raises(ValueError, match=r"arrays.*to_unit"):
        arrays.predict([pixels[0]])
    for weight in classifier.net.parameters():
        weight.data.mul_(1e17)
    with pytest.raises(ValueError, match=r"picture 0 .* not finite"):
        classifier.predict(list(pixels))


def test_an_incomplete_model_folder_is_refused(saved, tmp_path: Path) -> None:
    folder = saved[1]
    file = folder / "classification.json"
    document = json.loads(file.read_text())
    for change, message in (
        ({"format_version": 9}, "format_version 9"),
        ({"classes": ["a", "b"]}, "2 classes, config.json has 10"),
        ({"classes": 0}, "classes=0"),
        ({"classes": "abcdefghij"}, "classes='abcdefghij'"),
        ({"classes": [*range(10)]}, "classes=[0"),
        ({"preprocessing": {}}, "'size'"),
        ({"preprocessing": document["preprocessing"] | {"channels": None}}, "no size or channels"),
    ):
        file.write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=re.escape(message)):
            load_classifier(folder)
    del document["classes"]
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="'classes'"):
        load_classifier(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"config\.yaml nor classification\.json"):
        load_classifier(folder)


KINDS = {
    "resnet": SMALL,
    "densenet": resnet.DenseNetConfig(blocks_per_stage=(1, 1), growth=4, stem="conv3", stem_channels=8),
    "highway": resnet.HighwayConfig(blocks_per_stage=(1, 1), widths=(8, 16), head_channels=16),
}


def test_every_kind_of_classifier_has_a_case() -> None:
    assert set(KINDS) == set(MODELS)


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_classifier_trains_and_is_saved(kind: str, tmp_path: Path) -> None:
    task = small_run(model=KINDS[kind]).build(digits())
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-2)
    first = loss(task).mean()
    for _ in range(40):
        optimizer.zero_grad()
        loss(task).mean().backward()
        optimizer.step()
    assert loss(task).mean() < 0.8 * first
    task.model.eval()
    task.save(task.model, tmp_path)
    images = batch(task).image
    assert_close(load_classifier(tmp_path).probabilities(images), task.classifier.probabilities(images))


# --- through the loop ------------------------------------------------------------------------------------------------


def train(path: Path, run: ClassificationRun) -> None:
    """What train.py does."""
    engine, images, folder = toy.accelerator(run), open_images(run.data), RunFolder(path)
    with closing(folder):
        folder.open(run, {})
        fit(run.build(images), images, run, folder, engine)


def test_a_run_with_batch_norms_and_sgd_goes_on_bit_for_bit(tmp_path: Path, config) -> None:
    optimizer = SGD(nesterov=True, learning_rate=0.05, weight_decay=1e-3, decay_vectors=False)
    changes = ClassificationAugment(flip=True, pad_px=1, cutout_px=2, mixup=0.2, cutmix=1.0)

    def run(images: int) -> ClassificationRun:
        return small_run(
            data=config(validation=0.2),
            augment=changes,
            train=TrainConfig(images=images, batch=32, precision="float32", trackers=()),
            optimizer=optimizer,
            ema=EmaConfig(halflife_images=64),
        )

    train(tmp_path / "straight", run(320))
    train(tmp_path / "pieces", run(128))
    train(tmp_path / "pieces", run(320))
    assert toy.hashes(tmp_path / "pieces") == toy.hashes(tmp_path / "straight")
    assert all(name.endswith(".momentum_buffer") for name in toy.tensors(tmp_path / "straight", "optimizer"))
    trained, average = (toy.tensors(tmp_path / "straight", file) for file in ("model", "ema"))
    moved = [name for name, value in trained.items() if not value.equal(average[name])]
    assert any(name.endswith("running_var") for name in moved)
    last = json.loads((tmp_path / "straight" / "log.jsonl").read_text().splitlines()[-1])
    assert {"top1", "top5", "validation_loss"} < set(last)
