"""Bits per dimension of images under a model, and `evaluate.py --likelihood`."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from diffusion import EDM
from pictures.pixel_format import PixelFormat
from pictures.units import Units
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from tasks.comparison import QualityConfig
from tasks.likelihood import bits_per_dimension
from tests.tasks.small import CLASSES, SMALL, digits, shaken, small_run
from training.data import Images

CONFIG = QualityConfig(num=6, steps=2, batch=4)


def test_the_width_of_a_stored_unit_and_the_noise_count(conditional: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = load_model(conditional), []

    def nats(denoise, formulation, images, condition, generators, *, steps):
        seen.append((images, condition.label))
        return torch.full((len(images),), -64.0)

    monkeypatch.setattr("tasks.likelihood.log_likelihood", nats)
    found = bits_per_dimension(model, digits(), CONFIG, "they")
    assert found == pytest.approx(np.full(6, 1 / math.log(2) + math.log2(255 / 2)))
    chosen = np.random.default_rng(CONFIG.seed).permutation(len(digits()))[:6]
    stored, part = torch.from_numpy(digits().read(chosen)), torch.cat([images for images, _ in seen])
    noise = (part - model.pixel_format.to_unit(stored)) * 255 / 2
    assert 0.3 < noise.abs().max() <= 0.5
    assert abs(noise.mean()) < 0.1
    labels = digits().labels
    assert labels is not None
    assert torch.cat([label for _, label in seen]).tolist() == labels[chosen].tolist()


def test_bits_depend_neither_on_batches_nor_on_other_images(conditional: Path) -> None:
    model = load_model(conditional)
    whole = bits_per_dimension(model, digits(), CONFIG, "they")
    assert whole == pytest.approx(bits_per_dimension(model, digits(), replace(CONFIG, batch=5), "they"), rel=1e-4)
    assert whole[:3] == pytest.approx(bits_per_dimension(model, digits(), replace(CONFIG, num=3), "they"), rel=1e-4)
    assert (whole != bits_per_dimension(model, digits(), replace(CONFIG, seed=2), "they")).all()
    assert (whole != bits_per_dimension(model, digits(), replace(CONFIG, steps=3), "they")).all()
    assert (whole != bits_per_dimension(model, digits(labels=False), CONFIG, "they")).all()


def test_images_of_another_kind_are_refused(conditional: Path) -> None:
    model, pixels = load_model(conditional), np.zeros((5, 1, 16, 16), np.uint8)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*they are \(1, 16, 16\)"):
        bits_per_dimension(model, Images(pixels, None, None), CONFIG, "they")
    names = (*CLASSES[:9], "ten")
    renamed = Images(np.zeros((9, 1, 8, 8), np.uint8), np.full(9, 9), names)
    with pytest.raises(ValueError, match=r"they have the class 'ten'"):
        bits_per_dimension(model, renamed, CONFIG, "they")
    with pytest.raises(ValueError, match=r"they have no labels"):
        bits_per_dimension(replace(model, null_label=False), digits(labels=False), CONFIG, "they")


def test_real_numbers_have_the_bits_of_their_density(conditional: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffusionModel(load_model(conditional).net, EDM(), pixel_format=PixelFormat(dtype="float32", file="npy"))
    monkeypatch.setattr("tasks.likelihood.log_likelihood", lambda *given, steps: torch.full((len(given[2]),), -64.0))
    images = Images(np.zeros((5, 1, 8, 8), np.float32), None, None, pixel_format=model.pixel_format)
    assert bits_per_dimension(model, images, CONFIG, "they") == pytest.approx(np.full(5, 1 / math.log(2)))


# --- evaluate.py -----------------------------------------------------------------------------------------------------


def test_images_of_another_source_are_standardised_as_those_of_the_training(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    """Their own mean and standard deviation would give other bits; far ones are refused."""
    monkeypatch.chdir(tmp_path)
    units = Units(mean=(280.0,), std=(10.0,), transform=("none",))
    values = np.random.default_rng(0).normal(285, 8, (6, 1, 8, 8)).astype(np.float32)
    trained = Images(values, pixel_format=units)
    model = shaken(small_run(model=SMALL, objective=EDM()).build(trained)).diffusion
    Path("model").mkdir()
    model.save(Path("model"))
    np.save("other.npy", values)
    np.save("celsius.npy", values - 273.15)
    words = ["--data.normalisation", "mean_std", "--data.validation", "train", "--data.cache", "cache", "--likelihood"]
    words += ["--quality.num", "6", "--quality.steps", "2", "--quality.batch", "4"]
    evaluate.main(["model", "--data.source", "other.npy", *words])
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    expected = bits_per_dimension(model, trained, CONFIG, "they").mean()
    assert float(printed["held out"].split()[0]) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["model", "--data.source", "celsius.npy", *words])
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"celsius\.npy.*channel 0.*280", error)


def flags(folder: Path, *more: str) -> list[str]:
    where = ["--data.source", "digits", "--data.cache", str(folder / "cache"), "--data.validation", "0.5"]
    return [*where, "--likelihood", "--quality.num", "4", "--quality.steps", "2", *more]


@pytest.fixture
def model(conditional: Path, tmp_path: Path) -> str:
    """The model with the names of the classes of data.source=digits, in a place of its own."""
    replace(load_model(conditional), classes=tuple("0123456789")).save(folder := tmp_path / "model")
    return str(folder)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(np.full((8, 8), 80 * k, np.uint8)).save(folder / f"{k}.png")
    return folder


def test_the_command_prints_each_set_and_draws_histograms(
    model: str, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([model, *flags(tmp_path, "--other", str(other))])
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["held out"].endswith("bits per dimension (n 4)")
    assert printed["other"].endswith("bits per dimension (n 3)")
    assert "uniform noise of one unit of 0 … 255" in printed["likelihood"]
    with Image.open(tmp_path / "model/samples/likelihood.png") as picture:
        assert picture.size == (640, 320)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--other", "absent"], "absent"),
        (["--other"], "other.*argument"),
        (["--likelihood=yes"], "likelihood.*yes"),
        (["--ema", "0.05"], "ema"),
        (["--ema", "0.05", "0.1"], "ema gives 2"),
        (["--quality.num", "1"], "num=1 "),
        (["--data.stream", "true", "--data.validation", "test"], "stream"),
        (["--data.size", "16", "--data.validation", "0.5"], r"\(1, 8, 8\).*\(1, 16, 16\)"),
    ],
)
def test_the_command_refuses_in_one_line(
    more: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([model, *flags(tmp_path, *more)])
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)


def test_other_images_need_the_likelihood_and_drawn_images_have_none(
    model: str, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, words in ((model, ["--other", str(other)]), (str(other), flags(tmp_path))):
        with pytest.raises(SystemExit, match="2"):
            evaluate.main([given, *words])
        assert "likelihood" in capsys.readouterr().err.strip().splitlines()[-1]
