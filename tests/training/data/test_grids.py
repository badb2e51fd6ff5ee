"""netCDF files and zarr stores: variables as channels, conditions, vectors, coordinates."""

from pathlib import Path

import numpy as np
import pytest

from pictures.coordinates import Coordinates
from training.data import BatchReader, DataConfig, open_images
from training.data.sources import grids
from training.data.sources.source import find_source
from training.data.validate import validate

xarray = pytest.importorskip("xarray")
COUNT, ROWS, COLUMNS = 5, 4, 6
LATITUDES = tuple(np.linspace(60, 30, ROWS).tolist())
LONGITUDES = tuple(np.linspace(-10, 40, COLUMNS).tolist())


def field(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def dataset():
    whole = COUNT, ROWS, COLUMNS
    return xarray.Dataset(
        {
            "t2m": (("time", "lat", "lon"), field(0, *whole), {"units": "K"}),
            "u10": (("time", "lat", "lon"), field(1, *whole), {"units": "m s-1"}),
            "z": (("time", "level", "lat", "lon"), field(2, COUNT, 2, ROWS, COLUMNS)),
            "coarse": (("time", "lat2", "lon2"), field(3, COUNT, 2, 3)),
            "season": (("time",), np.arange(COUNT) / 7.0),
            "land": (("lat", "lon"), field(4, ROWS, COLUMNS)),
        },
        {
            "lat": ("lat", list(LATITUDES), {"units": "degrees_north"}),
            "lon": ("lon", list(LONGITUDES), {"units": "degrees_east"}),
            "level": [500, 850],
            "time": ("time", np.arange(COUNT), {"units": "days since 2000-01-01"}),
        },
    )


def write(path: Path, data, **encoding) -> Path:
    given = {"t2m": encoding} if encoding else None
    if path.suffix == ".zarr":
        data.to_zarr(path, consolidated=False, zarr_format=2, encoding=given)
    else:
        data.to_netcdf(path, engine="netcdf4", encoding=given)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "era.nc", dataset())


def whole(images) -> np.ndarray:
    return images.read(np.arange(len(images)))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_variables_become_channels(suffix: str, tmp_path: Path, config) -> None:
    path = write(tmp_path / f"era{suffix}", dataset())
    images = open_images(config(source=path, variables=("u10", "t2m"), range=(-1, 1)))
    assert (images.shape, images.conditions, images.labels) == ((2, ROWS, COLUMNS), 0, None)
    whole_set = COUNT, ROWS, COLUMNS
    np.testing.assert_array_equal(whole(images), np.stack([field(1, *whole_set), field(0, *whole_set)], axis=1))
    expected = Coordinates(
        channels=("u10", "t2m"),
        channel_units=("m s-1", "K"),
        names=("lat", "lon"),
        values=(LATITUDES, LONGITUDES),
        units=("degrees_north", "degrees_east"),
    )
    assert images.coordinates == expected
    assert images.part(np.array([1])).coordinates == expected


def test_levels_are_channels(file: Path, config) -> None:
    images = open_images(config(source=file, variables=("z", "t2m"), range=(-1, 1)))
    assert images.coordinates.channels == ("z level=500", "z level=850", "t2m")
    np.testing.assert_array_equal(whole(images)[:, :2], field(2, COUNT, 2, ROWS, COLUMNS))


def test_further_variables_are_the_condition(file: Path, config) -> None:
    images = open_images(config(source=file, variables=("t2m",), condition=("u10", "z"), range=(-1, 1)))
    assert (images.shape, images.conditions) == ((4, ROWS, COLUMNS), 3)
    np.testing.assert_array_equal(whole(images)[:, 1], field(1, COUNT, ROWS, COLUMNS))
    assert images.coordinates.channels == ("t2m", "u10", "z level=500", "z level=850")
    coarse = open_images(config(source=file, variables=("t2m",), condition="coarse", range=(-1, 1)))
    assert (coarse.shape, coarse.conditions) == ((2, ROWS, COLUMNS), 1)
    assert coarse.coordinates.values == (LATITUDES, LONGITUDES)


