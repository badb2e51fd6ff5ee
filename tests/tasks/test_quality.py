"""Metrics of a diffusion model by a classifier's features: pairs of images, the floor, bad input, in training."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import evaluate
import train
from metrics import frechet_distance, memorised, precision_recall
from pictures.preprocessing import Preprocessing
from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.drawn import gather_drawn
from resnet import ResNetConfig
from resnet import build as build_classifier
from tasks.comparison import QualityConfig
from tasks.quality import Quality
from tasks.reference import write_reference
from tests.tasks.small import CLASSES, SMALL, digits, shaken, small_run
from training.data import Images

WIDTH = 16


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a classifier with random weights, whose classes are in another order."""
    torch.manual_seed(0)
    config = ResNetConfig(blocks_per_stage=(1, 1), widths=(8, WIDTH), stem="conv3", stem_channels=8, in_channels=1)
    net = build_classifier(replace(config, num_classes=10, mean=(0.5,), std=(0.5,))).eval()
    folder = tmp_path_factory.mktemp("judge")
    preprocessing = Preprocessing(size=(8, 8), channels=1)
    ImageClassifier(net, CLASSES[::-1], preprocessing, digits().pixel_format).save(folder)
    return folder


def halves(labels: bool = True) -> tuple[Images, Images]:
    images = digits(labels)
    return images.part(np.arange(0, 400)), images.part(np.arange(400, 1000))


def small_model(labels: bool = True) -> DiffusionModel:
    torch.manual_seed(0)
    return shaken(small_run(model=SMALL).build(digits(labels))).diffusion


def quality(judge: Path, labels: bool = True, **config) -> Quality:
    chosen = QualityConfig(judge=str(judge), **{"steps": 3, "batch": 64, **config})
    return Quality(small_model(labels), chosen, *halves(labels), every_images=100)


def test_pairs_are_disjoint_and_have_equal_classes(judge: Path) -> None:
    found = quality(judge, num=150)
    held_out, training = found.comparison.held_out.labels, found.comparison.training.labels
    assert held_out is not None
    assert training is not None
    assert len(held_out) == len(training) == 150
    assert Counter(held_out.tolist()) == Counter(training.tolist())
    pixels = {found.comparison.held_out.read(np.array([k])).tobytes() for k in range(150)}
    source = halves()[1]
    assert not pixels & {source.read(np.array([k])).tobytes() for k in range(600)}
    assert len(quality(judge, labels=False).comparison.held_out) == 400
    assert not np.array_equal(quality(judge, num=150, seed=2).comparison.held_out.labels, held_out)


@pytest.mark.parametrize("labels", [True, False])
def test_the_metrics_are_those_of_the_images_that_the_model_draws(judge: Path, labels: bool) -> None:
    found = quality(judge, labels, num=100, seed=3)
    metrics = found.measure(found.model.net)
    assert metrics is not None
    wanted = found.comparison.held_out.labels.tolist() if labels else None
    drawn = found.model.draw(range(100), wanted, seed=3, steps=3)
    classifier = load_classifier(judge)

    def features(pixels: np.ndarray) -> torch.Tensor:
        unit = found.comparison.held_out.pixel_format.to_unit(torch.from_numpy(pixels))
        return classifier.net.forward_features(classifier.normalise(unit)).mean(dim=(2, 3)).detach()

    everything = np.arange(100)
    ours = features(found.model.pixel_format.from_unit(drawn))
    real, training = (
        features(found.comparison.held_out.read(everything)),
        features(found.comparison.training.read(everything)),
    )
    assert metrics["frechet_distance"] == pytest.approx(frechet_distance(real, ours), rel=1e-3)
    assert metrics["frechet_floor"] == pytest.approx(frechet_distance(real, training), rel=1e-3)
    assert (metrics["precision"], metrics["recall"]) == pytest.approx(precision_recall(real, ours), abs=0.02)
    assert metrics["memorised"] == pytest.approx(memorised(ours, training, real), abs=0.02)
    assert ("class_accuracy" in metrics) == labels
    if labels:
        named = [classifier.classes[k] for k in classifier.net.fc(ours).argmax(dim=1).tolist()]
        right = np.mean([CLASSES[label] == name for label, name in zip(wanted, named, strict=True)])
        assert metrics["class_accuracy"] == pytest.approx(right, abs=0.011)


