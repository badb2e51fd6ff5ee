"""Reads JSON files and config dataclasses, with types checked."""

import contextlib
import operator
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

from residual.names import require_known
from storage import read

C = TypeVar("C")
MAX_COUNT = 1 << 24
"""largest width, number of classes or size in pixels; more is almost certainly a typo, and fits no memory"""
MAX_BLOCKS = 1000
"""largest number of blocks of all levels or stages together"""


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file. Raises ValueError if the file is missing, damaged, or holds no object."""
    if not path.exists():
        raise ValueError(f"{path.parent} is not a model folder: it has no {path.name}")
    return read.read_json(path)


def read_config(config_class: type, document: Any, optional: Iterable[str] = ()) -> Any:
    """Builds a config dataclass from plain JSON values, each checked against the field's type. Lists become tuples.

    All fields must be given, except those in `optional`: a default that changes later would change the network.

    Raises ValueError with the field that is unknown (and the closest names), of the wrong type, or missing.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"{document!r} should be an object with the fields of {config_class.__name__}")
    values = _read_values(config_class, document)
    if missing := [field.name for field in fields(config_class) if field.name not in {*values, *optional}]:
        raise ValueError(
            f"missing field {missing[0]!r}: add it, or save the model again with the version that wrote it"
        )
    return config_class(**values)


def change_config(config: C, changes: Mapping[str, Any]) -> C:
    """The config with other values of some fields. Raises ValueError as `read_config` does."""
    return replace(config, **_read_values(type(config), changes))  # type: ignore[type-var]


def _read_values(config_class: type, document: Mapping[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(config_class)
    hints = {field.name: hints[field.name] for field in fields(config_class)}  # without class variables
    values = {}
    for name, value in document.items():
        require_known("field", name, hints)
        try:
            values[name] = convert(value, hints[name])
        except TypeError:
            raise ValueError(f"{name}={value!r} should be {_type_name(hints[name])}") from None
    return values


def check_counts(config: Any, *names: str) -> None:
    """Raises ValueError unless each of the fields, or each of its entries, is None or from 1 to `MAX_COUNT`."""
    for name in names:
        value = getattr(config, name)
        for count in value if isinstance(value, tuple) else (value,):
            if count is not None and not 1 <= count <= MAX_COUNT:
                raise ValueError(f"{name}={value} must be at least 1, and at most {MAX_COUNT:,}")


def foreign_version(found: Any, expected: int) -> str:
    """The first half of a message about a file of another format version: what wrote it, and what is read here."""
    earlier = isinstance(found, int) and found < expected
    writer = "commits up to 9782c87" if earlier else "a later version of this project"
    return f"format_version {found!r}, written by {writer}; this version reads {expected}"


def require_version(found: Any, expected: int) -> None:
    """Raises ValueError unless a file has the format version that this version of the project reads."""
    if found != expected:
        raise ValueError(f"{foreign_version(found, expected)}. Use the version that wrote it, or train again")


def convert(value: Any, hint: Any) -> Any:
    """Converts a value read from JSON or YAML to the type `hint`.

    Lists become tuples; integers become floats, whole floats (2e5) integers, and strings paths, where `hint` requires
    it. Raises TypeError if the value does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        exact = [option for option in arguments if option is type(value)]
        for option in (*exact, *arguments):
            with contextlib.suppress(TypeError):
                return convert(value, option)
    elif origin is typing.Literal:
        if any(choice == value and type(choice) is type(value) for choice in arguments):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            hints = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
            if len(hints) == len(value):
                return tuple(map(convert, value, hints))
    elif hint is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            return float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif hint is int and isinstance(value, SupportsIndex) and not isinstance(value, bool):
        return operator.index(value)  # of numpy, too
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is not {hint}")


def _type_name(hint: Any) -> str:
    return str(hint).replace("typing.", "") if typing.get_origin(hint) else hint.__name__
