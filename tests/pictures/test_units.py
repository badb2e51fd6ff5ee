"""Units: values standardised per channel, and back."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pictures.units import TRANSFORMS, Units

RNG = np.random.default_rng(0)
UNITS = Units(mean=(280.0, 101_325.0, 0.5), std=(10.0, 12.0, 0.25), transform=("none", "none", "none"))


def test_values_are_standardised_per_channel() -> None:
    values = torch.tensor([290.0, 101_301.0, 0.5]).view(1, 3, 1, 1)
    assert_close(UNITS.to_unit(values).flatten(), torch.tensor([1.0, -2.0, 0.0]), rtol=0, atol=0)
    assert UNITS.limit == float("inf")
    assert UNITS.spacing is None


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_round_trip_changes_values_by_less_than_1e_5(name: str) -> None:
    """With heavy tails, and a mean far above the deviation."""
    scale = np.array([1e-3, 1.0, 1e3]).reshape(1, 3, 1, 1)
    raw = (RNG.lognormal(0, 2, (16, 3, 8, 8)) * scale + (101_325 * (scale == 1e3))).astype(np.float32)
    changed = np.stack([TRANSFORMS[name][0](torch.from_numpy(raw[:, k]).double()).numpy() for k in range(3)], 1)
    mean, std = (
        tuple(map(float, each.astype(np.float32))) for each in (changed.mean((0, 2, 3)), changed.std((0, 2, 3)))
    )
    units = Units(mean=mean, std=std, transform=(name,) * 3)
    unit = units.to_unit(torch.from_numpy(raw))
    back = units.from_unit(unit)
    assert back.dtype == np.float32
    spread = raw.std((0, 2, 3), keepdims=True)
    assert np.abs((back - raw) / spread).max() < 1e-5
    assert_close(units.to_unit(torch.from_numpy(back)), unit, rtol=1e-5, atol=1e-5)


def test_nothing_is_clipped_and_missing_values_stay_missing() -> None:
    unit = torch.tensor([50.0, -50.0, float("nan")]).view(1, 3, 1, 1)
    np.testing.assert_array_equal(UNITS.from_unit(unit).flatten(), np.float32([780, 100_725, np.nan]))


def test_integers_are_rounded_and_held_by_their_dtype() -> None:
    units = Units(mean=(0.0,), std=(1000.0,), transform=("none",), dtype="int16")
    unit = torch.tensor([0.0014, 40.0, -40.0]).view(1, 1, 1, 3)
    np.testing.assert_array_equal(units.from_unit(unit).flatten(), np.array([1, 32767, -32768], np.int16))
    assert Units(mean=(0.0,), std=(1.0,), transform=("none",), dtype="uint8").stored == "uint8"
    assert units.stored == "float32"


def test_some_of_the_channels_have_units_of_their_own() -> None:
    assert UNITS.channels(1, 3) == Units(mean=(101_325.0, 0.5), std=(12.0, 0.25), transform=("none", "none"))
    assert "101325 ± 12" in UNITS.about


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "std=0 of channel 1"),
        ({"std": (1.0, 1.0, 1e39)}, r"std=1e\+39 of channel 2"),
        ({"mean": (1.0, float("nan"), 1.0)}, "mean=nan"),
        ({"mean": (1.0,)}, "1, 3 and 3"),
        ({"transform": ("none", "log", "none")}, "log"),
        ({"dtype": "complex64"}, "complex64"),
    ],
)
def test_what_is_no_map_is_refused(changes: dict, named: str) -> None:
    fields = {"mean": UNITS.mean, "std": UNITS.std, "transform": UNITS.transform, **changes}
    with pytest.raises(ValueError, match=named):
        Units(**fields)
