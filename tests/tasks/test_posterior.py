"""sample.py --observe, with small networks that have learned nothing: what must hold for any weights."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from diffusion.posterior import Blur, Downsample, Observation
from drawing.observed import open_observations, read_operator
from pictures.pixel_format import PixelFormat
from pictures.units import Units
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.inputs import Inputs
from pipelines.regression import Base, RegressionModel
from tests.tasks.test_modes import CLASSES, model_folder, pictures, record

NAN = np.nan


@pytest.fixture(scope="module")
def grey_model(tmp_path_factory):
    """Draws grey pictures of three classes, or without a label."""
    return model_folder(tmp_path_factory.mktemp("grey"), 1, CLASSES)


@pytest.fixture(scope="module")
def fields_model(tmp_path_factory):
    """Draws arrays of three channels, each in its own units."""
    folder = tmp_path_factory.mktemp("fields")
    units = Units(mean=(280.0, 0.0, 5.0), std=(8.0, 1.0, 100.0), transform=("none",) * 3)
    replace(load_model(model_folder(folder / "bytes", 3)), pixel_format=units).save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Files of observations, by name."""
    home, random = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    points = random.uniform(0, 255, (3, 1, 8, 8)).astype(np.float32)
    points[random.random(points.shape) < 0.6] = NAN
    fields = random.normal(size=(2, 3, 4, 4)).astype(np.float32) * [[[8]], [[1]], [[100]]] + [[[280]], [[0]], [[5]]]
    fields[0, 1] = NAN
    arrays = {
        "points": points,
        "fields": fields.astype(np.float32),
        "empty_one": np.stack([points[0], np.full((1, 8, 8), NAN, np.float32)]),
        "infinite": np.where(points > 250, np.inf, points),
        "large": np.zeros((2, 1, 16, 16), np.float32),
    }
    for name, values in arrays.items():
        np.save(home / f"{name}.npy", values)
    for name, size in (("small_pictures", (4, 4)), ("colours", (4, 4, 3))):
        (home / name).mkdir()
        for k in range(2):
            Image.fromarray(random.integers(0, 256, size, np.uint8)).save(home / name / f"{k}.png")
    return home


def run(model, out, *flags):
    grid = [] if "--grid" in flags else ["--no-grid"]
    sample.main([str(model), "--out", str(out), "--device", "cpu", "--steps", "3", *grid, *map(str, flags)])


def misfit(found, values, noise, operators=()):
    """Root mean square over the images, from the files."""
    seen = Observation(torch.from_numpy(found), 1.0, operators).observe(torch.from_numpy(found)).numpy()
    return np.sqrt(np.mean([np.nanmean(np.square((a - b) / noise)) for a, b in zip(seen, values, strict=True)]))


def test_points_of_pictures(grey_model, given, tmp_path, capsys):
    observe = ["--observe", given / "points.npy", "--observe-noise", 20]
    run(grey_model, tmp_path / "out", *observe, "--grid")
    found = pictures(tmp_path / "out" / "images")[:, None].astype(float)
    facts = record(tmp_path / "out")
    assert (facts["num"], facts["observe_noise"], facts["operator"], facts["label"]) == (3, [20.0], None, "none")
    assert facts["observe"] == str(given / "points.npy")
    expected = misfit(found, np.load(given / "points.npy"), 20)
    assert facts["misfit"] == pytest.approx(expected, rel=1e-5)
    assert f"misfit: {expected:.3g} standard deviations" in capsys.readouterr().out
    run(grey_model, tmp_path / "free", "--num", 3, "--label", "none")
    free = pictures(tmp_path / "free" / "images")[:, None].astype(float)
    assert expected < misfit(free, np.load(given / "points.npy"), 20)
    with Image.open(tmp_path / "out" / "images" / "000000.png") as picture:
        assert (picture.text["observe"], picture.text["observe_noise"]) == (str(given / "points.npy"), "20")
    run(grey_model, tmp_path / "members", *observe, "--members", 2, "--num", 3)
    np.testing.assert_array_equal(pictures(tmp_path / "members" / "images")[0], found[0, 0])
    both = np.load(given / "points.npy")[[0, 0, 1]]
    expected = misfit(pictures(tmp_path / "members" / "images")[:, None].astype(float), both, 20)
    assert record(tmp_path / "members")["misfit"] == pytest.approx(expected, rel=1e-5)
    run(grey_model, tmp_path / "four", *observe, "--num", 4, "--batch", 3)
    again = pictures(tmp_path / "four" / "images")
    np.testing.assert_array_equal(again[:3], found[:, 0])
    assert abs(again[3] - again[0]).max() > 1, "another sample for the first observation"


