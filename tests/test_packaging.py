"""The wheel, installed with its declared base dependencies alone, and with the extra [sample]."""

import importlib.metadata as metadata
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import residual

ROOT = Path(__file__).parent.parent
BASE = ("storage", "residual", "resnet", "unet")
PACKAGES = (*BASE, "diffusion", "pictures", "pipelines")
HEAVY = ("diffusers", "accelerate", "datasets", "torchvision")
USE = """
import importlib.util, sys
import resnet, torch, unet
from residual import Residual, Chain
net = unet.UNet(unet.UNetConfig(size=(8, 8), base_channels=16, channel_multipliers=(1, 2), attention_levels=(1,)))
x = torch.randn(2, 3, 8, 8)
assert net(x, torch.tensor([1, 2])).shape == x.shape
net.save_pretrained("model")
unet.UNet.from_pretrained("model")
zoo = resnet.create_model("resnet20")
zoo.save_pretrained("zoo")
assert resnet.ResNet.from_pretrained("zoo")(torch.randn(2, 3, 32, 32)).shape == (2, 10)
print(*[name for name in sys.argv[1:] if name in sys.modules or importlib.util.find_spec(name)])
"""

TRAINER = ("training", "tasks", "datasets", "torchmetrics", "sklearn")
SAMPLE = """
import importlib.util, sys
import numpy as np, torch
import resnet, unet
from diffusion import DDPM, EDM
from pictures.pixel_format import PixelFormat
from pictures.preprocessing import Preprocessing
from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pathlib import Path
small = {"size": (8, 8), "base_channels": 16, "channel_multipliers": (1, 2), "attention_levels": (1,)}
for formulation in (DDPM(), EDM()):
    DiffusionModel(unet.UNet(unet.UNetConfig(**small)), formulation).save(Path("model"))
    assert load_model("model").draw(range(2), None, steps=2).shape == (2, 3, 8, 8)
net = resnet.create_model("resnet20", mean=(0.5,) * 3, std=(0.5,) * 3)
pictures = Preprocessing(size=(32, 32), channels=3)
ImageClassifier(net, tuple("abcdefghij"), pictures, PixelFormat()).save(Path("classifier"))
((name, share),) = load_classifier("classifier").predict([np.zeros((40, 40, 3), np.uint8)])
assert name in "abcdefghij" and 0 < share < 1
print(*[name for name in sys.argv[1:] if name in sys.modules or importlib.util.find_spec(name)])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and its base dependencies."""
    return installed(wheel, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def with_sample(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and the extra [sample]."""
    return installed(wheel, tmp_path_factory.mktemp("sample"), "sample")


def installed(wheel: Path, home: Path, extra: str = "") -> Path:
    """Unpacks the wheel into an environment. Its dependencies are linked from this environment, not downloaded."""
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (info,) = site.glob("residual_diffusion-*.dist-info")
    link(metadata.Distribution.at(info).requires or (), site, extra)
    return home


def link(requirements: Iterable[str], site: Path, extra: str = "") -> None:
    """Links into `site` the files of every required distribution, and of those that these require."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        found = metadata.distribution(requirement.name)
        names = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        if all((site / name).exists() for name in names):
            continue
        for name in names:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(found.locate_file(name))))
        link(found.requires or (), site)


def python(home: Path, *arguments: str, cwd: Path) -> str:
    """Run the environment's own interpreter, isolated from this checkout."""
    command = [str(home / "bin" / "python"), "-I", *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_the_wheel_has_the_version_of_the_package(wheel: Path) -> None:
    assert wheel.name.startswith(f"residual_diffusion-{residual.__version__}-")


def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert {f"{name}/py.typed" for name in PACKAGES} <= set(names)
    modules = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_base_install_builds_a_model_without_the_trainer(bare: Path, tmp_path: Path) -> None:
    assert python(bare, "-c", USE, *HEAVY, cwd=tmp_path).split() == []


def test_the_extra_sample_samples_and_classifies_without_the_trainer(with_sample: Path, tmp_path: Path) -> None:
    """A model folder and a picture are enough: neither the checkout nor the trainer's libraries are installed."""
    assert python(with_sample, "-c", SAMPLE, *TRAINER, cwd=tmp_path).split() == []


def test_the_example_runs_on_the_base_install_and_scikit_learn(bare: Path, tmp_path: Path) -> None:
    (site,) = bare.glob("lib/python*/site-packages")
    link(["scikit-learn"], site)
    out = python(bare, str(ROOT / "examples" / "vae_digits.py"), "--steps", "30", cwd=tmp_path)
    before, after = (float(line.split()[1]) for line in out.splitlines()[:2])
    assert after < before
    assert len((ROOT / "examples" / "vae_digits.py").read_text().splitlines()) <= 80
