"""Pixel formats: stored pixels to [-1, 1] and back."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from training.data import PixelFormat


@pytest.mark.parametrize(
    ("pixel_format", "values"),
    [
        (PixelFormat(), [0, 51, 255]),
        (PixelFormat(dtype="uint16", high=65535), [0, 13107, 65535]),
        (PixelFormat(dtype="int16", low=-1000, high=1000, file="npy"), [-1000, -600, 1000]),
        (PixelFormat(dtype="float32", low=-4, high=4, file="npy"), [-4.0, -2.4, 4.0]),
    ],
)
def test_low_is_minus_one_high_is_one_and_back(pixel_format: PixelFormat, values: list) -> None:
    stored = torch.from_numpy(np.array(values, pixel_format.stored).reshape(1, 3, 1, 1))
    unit = pixel_format.to_unit(stored)
    assert_close(unit.flatten(), torch.tensor([-1, -0.6, 1]), rtol=0, atol=1e-6)
    back = pixel_format.from_unit(unit)
    assert back.dtype == pixel_format.dtype
    np.testing.assert_allclose(back.flatten(), values, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_level_survives_the_round_trip(dtype: str) -> None:
    levels = np.arange(2 ** (8 * np.dtype(dtype).itemsize), dtype=dtype)
    pixel_format = PixelFormat(dtype=dtype, high=float(levels[-1]))
    back = pixel_format.from_unit(pixel_format.to_unit(torch.from_numpy(levels.reshape(1, 1, 16, -1))))
    np.testing.assert_array_equal(back.flatten(), levels)


def test_values_out_of_range_are_clipped() -> None:
    np.testing.assert_array_equal(
        PixelFormat().from_unit(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)).flatten(), [0, 255]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "complex64"}, "dtype='complex64'"),
        ({"low": 1.0, "high": 1.0}, "low=1 .*high=1 "),
        ({"high": 1e-320}, "low=0 .*high=9.99989e-321 "),
        ({"low": -3e38, "high": 3e38}, r"low=-3e\+38 .*high=3e\+38 "),
        ({"high": float("nan")}, "low=0 .*high=nan "),
        ({"file": "gif"}, "file='gif'"),
    ],
)
def test_invalid_fields_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelFormat(**fields)