def test_small_pictures_are_observations_of_large_ones(grey_model, given, tmp_path):
    flags = ["--observe", given / "small_pictures", "--operator", "blur:0.5", "downsample:2", "--observe-noise", 10]
    run(grey_model, tmp_path, *flags, "--label", "dog")
    found = pictures(tmp_path / "images")[:, None].astype(float)
    expected = misfit(found, pictures(given / "small_pictures")[:, None], 10, (Blur(0.5), Downsample(2)))
    assert record(tmp_path)["misfit"] == pytest.approx(expected, rel=1e-5)
    assert record(tmp_path)["operator"] == ["blur:0.5", "downsample:2"]


def test_observations_and_noise_are_in_the_units_of_each_channel(fields_model, given, tmp_path):
    model, values = load_model(fields_model), np.load(given / "fields.npy")
    plain = Units(mean=(0.0,) * 3, std=(1.0,) * 3, transform=("none",) * 3)
    replace(model, pixel_format=plain).save(tmp_path / "plain")
    unit = (values - [[[280]], [[0]], [[5]]]) / [[[8]], [[1]], [[100]]]
    np.save(tmp_path / "unit.npy", unit.astype(np.float32))
    noise = [("0.8", "0.3", "10"), ("0.1", "0.3", "0.1")]
    found = []
    for name, source, stds in zip("ab", (given / "fields.npy", tmp_path / "unit.npy"), noise, strict=True):
        flags = ["--observe", source, "--operator", "downsample:2", "--observe-noise", *stds]
        run(tmp_path / "plain" if name == "b" else fields_model, tmp_path / name, *flags)
        found.append(np.stack([np.load(path) for path in sorted((tmp_path / name / "images").iterdir())]))
    np.testing.assert_allclose((found[0] - [[[280]], [[0]], [[5]]]) / [[[8]], [[1]], [[100]]], found[1], atol=2e-3)
    expected = misfit(found[0], values, np.array([0.8, 0.3, 10])[:, None, None], (Downsample(2),))
    assert record(tmp_path / "a")["misfit"] == pytest.approx(expected, rel=1e-3)


def test_a_blur_continues_images_as_the_network_does():
    assert read_operator("blur:1.5", "periodic") == Blur(1.5, "periodic")
    assert read_operator("downsample:4", "reflect") == Downsample(4)


OBSERVE = ["--observe", "points.npy"]
NOISE = ["--observe-noise", 5]
BAD = [
    (OBSERVE, r"observe=.*--observe-noise"),
    (NOISE, r"observe_noise=5 .*--observe"),
    (["--operator", "blur:1"], r"operator=blur:1 .*--observe"),
    ([*OBSERVE, "--observe-noise", 0], r"observe_noise=0 .*positive"),
    ([*OBSERVE, "--observe-noise", -1], r"observe_noise=-1 .*positive"),
    ([*OBSERVE, "--observe-noise", "nan"], r"observe_noise=nan .*positive"),
    ([*OBSERVE, "--observe-noise", 1, 2], r"observe_noise .*2 values.*1 channel"),
    ([*OBSERVE, *NOISE, "--operator", "blurr:1"], r"'blurr'.*blur"),
    ([*OBSERVE, *NOISE, "--operator", "blur"], r"operator=blur .*blur:2"),
    ([*OBSERVE, *NOISE, "--operator", "blur:0"], r"operator=blur:0.*sigma=0 "),
    ([*OBSERVE, *NOISE, "--operator", "blur:5"], r"operator=blur:5.*8x8.*1\.75"),
    ([*OBSERVE, *NOISE, "--operator", "downsample:1.5"], r"operator=downsample:1\.5 .*number"),
    ([*OBSERVE, *NOISE, "--operator", "downsample:3"], r"operator=downsample:3.*8x8"),
    ([*OBSERVE, *NOISE, "--operator", "downsample:2", "downsample:8"], r"operator=downsample:8.*4x4"),
    ([*OBSERVE, *NOISE, "--operator", "downsample:2"], r"observe .*\(1, 8, 8\).*\(1, 4, 4\)"),
    ([*OBSERVE, *NOISE, "--size", 8, 16], r"observe .*\(1, 8, 8\).*\(1, 8, 16\)"),
    (["--observe", "large.npy", *NOISE], r"observe .*\(1, 16, 16\).*\(1, 8, 8\)"),
    (["--observe", "colours", *NOISE, "--operator", "downsample:2"], r"observe .*\(3, 4, 4\).*\(1, 4, 4\)"),
    (["--observe", "empty_one.npy", *NOISE], r"observe .*number 1 .*NaN"),
    (["--observe", "infinite.npy", *NOISE], r"observe .*inf"),
    (["--observe", "absent", *NOISE], r"observe .*absent.*no such"),
    ([*OBSERVE, *NOISE, "--from", "small_pictures"], r"observe=.*--from"),
    ([*OBSERVE, *NOISE, "--grey", "colours"], r"observe=.*--grey"),
    ([*OBSERVE, *NOISE, "--between", 1, 2], r"observe=.*--between"),
    ([*OBSERVE, *NOISE, "--morph", "cat", "dog"], r"observe=.*--morph"),
    ([*OBSERVE, *NOISE, "--members", 0], r"members=0 "),
    (["--members", 3], r"members=3 .*--condition or --observe"),
    ([*OBSERVE, *NOISE, "--compile"], r"observe=.*--compile"),
    ([*OBSERVE, *NOISE, "--guidance", 2], r"guidance=2 .*none; give --label"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(map(str, flags)) for flags, _ in BAD])
