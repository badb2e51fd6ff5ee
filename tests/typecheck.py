"""The type checker of the test suite: beartype, for which an int is a float as it is for Python's own type checkers.

It checks the modules that state shapes, which mypy cannot check. The others would take a third of the suite's time.
"""

from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def modules_with_shapes() -> list[str]:
    """The modules of the project's packages, but for the experiments, that import jaxtyping."""
    packages = [file.parent for file in ROOT.glob("*/__init__.py") if file.parent.name != "experiments"]
    files = [path for package in packages for path in package.rglob("*.py") if "jaxtyping" in path.read_text("utf-8")]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)


def check_shapes() -> None:
    """Has each call of a function in the modules with shapes checked; to be called before they are imported."""
    install_import_hook(modules_with_shapes(), "tests.typecheck.check")
