"""sample.py with conditions: members, numbers, netCDF files, and what it refuses."""

import csv
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import sample
from pictures.coordinates import Coordinates
from pictures.units import Units
from tests.tasks.test_fields import UNITS, built, images
from training.data import DataConfig, Images

xarray = pytest.importorskip("xarray")
PLACES = Coordinates(
    channels=("t2m", "u10", "coarse"),
    channel_units=("K", "m/s", ""),
    names=("latitude", "longitude"),
    values=(tuple(range(8)), tuple(range(0, 80, 10))),
    units=("degrees_north", "degrees_east"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder of two channels with a condition, a static field and two numbers."""
    found = images(missing=True)
    found.coordinates = PLACES
    folder = tmp_path_factory.mktemp("model")
    built(found).diffusion.save(folder)
    return folder


@pytest.fixture(scope="module")
def conditions(tmp_path_factory) -> Path:
    """Three conditions on half of the grid, one with a missing value."""
    unit = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    values = UNITS.channels(2, 3).from_unit(unit)
    values[1, 0, 0, 0] = np.nan
    path = tmp_path_factory.mktemp("conditions") / "input.npy"
    np.save(path, values)
    return path


def draw(model: Path, out: Path, *words: str) -> None:
    sample.main([str(model), "--out", str(out), "--steps", "2", "--device", "cpu", *words])


def read(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def test_members_of_each_condition_are_drawn_in_units(model: Path, conditions: Path, tmp_path: Path) -> None:
    vector = ["--vector", "season=2", "strain=1.5"]
    draw(model, tmp_path / "out", "--condition", str(conditions), "--members", "2", *vector)
    with (tmp_path / "out" / "conditions.csv").open(encoding="utf-8") as file:
        rows = [(row["file"], row["condition"], row["member"]) for row in csv.DictReader(file)]
    assert rows == [(f"{k:06d}.npy", str(k // 2), str(k % 2)) for k in range(6)]
    drawn = np.stack([read(tmp_path / "out" / "images" / row[0]) for row in rows])
    assert drawn.dtype == np.float32
    assert np.isnan(drawn[:, 0, 0]).all(), "no training image has a value there"
    assert not np.isnan(drawn[:, 1]).any()
    assert not np.array_equal(drawn[0], drawn[1], equal_nan=True)
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["num"], record["members"], record["vector"]) == (6, 2, ["season=2", "strain=1.5"])

    draw(model, tmp_path / "hidden", "--condition", str(conditions), "--num", "2")
    other = read(tmp_path / "hidden" / "images" / "000000.npy")
    assert not np.array_equal(other, drawn[0], equal_nan=True), "without --vector the numbers are hidden"


def test_fields_are_written_with_their_coordinates(model: Path, conditions: Path, tmp_path: Path) -> None:
    draw(model, tmp_path / "out", "--condition", str(conditions), "--members", "2")
    with xarray.open_dataset(tmp_path / "out" / "samples.nc") as found:
        assert dict(found.sizes) == {"sample": 6, "latitude": 8, "longitude": 8}
        assert set(found.data_vars) == {"t2m", "u10"}
        assert found["t2m"].attrs["units"] == "K"
        assert found["longitude"].values.tolist() == list(range(0, 80, 10))
        assert found["condition"].values.tolist() == [0, 0, 1, 1, 2, 2]
        assert found["member"].values.tolist() == [0, 1] * 3
        for k in range(6):
            values = np.stack([found["t2m"].values[k], found["u10"].values[k]])
            np.testing.assert_array_equal(values, read(tmp_path / "out" / "images" / f"{k:06d}.npy"))


def test_without_xarray_a_message_names_the_extra(model, conditions, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    draw(model, tmp_path / "out", "--condition", str(conditions), "--num", "1")
    assert not (tmp_path / "out" / "samples.nc").exists()
    assert "[science]" in capsys.readouterr().out


def test_the_share_of_a_process_and_the_batch_change_no_condition(model, conditions, tmp_path) -> None:
    draw(model, tmp_path / "one", "--condition", str(conditions), "--members", "2", "--batch", "1")
    draw(model, tmp_path / "six", "--condition", str(conditions), "--members", "2", "--batch", "6")
    for k in range(6):
        one, six = (read(tmp_path / name / "images" / f"{k:06d}.npy") for name in ("one", "six"))
        np.testing.assert_allclose(np.arcsinh(one), np.arcsinh(six), rtol=1e-4, atol=1e-3)


def test_conditions_of_a_netcdf_file_are_the_variables_of_the_training(model, conditions, tmp_path) -> None:
    values = read(conditions)[:, 0]
    data = {"other": (("time", "y", "x"), values + 1), "coarse": (("time", "y", "x"), values)}
    xarray.Dataset(data).to_netcdf(tmp_path / "input.nc")
    draw(model, tmp_path / "npy", "--condition", str(conditions))
    draw(model, tmp_path / "nc", "--condition", str(tmp_path / "input.nc"))
    for k in range(3):
        one, other = (read(tmp_path / name / "images" / f"{k:06d}.npy") for name in ("npy", "nc"))
        np.testing.assert_array_equal(one, other)


def test_images_to_start_from_may_lack_what_no_training_image_has(tmp_path, capsys) -> None:
    found = images(static=False, vectors=False, conditions=0, missing=True)
    (tmp_path / "model").mkdir()
    built(found).diffusion.save(tmp_path / "model")
    values = found.read(np.arange(4))
    np.save(tmp_path / "three.npy", values[:3])
    np.save(tmp_path / "four.npy", values)
    draw(tmp_path / "model", tmp_path / "changed", "--from", str(tmp_path / "three.npy"), "--strength", "0.5")
    changed = read(tmp_path / "changed" / "images" / "000001.npy")
    np.testing.assert_array_equal(np.isnan(changed), np.isnan(values[1]))
    words = ["--from", str(tmp_path / "four.npy"), "--strength", "0.5"]
    assert "number 3" in refused(tmp_path / "model", tmp_path, capsys, *words)


def refused(model: Path, tmp_path: Path, capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as exit:
        draw(model, tmp_path / "out", *words)
    assert exit.value.code == 2
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "condition"),
        (["--condition", "CONDITIONS", "--members", "0"], "members=0"),
        (["--members", "3"], "members=3"),
        (["--condition", "CONDITIONS", "--vector", "strain=1"], "season"),
        (["--condition", "CONDITIONS", "--vector", "strian=1", "season=2"], "strain"),
        (["--condition", "CONDITIONS", "--vector", "strain=x", "season=2"], "strain=VALUE"),
        (["--condition", "CONDITIONS", "--vector", "strain=1", "strain=1"], "strain"),
        (["--condition", "CONDITIONS", "--vector", "strain=1e300", "season=2"], "1e300"),
        (["--condition", "BAD"], "image 1"),
        (["--condition", "PICTURES"], "pictures"),
        (["--condition", "OTHER"], "units"),
        (["--condition", "CONDITIONS", "--between", "1", "2"], "between"),
        (["--condition", "WIDE"], "(1, 9, 9)"),
        (["--condition", "TWO"], "(2, 8, 8)"),
        (["--condition", "CONDITIONS", "--size", "16", "16"], "size=16x16"),
        (["--condition", "nowhere.npy"], "nowhere.npy"),
    ],
)
def test_what_does_not_fit_is_refused(model, conditions, tmp_path, capsys, words, named) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((2, 1, 9, 9), np.float32))
    np.save(tmp_path / "two.npy", np.random.default_rng(0).normal(size=(2, 2, 8, 8)).astype(np.float32))
    bad = np.nan_to_num(read(conditions), nan=5)
    bad[1, 0, 0, 0] = np.inf
    np.save(tmp_path / "bad.npy", bad)
    np.save(tmp_path / "other.npy", read(conditions) * np.float32(1e30))
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    files = {
        "BAD": tmp_path / "bad.npy",
        "OTHER": tmp_path / "other.npy",
        "PICTURES": tmp_path / "a.png",
        "CONDITIONS": conditions,
        "WIDE": tmp_path / "wide.npy",
        "TWO": tmp_path / "two.npy",
    }
    assert named in refused(model, tmp_path, capsys, *[str(files.get(word, word)) for word in words])


def test_nearest_training_images_of_a_run_with_conditions_are_its_targets(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.normal((280, 0, 0), (10, 1, 1), (4, 8, 8, 3)).transpose(0, 3, 1, 2).astype(np.float32)
    units = Units(mean=(280.0, 0.0, 0.0), std=(10.0, 1.0, 1.0), transform=("none",) * 3)
    found = Images(values, pixel_format=units, conditions=1)
    (tmp_path / "run" / "model").mkdir(parents=True)
    built(found).diffusion.save(tmp_path / "run" / "model")
    np.save(tmp_path / "pairs.npy", values)
    np.save(tmp_path / "low.npy", values[:, 2:])
    data = DataConfig(
        source=str(tmp_path / "pairs.npy"),
        condition=(2,),
        normalisation="mean_std",
        mean=units.mean,
        std=units.std,
        cache=tmp_path / "cache",
    )
    document = {"format_version": 2, "task": "diffusion", "data": asdict(data)}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(document, default=str))
    draw(tmp_path / "run", tmp_path / "out", "--condition", str(tmp_path / "low.npy"), "--num", "2", "--nearest")
    drawn = read(tmp_path / "out" / "images" / "000000.npy")
    deviations = (values[:, :2] - drawn) / np.array([10, 1], np.float32)[:, None, None]
    distances = np.sqrt(np.square(deviations).mean(axis=(1, 2, 3))) / 2
    with (tmp_path / "out" / "nearest.csv").open(encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    assert int(first["training_image"]) == distances.argmin()
    assert float(first["distance"]) == pytest.approx(distances.min(), rel=1e-4)


def test_images_of_other_units_are_refused(tmp_path: Path, capsys) -> None:
    values = np.random.default_rng(0).normal(280, 10, (4, 2, 8, 8)).astype(np.float32)
    units = Units(mean=(280.0, 280.0), std=(10.0, 10.0), transform=("none", "none"))
    (tmp_path / "model").mkdir()
    built(Images(values, pixel_format=units)).diffusion.save(tmp_path / "model")
    values[:, 1] -= 273.15
    np.save(tmp_path / "celsius.npy", values)
    error = refused(tmp_path / "model", tmp_path, capsys, "--from", str(tmp_path / "celsius.npy"))
    assert "celsius.npy" in error
    assert "channel 1" in error


def test_a_table_with_several_columns_of_images_is_refused(tmp_path: Path, capsys) -> None:
    pairs = Images(np.random.default_rng(0).integers(0, 255, (4, 2, 8, 8)).astype(np.uint8), conditions=1)
    (tmp_path / "model").mkdir()
    built(pairs).diffusion.save(tmp_path / "model")
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    cell = {"bytes": buffer.getvalue(), "path": None}
    pyarrow.parquet.write_table(pyarrow.table({"image": [cell], "low": [cell]}), tmp_path / "pairs.parquet")
    error = refused(tmp_path / "model", tmp_path, capsys, "--condition", str(tmp_path / "pairs.parquet"))
    assert "image, low" in error
    draw(tmp_path / "model", tmp_path / "named", "--condition", str(tmp_path / "pairs.parquet:low"), "--num", "1")


def test_the_array_of_an_npz_file_is_the_condition_if_it_is_named_or_the_only_one(
    model, conditions, tmp_path, capsys
) -> None:
    np.savez(tmp_path / "one.npz", low=read(conditions))
    np.savez(tmp_path / "two.npz", low=read(conditions), target=np.zeros((3, 2, 8, 8), np.float32))
    draw(model, tmp_path / "npy", "--condition", str(conditions), "--num", "1")
    for name, source in (("npz", "one.npz"), ("named", "two.npz:low")):
        draw(model, tmp_path / name, "--condition", str(tmp_path / source), "--num", "1")
        files = (read(tmp_path / folder / "images" / "000000.npy") for folder in ("npy", name))
        np.testing.assert_array_equal(*files)
    for source, named in (("two.npz", "low, target"), ("two.npz:lwo", "low"), ("input.npy:low", "input.npy")):
        assert named in refused(model, tmp_path, capsys, "--condition", str(tmp_path / source))
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    assert "bad.npz" in refused(model, tmp_path, capsys, "--condition", str(tmp_path / "bad.npz"))


def test_a_model_without_conditions_refuses_them(conditions, tmp_path, capsys) -> None:
    found = images(static=False, vectors=False, conditions=0)
    assert isinstance(found, Images)
    (tmp_path / "model").mkdir()
    built(found).diffusion.save(tmp_path / "model")
    assert "condition=" in refused(tmp_path / "model", tmp_path, capsys, "--condition", str(conditions))
    assert "vector=" in refused(tmp_path / "model", tmp_path, capsys, "--vector", "a=1")