def test_what_makes_no_sense_is_one_line(grey_model, given, tmp_path, capsys, flags, message, monkeypatch):
    monkeypatch.setattr(DiffusionModel, "denoising", None)
    names = {path.name for path in given.iterdir()} | {"absent"}
    with pytest.raises(SystemExit) as end:
        run(grey_model, tmp_path / "out", *[given / str(flag) if str(flag) in names else flag for flag in flags])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pixel_format", "source", "message"),
    [
        (Units(mean=(0.0,), std=(1.0,), transform=("log1p",)), "points.npy", r"log1p.*transform"),
        (PixelFormat(dtype="float32", low=-1, high=1, file="npy"), "small_pictures", r"float32 from -1 to 1.*arrays"),
    ],
)
def test_models_of_arrays_that_observations_do_not_suit(
    grey_model, given, tmp_path, capsys, pixel_format, source, message
):
    replace(load_model(grey_model), pixel_format=pixel_format).save(tmp_path / "model")
    with pytest.raises(SystemExit):
        run(tmp_path / "model", tmp_path / "out", "--observe", given / source, *NOISE)
    assert re.search(message, capsys.readouterr().err)


def test_residuals_of_a_regression_are_not_observed(grey_model, given):
    model = load_model(grey_model)
    regression = RegressionModel(model.net, model.pixel_format, Inputs())
    model = replace(model, base=Base(regression, (1.0,)))
    with pytest.raises(ValueError, match=r"observe .*residual of a regression"):
        open_observations(str(given / "points.npy"), (), [1.0], 1, model)


def test_a_large_image_in_windows_agrees_with_its_observation(grey_model):
    model = load_model(grey_model).sized(8, 16).in_windows()
    observation = Observation(torch.zeros(1, 1, 8, 16).index_fill(3, torch.arange(0, 16, 2), NAN), 0.05)
    found = [model.draw([0], None, steps=3, observation=given) for given in (None, observation)]
    errors = [observation.error(x).square().sum() for x in found]
    assert errors[1] < errors[0] / 4


def test_values_of_another_shape_are_refused_from_python(grey_model):
    model, values = load_model(grey_model), torch.zeros(2, 1, 8, 8)
    for observation in (Observation(values[:1], 0.1), Observation(values, 0.1, (Downsample(2),))):
        with pytest.raises(ValueError, match=r"observation has the shape .* 1, 8, 8\)"):
            model.draw(range(2), None, observation=observation)


def test_noise_is_exact_beside_a_large_mean(fields_model, given):
    model = load_model(fields_model)
    units = replace(model.pixel_format, mean=(1e7,) * 3)
    words, source = ["downsample:2"], str(given / "fields.npy")
    found = open_observations(source, words, [1e-3, 1e-2, 1.0], 1, replace(model, pixel_format=units))
    torch.testing.assert_close(found.noise.flatten(), torch.tensor([1e-3 / 8, 1e-2, 1e-2]))
