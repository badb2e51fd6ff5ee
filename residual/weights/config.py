"""Reads JSON files and config dataclasses, with types checked."""

import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from residual.names import require_known


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file. Raises ValueError if the file is missing, damaged, or holds no object."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is not a model folder: it has no {path.name}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} should hold a JSON object, not a {type(document).__name__}")
    return document


def read_config(config_class: type, fields: Mapping[str, Any], optional: Iterable[str] = ()) -> Any:
    """Builds a config dataclass from plain JSON values, each checked against the field's type. Lists become tuples.

    All fields must be given, except those in `optional`: a default that changes later would change the network.

    Raises ValueError with the field that is unknown (and the closest names), of the wrong type, or missing.
    """
    hints = typing.get_type_hints(config_class)
    values = {}
    for name, value in fields.items():
        require_known("field", name, hints)
        value = _tuples(value)
        if not _fits(value, hints[name]):
            raise ValueError(f"{name}={value!r} should be {_type_name(hints[name])}")
        values[name] = value
    if missing := [name for name in hints if name not in values and name not in optional]:
        raise ValueError(
            f"missing field {missing[0]!r}: add it, or save the model again with the version that wrote it"
        )
    return config_class(**values)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(hints) == len(value) and all(map(_fits, value, hints))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _type_name(hint: Any) -> str:
    return str(hint).replace("typing.", "") if typing.get_origin(hint) else hint.__name__
