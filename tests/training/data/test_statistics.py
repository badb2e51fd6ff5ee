"""Standardised arrays: statistics of training sets, given ones, missing values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pictures.units import Units
from training.data import DataConfig, Images, open_as_trained, open_images, open_validation
from training.data import statistics as module
from training.data.statistics import measure

RNG = np.random.default_rng(0)
VALUES = (RNG.normal(0, 1, (24, 3, 4, 6)) * [[[[10.0]], [[0.01]], [[3.0]]]] + [[[[280.0]], [[1.0]], [[50.0]]]]).astype(
    np.float32
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "set.npy", VALUES)
    return tmp_path / "set.npy"


def opened(config, source: Path, **settings) -> Images:
    images = open_images(config(source=source, normalisation="mean_std", **settings))
    assert isinstance(images, Images)
    return images


def units_of(images) -> Units:
    assert isinstance(images.pixel_format, Units)
    return images.pixel_format


def test_units_are_the_statistics_of_the_training_images(config, source: Path) -> None:
    images = opened(config, source)
    units = units_of(images)
    np.testing.assert_allclose(units.mean, VALUES.mean((0, 2, 3), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(units.std, VALUES.std((0, 2, 3), dtype=np.float64), rtol=1e-6)
    unit = units.to_unit(torch.from_numpy(images.read(np.arange(24))))
    torch.testing.assert_close(unit.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(unit.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-4)


def test_the_parts_of_a_large_set_are_merged(monkeypatch) -> None:
    images = Images(VALUES, pixel_format=Units(mean=(0.0,) * 3, std=(1.0,) * 3, transform=("none",) * 3))
    whole = measure(images, ("none", "arcsinh", "log1p"), np.arange(24))
    monkeypatch.setattr(module, "CHUNK_VALUES", 5 * 72)
    parts = measure(images, ("none", "arcsinh", "log1p"), np.arange(24))
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.std, whole.std, rtol=1e-9)


def test_held_out_images_have_the_units_of_the_training_images(config, source: Path) -> None:
    settings = config(source=source, normalisation="mean_std", validation=0.25)
    training, held_out = open_images(settings), open_validation(settings)
    assert held_out is not None
    assert len(training) == 18
    assert units_of(held_out) == units_of(training)
    numbers = np.setdiff1d(np.arange(24), [])
    rest = VALUES[np.isin(numbers, training._numbers)]  # type: ignore[union-attr]
    np.testing.assert_allclose(units_of(training).mean, rest.mean((0, 2, 3), dtype=np.float64), rtol=1e-6)


def test_statistics_are_computed_once(config, source: Path, monkeypatch) -> None:
    first = units_of(opened(config, source))
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured again"))
    assert units_of(opened(config, source)) == first


def test_a_transform_comes_before_the_statistics(config, source: Path) -> None:
    units = units_of(opened(config, source, transform=("none", "log1p", "arcsinh")))
    changed = np.stack([VALUES[:, 0], np.log1p(VALUES[:, 1]), np.arcsinh(VALUES[:, 2])], 1)
    np.testing.assert_allclose(units.mean, changed.mean((0, 2, 3), dtype=np.float64), rtol=1e-6)
    assert units.transform == ("none", "log1p", "arcsinh")
    assert units_of(opened(config, source, transform=("arcsinh",))).transform == ("arcsinh",) * 3


def test_given_statistics_are_used(config, source: Path) -> None:
    units = units_of(opened(config, source, mean=(270.0, 1.0, 50.0), std=(5.0, 0.02, 3.0)))
    assert units == Units(mean=(270.0, 1.0, 50.0), std=(5.0, 0.02, 3.0), transform=("none",) * 3)
    streamed = open_images(
        DataConfig(source=str(source), normalisation="mean_std", stream=True, mean=units.mean, std=units.std)
    )
    assert units_of(streamed) == units


def test_images_of_a_trained_model_have_its_units_whatever_they_are(source: Path, tmp_path: Path) -> None:
    units = Units(mean=(0.0,) * 3, std=(1.0,) * 3, transform=("none",) * 3)
    assert units_of(open_as_trained(units, source=str(source), cache=tmp_path / "cache")) == units


def test_units_of_a_trained_model_fit_arrays_that_are_stored_otherwise(tmp_path: Path) -> None:
    for dtype, other in (("float32", "uint8"), ("uint8", "float32")):
        values = (VALUES[:, :1] / 2).astype(other)
        np.save(tmp_path / f"{other}.npy", values)
        units = Units(mean=(100.0,), std=(50.0,), transform=("none",), dtype=dtype)
        images = open_as_trained(units, source=str(tmp_path / f"{other}.npy"), cache=tmp_path / "cache")
        stored = images.read(np.arange(24), np.empty(values.shape, other))
        np.testing.assert_array_equal(stored, values)
        expected = (torch.from_numpy(values).float() - 100) / 50
        torch.testing.assert_close(images.pixel_format.to_unit(torch.from_numpy(stored)), expected)


def test_values_that_the_transform_of_a_model_does_not_allow_are_refused(config, tmp_path: Path, monkeypatch) -> None:
    values = np.abs(VALUES[:300])
    values[7, 1, 0, 0] = -2
    np.save(tmp_path / "low.npy", values)
    units = Units(mean=(5.6, 0.7, 3.9), std=(0.04, 0.01, 0.06), transform=("log1p",) * 3)
    with pytest.raises(ValueError, match=r"channel 1 .*-2"):
        open_as_trained(units, source=str(tmp_path / "low.npy"), cache=tmp_path / "cache")
    given = {"normalisation": "mean_std", "transform": ("log1p",), "mean": units.mean, "std": units.std}
    monkeypatch.setattr(module, "SAMPLE", 2)
    with pytest.raises(ValueError, match=r"channel 1 .*-2"):
        open_images(config(source=tmp_path / "low.npy", **given))


def test_missing_values_count_neither_as_values_nor_as_bad_images(config, tmp_path: Path) -> None:
    values = VALUES.copy()
    values[:, 1, 0] = np.nan  # never known
    values[3, 0] = np.nan
    values[4, 2, 1, 1] = np.nan
    np.save(tmp_path / "gaps.npy", values)
    images = opened(config, tmp_path / "gaps.npy", missing=True)
    assert images.bad == ()
    np.testing.assert_allclose(units_of(images).mean, np.nanmean(values.astype(np.float64), (0, 2, 3)), rtol=1e-6)
    expected = np.ones((3, 4, 6), bool)
    expected[1, 0] = False
    assert images.seen is not None
    np.testing.assert_array_equal(images.seen, expected)
    np.testing.assert_array_equal(images.read(np.arange(24)), values)
    with pytest.raises(ValueError, match="missing"):
        open_images(config(source=tmp_path / "gaps.npy", normalisation="mean_std", max_bad=0))


def spoiled(kind: str) -> np.ndarray:
    values = VALUES.copy()
    values[:, 1] = {"constant": 7.0, "missing": np.nan, "low": -2.0, "infinite": 1.0}[kind]
    if kind == "infinite":
        values[0, 1, 0, 0] = np.inf
    return values


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("constant", {}, "channel 1 is constant, 7"),
        ("missing", {"missing": True}, "channel 1 has no value"),
        ("low", {"transform": ("log1p",)}, "channel 1 .*-2"),
        ("infinite", {"max_bad": 0}, "inf"),
    ],
)
def test_channels_that_cannot_be_standardised_are_named(config, tmp_path, kind, settings, named) -> None:
    np.save(tmp_path / "set.npy", spoiled(kind))
    with pytest.raises(ValueError, match=named):
        opened(config, tmp_path / "set.npy", **settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}, "statistics of other data: channel 0"),
        ({"mean": (280.0,), "std": (10.0,)}, "data.mean has 1 number"),
        ({"transform": ("none", "log1p")}, "data.transform has 2 entries"),
    ],
)
def test_statistics_of_other_data_are_refused(config, source: Path, settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        opened(config, source, **settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mean": (1.0,)}, "data.mean"),
        ({"normalisation": "mean_std", "mean": (1.0,)}, "data.std"),
        ({"normalisation": "mean_std", "mean": (1.0,), "std": (0.0,)}, "std=0"),
        ({"normalisation": "mean_std", "range": (0.0, 1.0)}, "data.range"),
        ({"normalisation": "mean_std", "transform": ("log",)}, "data.transform 'log'"),
        ({"normalisation": "mean_std", "stream": True}, "data.stream"),
        ({"transform": ("log1p",)}, "data.transform"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DataConfig(source="set.npy", **settings)


def test_pictures_have_a_range_and_no_missing_values(config) -> None:
    for settings in ({"normalisation": "mean_std"}, {"missing": True}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            open_images(config(source="digits", **settings))
