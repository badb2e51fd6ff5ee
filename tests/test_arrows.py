"""The floors of the house: a package imports only from lower floors, and only the libraries its floor may see."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from training.yaml_file import _Loader

ROOT = Path(__file__).parent.parent
BASE = {"torch", "einops", "jaxtyping", "numpy"}
# What each package may import: packages of ours below it, and libraries at module level.
ARROWS: dict[str, tuple[set[str], set[str]]] = {
    "storage": (set(), set()),
    "residual": ({"storage"}, BASE),
    "pictures": ({"storage"}, BASE | {"PIL"}),
    "resnet": ({"residual", "storage"}, BASE),
    "unet": ({"residual", "storage"}, BASE),
    "metrics": (set(), BASE),
    "diffusion": ({"residual", "storage"}, BASE),
    "training": (
        {"residual", "pictures", "storage"},
        BASE | {"accelerate", "filelock", "PIL", "safetensors", "tqdm", "yaml"},
    ),
    "pipelines": (
        {"residual", "resnet", "unet", "diffusion", "pictures", "storage"},
        BASE | {"accelerate", "safetensors"},
    ),
    "tasks": (
        {"residual", "resnet", "unet", "diffusion", "metrics", "pictures", "training", "pipelines", "storage"},
        BASE | {"accelerate", "PIL", "safetensors"},
    ),
    "drawing": (
        {"residual", "diffusion", "metrics", "pictures", "training", "pipelines", "storage"},
        BASE | {"tqdm", "xarray"},
    ),
    "web": (
        {"residual", "diffusion", "pictures", "training", "pipelines", "drawing", "storage"},
        BASE | {"PIL", "tqdm", "fastapi", "gradio", "starlette"},
    ),
    "evaluating": ({"residual", "pictures", "training", "pipelines", "tasks", "storage"}, BASE),
    "exporting": (
        {"residual", "resnet", "unet", "diffusion", "pictures", "training", "pipelines", "tasks", "web", "storage"},
        BASE | {"diffusers"},
    ),
    "experiments": (
        {
            "residual",
            "resnet",
            "unet",
            "diffusion",
            "metrics",
            "pictures",
            "training",
            "pipelines",
            "tasks",
            "drawing",
            "storage",
        },
        BASE | {"accelerate", "safetensors", "yaml"},
    ),
}
# Imported inside the one function that needs them, so that importing the package stays light.
LAZY = {
    "diffusion": {"diffusers"},
    "pictures": {"diffusers"},
    "residual": {"safetensors", "huggingface_hub", "peft", "torchdiffeq"},
    "training": {"datasets", "matplotlib", "pyarrow", "shtab", "sklearn", "tensorboard", "xarray"},
    "tasks": {"torchmetrics"},
    "metrics": {"torchmetrics"},
    "pipelines": {"onnxruntime"},
    "exporting": {"safetensors"},
    "experiments": {"matplotlib"},
}
# The one file that needs the extra [gpu]; it is imported only where the extra is installed.
OPTIONAL = {"residual/norm_triton.py": {"triton"}}
SCRIPTS = {"train", "sample", "evaluate", "export", "demo"}


def imports(file: Path) -> list[tuple[str, bool]]:
    """Root of each module that a file imports, and whether the import stands inside a function."""
    tree = ast.parse(file.read_text())
    inner = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.append(((node.module or "").partition(".")[0], node in inner))
    return [(name, lazy) for name, lazy in found if name not in sys.stdlib_module_names]


@pytest.mark.parametrize("package", ARROWS)
def test_imports_only_point_down(package: str) -> None:
    below, libraries = ARROWS[package]
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        for name, lazy in imports(file):
            allowed = {package} | below | libraries | (LAZY.get(package, set()) if lazy else set())
            allowed |= OPTIONAL.get(str(file.relative_to(ROOT)), set())
            assert name in allowed, f"{file.relative_to(ROOT)} imports {name}"


def module_file(name: str) -> Path | None:
    """The file of a module of ours, by dotted name; None for anything else."""
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported_files(file: Path) -> set[Path]:
    """Our files that a file imports anywhere: at module level, inside functions, under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {module_file(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {module_file(f"{node.module}.{alias.name}") or module_file(node.module) for alias in node.names}
    return {path for path in found if path is not None}


def circles(arrows: dict[Path, set[Path]]) -> list[list[str]]:
    """Groups of files that import each other, directly or through others (strongly connected components)."""
    reached = {file: set[Path]() for file in arrows}
    for file, seen in reached.items():
        waiting = [file]
        while waiting:
            new = arrows[waiting.pop()] - seen
            seen |= new
            waiting += new
    groups = {frozenset(other for other in reached[file] if file in reached[other]) for file in arrows}
    return sorted(sorted(str(file.relative_to(ROOT)) for file in group) for group in groups if group)


def test_no_files_import_each_other_in_a_circle() -> None:
    files = [*ROOT.glob("*.py"), *(file for package in ARROWS for file in (ROOT / package).rglob("*.py"))]
    arrows = {file: imported_files(file) for file in files}
    assert sum(map(len, arrows.values())) > len(files)
    assert circles(arrows) == []


def test_circles_are_found() -> None:
    a, b, c, d = (ROOT / f"{name}.py" for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {a}, d: {a}}) == [["a.py", "b.py", "c.py"]]
    assert circles({a: {a, b}, b: {c, d}, c: {d}, d: set()}) == [["a.py"]]


def test_nothing_imports_a_script() -> None:
    for package in ARROWS:
        for file in (ROOT / package).rglob("*.py"):
            assert not SCRIPTS & {name for name, _ in imports(file)}, file


def test_nothing_that_can_run_code_is_ever_loaded() -> None:
    """Weights are safetensors, what describes them JSON or YAML without tags; a pickle is never opened."""
    patterns = (
        r"^\s*(import|from) (c?pickle|dill|joblib|shelve|marshal)\b",
        r"allow_pickle=True",
        r"yaml\.(unsafe_load|full_load|load)\((?!.*, _Loader\))",  # a SafeLoader, see below
        r"torch\.load\((?!PATH, weights_only=True\), ')",  # in the message about pickles, not called
    )
    forbidden = re.compile("|".join(patterns))
    assert issubclass(_Loader, yaml.SafeLoader)
    files = [*ROOT.glob("*.py"), *(file for package in ARROWS for file in (ROOT / package).rglob("*.py"))]
    assert [file.name for file in files if "torch.jit.load(" in file.read_text()] == [
        "judge.py"
    ]  # states that it is code
    for file in files:
        for line in file.read_text().splitlines():
            assert not forbidden.search(line), f"{file.relative_to(ROOT)}: {line.strip()}"
