"""Help, completion and wrong options do not wait for PyTorch, which takes seconds to import."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import diffusion
import residual
import resnet
import unet

ROOT = Path(__file__).parent.parent
WITHOUT_TORCH = """
import sys
import {script}
try:
    {script}.main({words!r})
except SystemExit as end:
    assert end.code == {code}, end.code
else:
    raise AssertionError("the script has begun")
assert "torch" not in sys.modules
"""
WRONG_FLAG = """
import sys
import train
from training.script import PACKAGES
assert not {{*PACKAGES}} & {{*sys.modules}}, "without one of these the script could not print its error"
sys.argv = ["train.py", "--train.image", "3"]
try:
    train.main()
except SystemExit as end:
    print(end.code, [name for name in {late} if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("script", "wrong"),
    [
        ("sample", [["run", "--stesp", "3"], ["run", "--sampler", "dddim"], ["run", "--mask", "m.png"]]),
        ("evaluate", [[], ["run", "--train.images", "3"], ["run", "--other", "images"]]),
        ("export", [["run", "--out", "x", "--to", "onxn"], ["run", "--out", "x", "--private"]]),
        ("demo", [["--port", "0"]]),
    ],
)
def test_help_and_wrong_options_import_no_torch(script: str, wrong: list[list[str]]) -> None:
    runs = [WITHOUT_TORCH.format(script=script, words=["--help"], code=0)]
    runs += [WITHOUT_TORCH.format(script=script, words=words, code=2) for words in wrong]
    done = subprocess.run([sys.executable, "-c", "\n".join(runs)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wrong_flag_of_training_is_one_line_before_the_libraries_of_a_run_are_imported() -> None:
    late = ["datasets", "diffusers", "huggingface_hub", "matplotlib", "scipy", "sklearn", "torch._dynamo"]
    done = subprocess.run(
        [sys.executable, "-c", WRONG_FLAG.format(late=late)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "2 []\n"), done.stderr
    assert re.fullmatch(r"train.py: error: --train\.image .*--train\.images.*\n", done.stderr)


def test_packages_import_their_names_when_they_are_used() -> None:
    for package in (residual, resnet, unet, diffusion):
        assert {*package.__all__} <= {*dir(package)}
        assert all(hasattr(package, name) for name in package.__all__)
        assert not hasattr(package, "nothing")


@pytest.mark.parametrize(
    ("package", "name"), [(residual, "unet_branch"), (resnet, "summary"), (diffusion, "posterior")]
)
def test_a_name_is_that_of_the_package_and_not_of_a_module(package: ModuleType, name: str) -> None:
    module = import_module(f"{package.__name__}.{name}")
    assert getattr(package, name) is getattr(module, name)
