"""A package of an extra that is not installed: the error names it, and the extra of pyproject.toml that has it."""

import argparse
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from torch import nn

from experiments import figure
from experiments.finding import Finding
from pipelines.graphs import MODULES, check_graphs
from residual.lora import add_lora
from residual.ode import ODEBlock
from tests.tasks.test_graphs import classifier
from training.completion import completion
from training.data.sources.grids import open_dataset
from training.script import PACKAGES, command
from unet import UNet, UNetConfig
from web.space import require_gradio

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FEATURES: list[tuple[str, str, Callable[[], object]]] = [
    (
        "peft",
        "lora",
        lambda: add_lora(UNet(UNetConfig(base_channels=8, groups=4, channel_multipliers=(1,), attention_levels=()))),
    ),
    ("torchdiffeq", "ode", lambda: ODEBlock(nn.Tanh(), "dopri5", rtol=1e-3)),
    ("shtab", "completion", lambda: completion(argparse.ArgumentParser(), "bash")),
    ("gradio", "demo", require_gradio),
    ("matplotlib", "train", lambda: figure.draw(Finding("none", {}, [], [], []), Path("none.png"))),
    *((package, "onnx", lambda: check_graphs(classifier(), "onnx")) for package in MODULES),
    *((package, "science", lambda: open_dataset(Path("none.nc"))) for package in ("xarray", "netCDF4")),
    ("zarr", "science", lambda: open_dataset(Path("none.zarr"))),
]


def packages(extra: str) -> list[str]:
    """The names of the packages of an extra, without versions."""
    return [re.split("[><=]", requirement)[0] for requirement in EXTRAS[extra]]


@pytest.mark.parametrize(("package", "extra", "use"), FEATURES, ids=[package for package, _, _ in FEATURES])
def test_an_error_names_the_package_and_its_extra(
    package: str, extra: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'{package}.*: pip install -e "\.\[{extra}\]"$'):
        use()
    assert package in packages(extra)


@command
def script(argv: Sequence[str]) -> None:
    """Imports a module."""
    import_module(argv[0])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_script_without_a_package_ends_in_one_line(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as ended:
        script([package])
    assert ended.value.code == 2
    assert re.fullmatch(rf'.*: error: .*{package}.*: pip install -e "\.\[train\]"\n', capsys.readouterr().err)


def test_a_missing_package_may_be_the_reason_of_another_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As in diffusers."""

    @command
    def script(argv: Sequence[str]) -> None:
        """Fails because of a missing package."""
        raise RuntimeError("failed to import a pipeline") from ModuleNotFoundError(name=argv[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(SystemExit):
            script(["accelerate"])
    assert "needs accelerate" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        script(["nothing"])


@pytest.mark.parametrize("module", ["residual.nothing", "PIL.nothing", "nothing"])
def test_any_other_missing_module_is_an_error_of_the_script(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=module):
        script([module])


def test_the_packages_of_scripts_are_those_of_the_extra() -> None:
    names = {"Pillow": "PIL", "PyYAML": "yaml", "scikit-learn": "sklearn"}
    required = {*packages("sample"), *packages("train")} - {"residual-diffusion[sample]"}
    assert {names.get(package, package) for package in required} == {*PACKAGES}