@pytest.mark.parametrize("change", [{"steps": 4}, {"sampler": "euler"}, {"guidance": 3.0}, {"seed": 7}, {"num": 40}])
def test_every_setting_changes_the_distance(judge: Path, change: dict) -> None:
    plain, changed = quality(judge, num=100), quality(judge, **{"num": 100, **change})
    first, second = (each.measure(each.model.net) for each in (plain, changed))
    assert first is not None
    assert second is not None
    assert first["frechet_distance"] != pytest.approx(second["frechet_distance"], rel=1e-4)


def test_the_batch_changes_nothing(judge: Path) -> None:
    first, second = (quality(judge, num=100, batch=size) for size in (7, 100))
    assert first.measure(first.model.net) == pytest.approx(second.measure(second.model.net), rel=1e-3)


class Gathered(Exception):
    """Ends a process when its share is done."""


@pytest.mark.parametrize("what", ["drawn", "real"])
@pytest.mark.parametrize(("num", "batch", "ranks"), [(37, 8, 2), (41, 100, 3)])
def test_processes_share_the_images_over_uneven_parts(
    what: str, num: int, batch: int, ranks: int, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = quality(judge, num=num, batch=batch, steps=1)
    call = {
        "drawn": lambda: found.measure(found.model.net),
        "real": lambda: found.comparison.features(found.comparison.held_out),
    }[what]
    module = {"drawn": "tasks.quality", "real": "tasks.comparison"}[what]
    whole: list = []

    def gather(share: list, count: int, _: object) -> list:
        assert count == num
        whole.extend(share)
        raise Gathered

    monkeypatch.setattr(f"{module}.gather_drawn", gather)
    with pytest.raises(Gathered):
        call()
    one = np.stack(gather_drawn(whole, num))
    whole.clear()
    for rank in range(ranks):
        state = SimpleNamespace(process_index=rank, num_processes=ranks, device=torch.device("cpu"))
        monkeypatch.setattr(f"{module}.process_state", lambda state=state: state)
        with pytest.raises(Gathered):
            call()
    several = np.stack(gather_drawn(whole, num))
    assert several.shape == (num, WIDTH)
    np.testing.assert_allclose(several, one, rtol=1e-4, atol=1e-5)


def test_training_images_as_samples_reach_the_floor(judge: Path) -> None:
    found = quality(judge)
    metrics = found.comparison.compare(found.comparison._features[1], None)
    assert metrics["frechet_distance"] == metrics["frechet_floor"]
    assert metrics["memorised"] == 1


def test_a_reference_replaces_the_features_of_real_images(judge: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "real.safetensors"
    plain, writes = quality(judge, num=100), quality(judge, num=100, reference=path)
    expected = plain.measure(plain.model.net)
    assert writes.measure(writes.model.net) == expected
    reads = quality(judge, num=100, reference=path)
    monkeypatch.setattr(reads.comparison, "features", None)  # no real image is read
    assert reads.measure(reads.model.net) == expected


def test_a_reference_of_something_else_is_refused(judge: Path, tmp_path: Path) -> None:
    path = tmp_path / "real.safetensors"
    quality(judge, num=100, reference=path).comparison.floors  # noqa: B018 computes and writes them

    def refused(match: str, images: tuple = halves(), **config) -> None:
        chosen = QualityConfig(**{"judge": str(judge), "steps": 3, "num": 100, "reference": path, **config})
        with pytest.raises(ValueError, match=rf"quality\.reference.*real\.safetensors.*{match}"):
            Quality(small_model(), chosen, *images, every_images=100)

    refused(r"n=100.*80", num=80)
    refused(r"seed=1.*2", seed=2)
    refused(r"held_out=[0-9a-f]{64}.*[0-9a-f]{64}", halves()[::-1])
    held_out, training = halves()
    refused(r"training=[0-9a-f]{64}", (held_out, training.part(np.arange(600)[::-1])))
    other = tmp_path / "judge"
    shutil.copytree(judge, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, other / "model.safetensors")
    refused(r"judge=[0-9a-f]{64}", judge=str(other))
    save_file({"held_out": torch.zeros(3, 3)}, path)
    refused(r"judge=nothing")
    path.write_bytes(b"text")
    refused(r"damaged")
    path.unlink()
    comparison = quality(judge, num=100, reference=path).comparison
    nan = torch.full((100, comparison.judge.num_features), torch.nan)
    write_reference(path, comparison._facts, (nan, nan.clone()))
    refused(r"not finite")
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"real\.safetensors is a folder"):
        quality(judge, num=100, reference=path)
    with pytest.raises(ValueError, match=r"absent/real.*no folder"):
        quality(judge, num=100, reference=tmp_path / "absent" / "real.safetensors")


def test_a_reference_that_cannot_be_written_is_refused_at_the_start(judge: Path) -> None:
    with pytest.raises(ValueError, match=r"quality\.reference=/proc/real cannot be written.*give another"):
        quality(judge, num=100, reference=Path("/proc/real"))


def test_images_that_are_not_finite_are_not_measured(judge: Path) -> None:
    found = quality(judge, num=100)
    for weight in found.model.net.parameters():
        weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"image 0 .*not finite"):
        found.measure(found.model.net)


