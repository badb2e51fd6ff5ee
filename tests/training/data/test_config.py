import ast
from pathlib import Path
from typing import Any, Literal

import pytest

from training.data import DataConfig, PixelFormat, Preprocessing

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": " "}, r"data\.source is empty"),
        ({"size": 0}, r"data\.size \(0, 0\)"),
        ({"size": True}, r"data\.size \(True, True\)"),
        ({"size": (32, -1)}, r"data\.size \(32, -1\)"),
        ({"size": (32, 100_000)}, r"data\.size \(32, 100000\).* 8192 "),
        ({"max_bad": -1}, r"data\.max_bad -1"),
        ({"label_column": "y", "labels": False}, r"data\.label_column is 'y'.*data\.labels"),
        ({"label_file": Path("y"), "labels": False}, r"data\.label_file is 'y'.*data\.labels"),
        ({"channels": 0}, r"data\.channels 0"),
        ({"range": (1, 1)}, r"data\.range \(1, 1\)"),
        ({"range": (0, float("inf"))}, r"data\.range \(0, inf\)"),
        ({"crop": "random"}, r"data\.crop is random.*data\.stream"),
        ({"center_share": 0.0, "size": 8}, r"data\.center_share 0\.0"),
        ({"center_share": 0.5}, r"data\.center_share 0\.5 .*crop center.*size"),
        ({"center_share": 0.5, "size": 8, "crop": "stretch"}, r"data\.center_share 0\.5 .*crop center"),
        ({"crop": "cut"}, r"data\.crop cut.*size"),
        ({"center_share": 0.5, "size": 8, "crop": "cut"}, r"data\.center_share 0\.5 .*crop center"),
        ({"validation": 1.0}, r"data\.validation 1\.0"),
        ({"validation": 0.5, "stream": True}, r"data\.validation 0\.5 .*data\.stream"),
        ({"background": (0, 0, 256)}, r"data\.background \(0, 0, 256\)"),
    ],
)
def test_invalid_values_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_one_number_is_a_square() -> None:
    assert DataConfig(size=32).preprocessing.size == (32, 32)
    assert DataConfig(size=(16, 24)).preprocessing.size == (16, 24)
    assert DataConfig().preprocessing.size is None


def test_preprocessing_has_the_fields_of_the_config() -> None:
    fields: dict[str, Any] = {"channels": 3, "bits": 16, "background": (1, 2, 3), "center_share": 0.5}
    assert DataConfig(size=8, **fields).preprocessing == Preprocessing(size=(8, 8), **fields)
    random = DataConfig(size=8, crop="random", stream=True).preprocessing
    assert random.crop == "random"
    assert random.deterministic() == DataConfig(size=8).preprocessing
    stretch = DataConfig(size=8, crop="stretch").preprocessing
    assert stretch.deterministic() is stretch


@pytest.mark.parametrize("bits", [8, 16])
def test_the_pixel_format_follows_from_the_bits(bits: Literal[8, 16]) -> None:
    assert Preprocessing(bits=bits).pixel_format == PixelFormat(dtype=f"uint{bits}", high=2**bits - 1)


def test_few_functions_take_the_whole_config() -> None:
    """Functions take the settings that they need, such as a `Preprocessing`."""
    takers = []
    for package in ("training", "tasks", "pipelines"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    hints = [ast.unparse(each.annotation) for each in given if each.annotation]
                    takers += [f"{file.name}:{node.name}" for hint in hints if "DataConfig" in hint]
    assert 0 < len(takers) < 10, takers
