"""Names given by users, and the imports of the package."""

import subprocess
import sys

import pytest

from residual.names import amount, closest, require_known, shorten, suggest

NAMES = ["ddim", "ddpm", "heun"]


def test_known_names_are_returned() -> None:
    assert require_known("sampler", "ddim", NAMES) == "ddim"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dddim", r"unknown sampler 'dddim'; did you mean ddim or ddpm\? \(of: ddim, ddpm, heun\)$"),
        ("xyz", "unknown sampler 'xyz'; give one of: ddim, ddpm, heun$"),
    ],
)
def test_unknown_names_are_refused_with_the_closest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_known("sampler", name, NAMES)


def test_a_single_choice_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"layout 'edm-2'; did you mean edm2\?$"):
        require_known("layout", "edm-2", ["edm2"])


def test_suggestions_fall_back_to_the_given_text() -> None:
    assert suggest("xyz", NAMES, "list_models() lists them") == "list_models() lists them"
    assert closest("dddim", NAMES, count=1) == ["ddim"]


def test_long_lists_are_shortened() -> None:
    assert shorten([str(i) for i in range(5)], count=3) == "0, 1, 2, … (5 in all)"
    assert shorten(NAMES) == "ddim, ddpm, heun"


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "class", "1 class"),
        (0, "class", "0 classes"),
        (1, "grey image", "1 grey image"),
        (1234, "row", "1,234 rows"),
    ],
)
def test_a_number_with_its_noun(count: int, noun: str, text: str) -> None:
    assert amount(count, noun) == text


def test_importing_residual_loads_no_weight_libraries() -> None:
    code = "import residual, sys; print(*{'huggingface_hub', 'safetensors', 'residual.weights'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