def test_an_interruption_ends_it(judge: Path) -> None:
    found = quality(judge, num=100)
    assert found.measure(found.model.net, interrupted=lambda: True) is None


def test_a_model_without_classes_is_compared_with_unsorted_images(judge: Path) -> None:
    """Its samples have no labels, so those of the real images do not count."""
    chosen = QualityConfig(judge=str(judge), num=150, steps=1)
    found = Quality(small_model(labels=False), chosen, *halves(), every_images=100).comparison
    assert found.held_out.labels is not None
    assert found.training.labels is not None
    assert Counter(found.held_out.labels.tolist()) != Counter(found.training.labels.tolist())


def test_classes_that_the_model_lacks_are_refused(judge: Path) -> None:
    model = replace(small_model(), classes=(*CLASSES[:9], "ten"))
    with pytest.raises(ValueError, match=r"lacks: nine"):
        Quality(model, QualityConfig(judge=str(judge), steps=1), *halves(), every_images=100)
    model = replace(small_model(), null_label=False)
    with pytest.raises(ValueError, match=r"only with labels"):
        Quality(model, QualityConfig(judge=str(judge), steps=1), *halves(labels=False), every_images=100)


@pytest.mark.parametrize("seconds", [None, 75.0, 5.0])
def test_a_time_budget_lowers_the_number_of_images(judge: Path, tmp_path: Path, monkeypatch, seconds) -> None:
    monkeypatch.setattr("tasks.quality.seconds_per_image", lambda *arguments, **options: 0.5)
    found, least = quality(judge, seconds=seconds), WIDTH + 1
    count = {None: 400, 75.0: 150, 5.0: least}[seconds]
    text, cost = found.plan(found.model.net, tmp_path)
    assert (len(found.comparison.held_out), len(found.comparison.training), cost) == (count, count, count / 2)
    assert re.match(rf"drawing {count} (of 400 )?images.*in 3 ddim steps", text)
    same = quality(judge, num=count)
    for ours, theirs in (
        (found.comparison.held_out, same.comparison.held_out),
        (found.comparison.training, same.comparison.training),
    ):
        assert np.array_equal(ours.read(np.arange(count)), theirs.read(np.arange(count)))
    later = quality(judge, seconds=seconds, steps=2, guidance=2.0)  # the number stays
    monkeypatch.setattr("tasks.quality.seconds_per_image", lambda *arguments, **options: 1e-6)
    later.plan(later.model.net, tmp_path)
    assert len(later.comparison.held_out) == count


