"""Writes drawn fields as a netCDF file, with the coordinates of the training data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from drawing.job import NETCDF, Job
from storage.extra import require_extra
from storage.write import replace_file

SAMPLE = "sample"
"""the dimension along which there is one field after the other"""
MAX_BYTES = 1 << 31
"""of all fields; more are not held in memory at once, and stay .npy files"""


def write_netcdf(folder: Path, job: Job, read: Callable[[int], np.ndarray]) -> str | None:
    """Writes the fields as NETCDF, one variable per channel, for a model with coordinates. Returns why not, or None.

    `read` gives the values of a number.
    """
    model = job.model
    assert model.coordinates is not None, "the caller checks it"
    places = model.coordinates.of(0, model.shape[0])
    if model.shape[1:] != (size := tuple(map(len, places.values))):
        return f"{NETCDF} is not written, because the coordinates are those of {size[0]} rows and {size[1]} columns"
    taken = {SAMPLE, "condition", "member", *places.names}
    if wrong := [name for name in places.channels if name in taken or "/" in name]:
        return f"{NETCDF} is not written, because a channel is called {wrong[0]!r}; the .npy files hold it"
    try:
        for package in ("xarray", "netCDF4"):
            require_extra(package, "science", NETCDF)
    except ValueError as error:
        return f"{NETCDF} is not written: {error}"
    if len(job) * np.prod(model.shape) * 8 > MAX_BYTES:
        return f"{NETCDF} is not written, because the fields take more than {MAX_BYTES >> 30} GiB"
    fields = np.stack([read(number) for number in range(len(job))])
    dimensions = (SAMPLE, *places.names)
    data = {
        name: (dimensions, fields[:, k], {"units": unit} if unit else {})
        for k, (name, unit) in enumerate(zip(places.channels, places.channel_units, strict=True))
    }
    axes = {
        name: ((name,), list(values), {"units": unit} if unit else {})
        for name, values, unit in zip(places.names, places.values, places.units, strict=True)
    }
    conditions = job.conditions
    if conditions.images is not None:
        columns = [job.series.column(number) for number in range(len(job))]
        axes["condition"] = ((SAMPLE,), [conditions.number(column) for column in columns], {})
        axes["member"] = ((SAMPLE,), [column % conditions.members for column in columns], {})
    import xarray

    dataset = xarray.Dataset(data, axes)
    replace_file(folder / NETCDF, lambda new: dataset.to_netcdf(new), flush=False)
    return None
