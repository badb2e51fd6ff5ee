"""The type checker of the test suite: beartype, for which an int is a float as it is for Python's own type checkers.

It checks the modules that state shapes, which mypy cannot check. The others would take a third of the suite's time.
"""

from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
NOT_CHECKED = {"tests", "benchmarks", "experiments", "examples"}

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def modules_with_shapes() -> list[str]:
    """The modules of the project's packages that import jaxtyping."""
    files = [path for package in ROOT.glob("*/__init__.py") for path in package.parent.rglob("*.py")]
    names = [path.relative_to(ROOT).with_suffix("").parts for path in files if "jaxtyping" in path.read_text("utf-8")]
    return sorted(".".join(parts) for parts in names if parts[0] not in NOT_CHECKED and parts[-1] != "__init__")


def check_shapes() -> None:
    """Has each call of a function in the modules with shapes checked; to be called before they are imported."""
    install_import_hook(modules_with_shapes(), "tests.typecheck.check")