@pytest.mark.parametrize("rows", [1, 2, 3, COUNT])
def test_chunks_of_several_images_are_read_at_once(rows: int, tmp_path: Path, config, monkeypatch) -> None:
    path = write(tmp_path / "era.nc", dataset(), chunksizes=(rows, ROWS, COLUMNS), zlib=True)
    options = {"source": str(path), "variables": ("t2m",), "condition": "u10", "range": (-1, 1)}
    records = find_source(DataConfig(**options)).open()
    assert sum(records.sizes) == COUNT
    assert len(records.sizes) == (1 if rows == 1 else -(-COUNT // rows))
    cached, streamed = open_images(config(**options)), open_images(DataConfig(**options, stream=True, stream_shards=8))
    assert streamed.coordinates == cached.coordinates
    for update in range(3):
        ours, theirs = (BatchReader(images, 1, 4).get(update).image for images in (cached, streamed))
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(whole(cached)[:, 0], field(0, COUNT, ROWS, COLUMNS))


def test_few_images_are_read_at_once_from_a_file_of_large_chunks(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "era.nc", dataset()[["t2m"]], chunksizes=(COUNT, ROWS, COLUMNS))
    monkeypatch.setattr(grids, "MAX_BLOCK_BYTES", 2 * ROWS * COLUMNS * 4)
    assert list(find_source(DataConfig(source=str(path), range=(-1, 1))).open().sizes) == [2, 2, 1]


def test_packed_values_are_unpacked_and_missing_ones_are_nan(tmp_path: Path, config, capsys) -> None:
    data = dataset()[["t2m"]]
    data.t2m[2, 1, 3] = np.nan
    packed = {"dtype": "int16", "scale_factor": 1e-4, "add_offset": 0.0, "_FillValue": -32768}
    path = write(tmp_path / "era.nc", data, **packed)
    items = list(find_source(DataConfig(source=str(path), range=(-1, 1))).open().items())
    found = np.stack([item.data.values for item in items])[:, 0]
    np.testing.assert_allclose(found, data.t2m.values, atol=1e-4)
    with pytest.raises(ValueError, match=r"nan.*\(0, 1, 3\)"):
        items[2].data.read()
    options = {"source": path, "normalisation": "mean_std", "max_bad": 1}
    known, every = open_images(config(**options)), open_images(config(**options, missing=True))
    assert (len(known), len(every)) == (COUNT - 1, COUNT)
    np.testing.assert_allclose(whole(every)[:, 0], data.t2m.values, atol=1e-4)


def test_another_name_of_the_sample_dimension(tmp_path: Path, config) -> None:
    data = xarray.Dataset({"c": (("member", "y", "x"), field(0, 3, 4, 5))})
    images = open_images(config(source=write(tmp_path / "a.nc", data), range=(-1, 1)))
    assert images.shape == (1, 4, 5)
    assert (images.coordinates.names, images.coordinates.values[0]) == (("y", "x"), (0.0, 1.0, 2.0, 3.0))
    last = xarray.Dataset({"c": (("y", "x", "time"), field(0, 4, 5, 3))})
    images = open_images(config(source=write(tmp_path / "b.nc", last), range=(-1, 1)))
    np.testing.assert_array_equal(whole(images)[:, 0], field(0, 4, 5, 3).transpose(2, 0, 1))


def test_numbers_of_each_image_are_vectors(file: Path, config) -> None:
    columns = ("season", "time")
    images = open_images(config(source=file, variables=("t2m",), vector_columns=columns, range=(-1, 1)))
    np.testing.assert_allclose(images.vectors, np.stack([np.arange(COUNT) / 7, np.arange(COUNT)], axis=1), rtol=1e-6)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "era.zarr", dataset())
    options = {"source": str(path), "variables": ("t2m",), "range": (-1, 1)}
    keys = [find_source(DataConfig(**options)).key, find_source(DataConfig(**options | {"variables": ("u10",)})).key]
    chunk = path / "t2m" / "0.0.0"
    chunk.write_bytes(chunk.read_bytes() + b"\0")
    keys.append(find_source(DataConfig(**options)).key)
    assert len(set(map(str, keys))) == 3


def test_validating_a_file(file: Path, config, capsys) -> None:
    validate(config(source=file, variables=("t2m",), condition="u10", range=(-1, 1)))
    assert "with a condition of 1 channel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variables": ("t2",)}, r"data\.variables.*t2m"),
        ({}, r"3 variables.*data\.variables.*t2m, u10, z|4 variables.*data\.variables.*t2m, u10, z, coarse"),
        ({"variables": ("t2m", "coarse")}, r"'coarse'.*'lat'"),
        ({"variables": ("land",)}, r"'land'.*data\.static"),
        ({"variables": ("t2m",), "condition": ("u11",)}, r"data\.condition 'u11'.*u10"),
        ({"variables": ("t2m",), "condition": (0,)}, r"data\.condition \[0\]"),
        ({"variables": ("t2m",), "vector_columns": ("saison",)}, r"data\.vector_columns.*season"),
        ({"variables": ("t2m",), "labels": True}, r"data\.labels is true"),
        ({"variables": ("t2m",), "axes": "hwc"}, r"data\.axes"),
        ({"variables": ("t2m",), "split": "test"}, r"data\.split 'test'"),
        ({"variables": ("t2m",), "size": 3}, r"data\.size"),
    ],
)
def test_invalid_settings_of_files_are_errors(fields: dict, message: str, file: Path, config) -> None:
    with pytest.raises(ValueError, match=message) as error:
        find_source(config(**{"source": file, "range": (-1, 1)} | fields)).open()
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_errors(tmp_path: Path, config) -> None:
    (tmp_path / "a.nc").write_bytes(b"no netCDF file")
    (tmp_path / "b.zarr").mkdir()
    for name in ("a.nc", "b.zarr"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable") as error:
            find_source(config(source=tmp_path / name)).open()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"data\.variables.*only netCDF"):
        find_source(config(source="digits", variables=("t2m",)))
    np.save(tmp_path / "a.npy", field(0, 3, 1, 2, 2))
    with pytest.raises(ValueError, match=r"data\.condition \['a', 'b'\]"):
        find_source(config(source=tmp_path / "a.npy", condition=("a", "b")))
