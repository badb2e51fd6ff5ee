"""Ensembles of held-out pairs: members by image number, settings, pairs of another kind; in a run and evaluate.py."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import evaluate
import sample
import train
from diffusion import EDM
from evaluating.command import read_run
from pictures.units import Units
from pipelines.diffusion import DiffusionModel
from tasks.comparison import QualityConfig
from tasks.denoising import DiffusionConfig
from tasks.ensemble import Ensemble, EnsembleConfig, score_prediction
from tasks.ensemble_scores import score_ensemble
from tasks.regression import RegressionRun
from tests.tasks.small import SMALL, digits, shaken, small_run
from training.data import DataConfig, Images
from unet import UNet

UNITS = Units(mean=(280.0, 1e5, 5.0), std=(10.0, 600.0, 1.0), transform=("none", "none", "arcsinh"))
NARROW = replace(SMALL, base_channels=8, attention_levels=(), groups=4, padding="periodic_width")


def pairs(missing: bool = False, units: Units = UNITS, **fields) -> Images:
    """Seven fields of two target channels and one condition, in units, with two numbers each."""
    random = np.random.default_rng(0)
    values = units.from_unit(torch.from_numpy(random.normal(size=(7, 3, 8, 8)).astype(np.float32)))
    if missing:
        values[2, 0, 3] = np.nan
        values[4, 2, :4] = np.nan
    vectors, columns = random.normal(3, 2, (7, 2)).astype(np.float32), ("strain", "season")
    inputs = {"conditions": 1, "vectors": vectors, "vector_columns": columns} | fields
    found = Images(values, pixel_format=units, **inputs)
    found.seen = np.ones((3, 8, 8), bool) if missing else None
    return found


def model(images: Images) -> DiffusionModel:
    torch.manual_seed(0)
    data = DataConfig(source="digits", missing=images.seen is not None)
    run = small_run(model=NARROW, objective=EDM(), data=data, diffusion=DiffusionConfig(label_dropout=0.1))
    return shaken(run.build(images)).diffusion


def ensemble(images: Images | None = None, **config) -> Ensemble:
    trained_on = pairs() if images is None else images
    chosen = EnsembleConfig(**{"members": 3, "steps": 2, **config})
    return Ensemble(model(trained_on), chosen, trained_on, every_images=100)


def figures(found: Ensemble) -> dict[str, float]:
    scores = found.measure(found.model.net)
    assert scores is not None
    return scores.figures


@pytest.mark.parametrize("missing", [False, True])
def test_member_j_of_pair_k_is_image_k_times_members_plus_j(missing: bool) -> None:
    images = pairs(missing)
    found = ensemble(images, num=5, seed=4, batch=4)
    unit = images.pixel_format.to_unit(torch.from_numpy(images.read(np.arange(5))))
    assert images.vectors is not None
    members = [
        found.model.draw(
            [3 * k + j for k in range(5)], None, image=unit[:, 2:], vector=images.vectors[:5].tolist(), seed=4, steps=2
        )
        for j in range(3)
    ]
    drawn = torch.stack([torch.from_numpy(found.model.pixel_format.from_unit(x)) for x in members])
    truth = torch.from_numpy(images.read(np.arange(5))[:, :2])
    expected = score_ensemble(drawn, truth, (False, True), seed=4)
    scores = found.measure(found.model.net)
    assert scores is not None
    assert_close(scores.figures, expected.figures, rtol=1e-4, atol=1e-6)
    assert scores.ranks is not None
    assert expected.ranks is not None
    assert_close(scores.ranks, expected.ranks, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "change", [{"steps": 3}, {"sampler": "euler"}, {"guidance": 3.0}, {"seed": 7}, {"num": 4}, {"members": 1}]
)
def test_every_setting_changes_the_scores(change: dict) -> None:
    plain, changed = ensemble(), ensemble(**change)
    assert figures(plain)["crps"] != pytest.approx(figures(changed)["crps"], rel=1e-4)
    assert plain.conditions != changed.conditions


def test_the_batch_changes_nothing() -> None:
    first, second = (figures(ensemble(batch=size)) for size in (5, 100))
    assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_conditions_are_standardised_as_in_training() -> None:
    """Not by the statistics of the held-out pairs, which may be others."""
    own = ensemble()
    other = replace(UNITS, mean=(0.0, 0.0, 0.0))
    images = pairs()
    elsewhere = Images(
        images.read(np.arange(7)),
        pixel_format=other,
        conditions=1,
        vectors=images.vectors,
        vector_columns=images.vector_columns,
    )
    found = Ensemble(own.model, own.config, elsewhere, every_images=100)
    assert_close(figures(found), figures(own))


def test_labels_are_those_of_the_pairs() -> None:
    images = digits().part(np.arange(6))
    torch.manual_seed(0)
    trained = shaken(small_run(model=replace(NARROW, padding="zeros")).build(digits())).diffusion
    found = Ensemble(trained, EnsembleConfig(members=2, steps=2), images, every_images=100)
    assert images.labels is not None
    members = torch.stack([trained.draw(range(j, 12, 2), images.labels.tolist(), seed=1, steps=2) for j in range(2)])
    drawn = torch.stack([torch.from_numpy(trained.pixel_format.from_unit(x)) for x in members])
    truth = torch.from_numpy(images.read(np.arange(6))).float()
    assert_close(figures(found), score_ensemble(drawn.float(), truth, seed=1).figures, rtol=1e-3, atol=1e-3)


def test_an_interruption_ends_it() -> None:
    found = ensemble()
    assert found.measure(found.model.net, interrupted=lambda: True) is None


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (pairs(conditions=2), r"target channels 1.*2"),
        (pairs(vectors=None, vector_columns=()), r"data\.vector_columns \(\).*strain"),
        (Images(np.zeros((4, 3, 8, 16), np.float32), pixel_format=UNITS, conditions=1), r"height x width \(8, 16\)"),
        (Images(np.zeros((4, 2, 8, 8), np.float32), pixel_format=UNITS.channels(0, 2)), r"condition channels 0.*1"),
        (pairs(units=replace(UNITS, mean=(7.0, 1e5, 5.0))), r"channel 0"),
    ],
)
def test_pairs_of_another_kind_are_refused(images: Images, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Ensemble(model(pairs()), EnsembleConfig(members=2), images, every_images=100)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: EnsembleConfig(members=0), r"members=0"),
        (lambda: EnsembleConfig(num=0), r"num=0"),
        (lambda: EnsembleConfig(batch=0), r"batch=0"),
        (lambda: EnsembleConfig(seed=-1), r"seed=-1"),
        (lambda: ensemble(sampler="fast"), r"ensemble:.*fast"),
        (lambda: small_run(ensemble=EnsembleConfig(members=2)), r"ensemble\.members=2.*data\.validation"),
        (
            lambda: small_run(
                ensemble=EnsembleConfig(members=2),
                quality=QualityConfig(judge="x"),
                data=DataConfig(source="digits", validation=0.5),
            ),
            r"ensemble\.members=2.*quality\.judge",
        ),
        (
            lambda: small_run(ensemble=EnsembleConfig(members=2), diffusion=DiffusionConfig(upscale=2)),
            r"ensemble\.members=2.*diffusion\.upscale",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.slow
def test_a_run_logs_its_scores_and_is_evaluated(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    model = {"base_channels": 16, "channel_multipliers": [1, 2], "blocks_per_level": 1, "groups": 8}
    settings = {
        "data": {"source": "digits", "cache": "cache", "validation": 0.3},
        "model": model,
        "sample": {"num": 0},
        "ensemble": {"members": 2, "steps": 2, "num": 10},
        "train": {"images": 32, "batch": 32, "precision": "float32", "trackers": []},
        "schedule": {"warmup_images": 0},
    }
    Path("run.yaml").write_text(json.dumps(settings))
    train.main(["--config", "run.yaml", "--run", "run"])
    logged = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    found = next(line for line in logged if "crps" in line)
    assert json.loads(Path("run/best/best.json").read_text())["value"] == found["crps"]
    planned = r"^ensemble: drawing 2 members for each of 10 pairs in 2 ddim steps takes about [\d.]+ s"
    assert re.search(planned, capsys.readouterr().out, re.M)
    for name in ("metrics", "ensemble-000000032"):
        assert Path(f"run/samples/{name}.png").stat().st_size > 0
    evaluate.main(["run"])
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    for name in ("crps", "spread_skill", "rmse_0", "spectrum_error_0"):
        assert float(printed[name]) == pytest.approx(found[name], rel=1e-3)
    assert "run/samples/ensemble.png" in printed["drawn"]
    assert Path("run/samples/ensemble.png").is_file()


@pytest.mark.parametrize("missing", [False, True])
def test_a_regression_is_an_ensemble_of_one_member(missing: bool) -> None:
    images = pairs(missing)
    task = RegressionRun(model=NARROW, data=DataConfig(source="digits", missing=missing)).build(images)
    trained = replace(task.regression, net=shaken_network(task.model))
    unit = images.pixel_format.to_unit(torch.from_numpy(images.read(np.arange(7))))
    assert images.vectors is not None
    predicted = trained.predict(unit[:, 2:], images.vectors.tolist(), 7, (8, 8), "cpu")
    members = torch.from_numpy(trained.pixel_format.from_unit(predicted))[None]
    expected = score_ensemble(members, torch.from_numpy(images.read(np.arange(7))[:, :2]), (False, True))
    assert_close(score_prediction(trained, images).figures, expected.figures, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"condition channels 2.*1|target channels 1.*2"):
        score_prediction(trained, pairs(missing, conditions=2))


def shaken_network(net: torch.nn.Module) -> UNet:
    """The network with other weights than the initial ones, with which every output is zero."""
    assert isinstance(net, UNet)
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return net.eval()


def test_a_model_folder_is_evaluated_on_pairs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    images = pairs(vectors=None, vector_columns=())
    model(images).save(Path("model"))
    np.save("pairs.npy", images.read(np.arange(7)))
    data = {"source": "pairs.npy", "condition": "[2]", "cache": "cache", "normalisation": "mean_std"}
    flags = [word for name, value in data.items() for word in (f"--data.{name}", value)]
    flags += ["--data.transform", "[none, none, arcsinh]", "--data.validation", "train"]
    evaluate.main(["model", *flags, "--ensemble.members", "2", "--ensemble.steps", "2"])
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    expected = figures(ensemble(images, members=2))
    for name, value in expected.items():
        assert float(printed[name]) == pytest.approx(value, rel=1e-3)
    for words, match in (
        (flags, r"ensemble\.members"),
        ([*flags, "--ensemble.members", "0"], r"members=0"),
        ([*flags, "--ensemble.members", "2", "--data.condition", "[1, 2]"], r"target channels 1"),
        ([*flags, "--ensemble.members", "2", "--data.validation", "null"], r"--data\.validation|data\.validation"),
    ):
        with pytest.raises(SystemExit, match="2"):
            evaluate.main(["model", *words])
        error = capsys.readouterr().err.splitlines()
        assert re.search(match, error[-1])


def test_a_folder_of_a_regression_is_evaluated(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    images = pairs(vectors=None, vector_columns=())
    trained = RegressionRun(model=NARROW, data=DataConfig(source="digits")).build(images).regression
    Path("model").mkdir()
    replace(trained, net=shaken_network(trained.net)).save(Path("model"))
    np.save("pairs.npy", images.read(np.arange(7)))
    flags = "--data.source pairs.npy --data.condition [2] --data.cache cache --data.normalisation mean_std"
    transform = ["--data.transform", "[none, none, arcsinh]"]
    evaluate.main(["model", *flags.split(), *transform, "--data.validation", "train"])
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert float(printed["crps"]) == pytest.approx(score_prediction(trained, images).figures["crps"], rel=1e-3)


def test_drawn_ensembles_are_evaluated(tmp_path: Path, monkeypatch, capsys) -> None:
    """Members of sample.py have the scores of the same images in `Ensemble`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    images = pairs(vectors=None, vector_columns=())
    model(images).save(Path("model"))
    np.save("pairs.npy", images.read(np.arange(7)))
    np.save("input.npy", images.read(np.arange(7))[:, 2:])
    words = ["--condition", "input.npy", "--members", "2", "--num", "10", "--steps", "2", "--seed", "1"]
    sample.main(["model", *words, "--out", "drawn", "--no-grid"])
    data = {"source": "pairs.npy", "condition": "[2]", "cache": "cache", "normalisation": "mean_std"}
    flags = [word for name, value in data.items() for word in (f"--data.{name}", value)]
    flags += ["--data.validation", "train"]
    capsys.readouterr()
    evaluate.main(["drawn", *flags, "--ensemble.members", "2"])
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    expected = figures(ensemble(images, members=2, num=5))
    for name in set(expected) - {"spectrum_error", "spectrum_error_0", "spectrum_error_1"}:  # of another padding
        assert float(printed[name]) == pytest.approx(expected[name], rel=1e-3)
    assert Path("drawn/samples/ensemble.png").is_file()
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["drawn", *flags, "--ensemble.members", "3"])
    assert re.search(r"ensemble\.members=3.*7 pairs.*10 drawn images", capsys.readouterr().err)


def test_conditions_of_a_run_are_not_those_of_other_images(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("input.npy").touch()
    Path("run/config.yaml").write_text("data: {source: target.npy, condition: input.npy, normalisation: mean_std}")
    with pytest.raises(ValueError, match=r"data\.condition=input\.npy.*--data\.condition"):
        read_run("run", ["--data.source", "other.npy"])
    flags = ["--data.source", "other.npy", "--data.condition", "input.npy"]
    assert read_run("run", flags).data.source == "other.npy"
    assert read_run("run", []).data.condition == "input.npy"
