"""A package of an extra that is not installed: the error names it, and the extra of pyproject.toml that has it."""

import argparse
import re
import sys
import tomllib
from collections.abc import Callable
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


@pytest.mark.parametrize(("package", "extra", "use"), FEATURES, ids=[package for package, _, _ in FEATURES])
def test_an_error_names_the_package_and_its_extra(
    package: str, extra: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'{package}.*: pip install -e "\.\[{extra}\]"$'):
        use()
    assert package in [re.split("[><=]", requirement)[0] for requirement in EXTRAS[extra]]