@pytest.mark.parametrize(
    ("config", "images", "match"),
    [
        ({"num": 401}, halves(), r"quality\.num=401.*400"),
        ({"num": WIDTH}, halves(), rf"{WIDTH} images.*{WIDTH} features.*{WIDTH + 1}"),
        ({"sampler": "fast"}, halves(), r"quality:.*fast"),
        ({"steps": 0}, halves(), r"quality: steps=0"),
        ({}, (Images(np.zeros((30, 1, 4, 4), np.uint8)), halves()[1]), r"data\.validation.*\(1, 4, 4\)"),
        ({}, (halves(labels=False)[0], halves()[1]), r"labels"),
        ({}, (digits().part(np.flatnonzero(digits().labels == 1)), digits().part(np.flatnonzero(digits().labels == 2))),
         r"no class in common"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(judge: Path, config: dict, images: tuple, match: str) -> None:
    chosen = QualityConfig(judge=str(judge), **{"steps": 3, **config})
    with pytest.raises(ValueError, match=match):
        Quality(small_model(), chosen, *images, every_images=100)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: QualityConfig(num=1), r"num=1"),
        (lambda: QualityConfig(batch=0), r"batch=0"),
        (lambda: QualityConfig(reference=Path("real"), seconds=3.0), r"reference=real.*seconds=3"),
        (lambda: QualityConfig(seconds=0.0), r"seconds=0\.0"),
        (lambda: QualityConfig(seed=-1), r"seed=-1"),
        (lambda: small_run(quality=QualityConfig(judge="x")), r"quality\.judge=x.*data\.validation"),
    ],
)
def test_settings_out_of_range_are_refused(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def exhaust() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_run_logs_its_quality_and_is_evaluated(judge: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    model = {"base_channels": 16, "channel_multipliers": [1, 2], "blocks_per_level": 1, "groups": 8}
    settings = {
        "data": {"source": "digits", "cache": "cache", "validation": 0.3},
        "model": model,
        "sample": {"num": 0},
        "quality": {"judge": str(judge), "steps": 2, "num": 100},
        "train": {"images": 64, "batch": 32, "precision": "float32", "trackers": []},
        "schedule": {"warmup_images": 0},
    }
    Path("run.yaml").write_text(json.dumps(settings))
    train.main(["--config", "run.yaml", "--run", "run"])
    logged = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    found = next(line for line in logged if "frechet_distance" in line)
    assert found["quality_images"] == 100
    assert re.search(
        r"^quality: drawing 100 images in 2 ddim steps takes about \d+\.?\d* s, \d+ % of the run$",
        capsys.readouterr().out,
        re.M,
    )
    assert Path("run/samples/metrics.png").stat().st_size > 0
    best = load_model("run/best")
    assert best.images_seen == 64
    assert json.loads(Path("run/best/best.json").read_text())["value"] == found["frechet_distance"]
    torch.testing.assert_close(best.net.state_dict(), load_model("run").net.state_dict())
    capsys.readouterr()
    evaluate.main(["run"])
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    for name in ("frechet_distance", "recall", "memorised"):
        value, about = printed[name].split(" ", 1)
        assert float(value) == pytest.approx(found[name], rel=1e-3, abs=1e-4)
        assert re.search(r"n 100, seed 1", about)
    assert re.search(r"floor 0\.5000, n 100", printed["memorised"])
    floor = re.search(r"floor ([\d.]+)", printed["frechet_distance"])
    assert floor is not None
    assert float(floor[1]) == pytest.approx(found["frechet_floor"], rel=1e-3, abs=1e-4)
    assert "class_accuracy" not in found  # the judge has other names of classes
    assert re.match(r"class_accuracy, because", printed["left out"])
    with monkeypatch.context() as patch:
        patch.setattr("tasks.quality.Quality.measure", lambda *_: exhaust())
        with pytest.raises(SystemExit):
            evaluate.main(["run"])
    assert re.search(r"run.*memory.*quality\.batch", capsys.readouterr().err)
    evaluate.main(["run/best", "--quality.seconds", "1e-9"])
    assert re.search(
        rf"^quality: drawing {WIDTH + 1} of 100 images \(the least.*seconds=1e-09", capsys.readouterr().out, re.M
    )
    assert not Path("run/samples/quality.json").exists()
    with pytest.raises(SystemExit):
        evaluate.main(["run", "--quality.num", "5000"])
    assert re.search(r"quality\.num=5000", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        evaluate.main(["run", "--data.validation", "0.5"])
    assert re.search(r"data\.validation=0\.5.*trained on", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        evaluate.main(["run", "--quality.judge", "null"])
    assert re.search(r"quality\.judge", capsys.readouterr().err)
