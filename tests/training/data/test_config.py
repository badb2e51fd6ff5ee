from pathlib import Path

import pytest

from training.data import DataConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": " "}, r"data\.source is empty; give digits, a folder, a file, a glob or hub:OWNER/NAME"),
        ({"size": 0}, r"data\.size 0 must be a positive number of pixels, or two: \(height, width\)"),
        ({"size": True}, r"data\.size True must be a positive number"),
        ({"size": (32, -1)}, r"data\.size \(32, -1\) must be a positive number"),
        ({"size": (32, 100_000)}, r"data\.size \(32, 100000\) is too large; give at most 8192 pixels a side"),
        ({"max_bad": -1}, r"data\.max_bad -1 must be 0 or more"),
        ({"label_column": "y", "labels": False}, r"data\.label_column is 'y' but data\.labels is false; drop one"),
        ({"label_file": Path("y"), "labels": False}, r"data\.label_file is 'y' but data\.labels is false; drop one"),
        ({"channels": 0}, r"data\.channels 0 must be positive, or null \(as found\)"),
        ({"range": (1, 1)}, r"data\.range \(1, 1\) must be two numbers, the lower one first"),
        ({"range": (0, float("inf"))}, r"data\.range \(0, inf\) must be two numbers, the lower one first"),
        ({"crop": "random"}, r"data\.crop is random, but the cache would hold one part of each image"),
        ({"center_share": 0.0, "size": 8}, r"data\.center_share 0\.0 must be a share, above 0 and at most 1"),
        ({"center_share": 0.5}, r"data\.center_share 0\.5 is for data\.crop center and a data\.size; set both"),
        ({"center_share": 0.5, "size": 8, "crop": "stretch"}, r"data\.center_share 0\.5 is for data\.crop center"),
        ({"validation": 1.0}, r"data\.validation 1\.0 must be a share between 0 and 1, or name a part"),
        ({"validation": 0.5, "stream": True}, r"data\.validation 0\.5 is a share, but data\.stream is true; name"),
        ({"background": (0, 0, 256)}, r"data\.background \(0, 0, 256\) must be three numbers of 0 to 255: red, green"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_one_number_is_a_square() -> None:
    assert DataConfig(size=32).hw == (32, 32)
    assert DataConfig(size=(16, 24)).hw == (16, 24)
    assert DataConfig().hw is None


def test_the_cache_lies_in_the_home_folder_unless_told_otherwise(tmp_path: Path) -> None:
    assert DataConfig().cache_folder == Path.home() / ".cache" / "residual-diffusion"
    assert DataConfig(cache=tmp_path).cache_folder == tmp_path
