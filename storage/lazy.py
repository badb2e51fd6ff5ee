"""Packages whose public names are imported when they are used, so that a light module of them needs no PyTorch."""

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def import_when_used(package: str) -> None:
    """Makes the imports below `if TYPE_CHECKING:` in the `__init__.py` of a package those of its names, on first use.

    To be called there, with `__name__`. As with imports at the top, a name stands for what is imported also where a
    submodule has the same name.
    """
    sys.modules[package].__class__ = _LazyPackage


class _LazyPackage(ModuleType):
    """A package that imports a public name when it is read for the first time."""

    def __getattr__(self, name: str) -> Any:
        if name not in (sources := _sources(self)):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module, original = sources[name]
        value = self.__dict__[name] = getattr(import_module(module), original)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        is_hidden = isinstance(value, ModuleType) and name in _sources(self)  # the import system binds submodules
        if not is_hidden:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_sources(self)})


def _sources(package: ModuleType) -> dict[str, tuple[str, str]]:
    """The module of each public name of a package, and the name there."""
    if "_sources" not in package.__dict__:
        tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
        package.__dict__["_sources"] = {
            alias.asname or alias.name: (str(node.module), alias.name)
            for block in tree.body
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in block.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
    return package.__dict__["_sources"]
