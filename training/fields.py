"""Nested dataclasses as a flat list of dotted fields, each with its type, default and help text; and back again."""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NAMES: dict[Any, str] = {
    int: "INT",
    float: "NUMBER",
    str: "TEXT",
    Path: "PATH",
    bool: "true|false",
    types.NoneType: "null",
}


@dataclass(frozen=True)
class Leaf:
    """One value of a config: `train.images`, an int, 200000 unless given, and what it means."""

    name: str
    hint: Any
    default: Any
    """MISSING where the config has to say it"""
    help: str


def leaves(cls: type, defaults: Mapping[str, Any] | None = None, prefix: str = "", default: Any = None) -> list[Leaf]:
    """The fields of the dataclass `cls`, through all its sections, in the order in which they are declared.

    `defaults` holds instances, by section, whose values stand in for those of the class (a preset of the model).
    """
    defaults, hints, texts = defaults or {}, get_type_hints(cls), field_texts(cls)
    found = []
    for field in _given(cls):
        name, hint = prefix + field.name, hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            section = defaults.get(name, _default(field, default))
            found += leaves(hint, defaults, name + ".", None if section is MISSING else section)
        else:
            found.append(Leaf(name, hint, _default(field, default), texts.get(field.name, "")))
    return found


def sections(cls: type, prefix: str = "") -> dict[str, type]:
    """Dotted name -> dataclass, of every field of `cls` that is itself a dataclass."""
    found: dict[str, type] = {}
    for field in _given(cls):
        hint = get_type_hints(cls)[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            found |= {prefix + field.name: hint} | sections(hint, f"{prefix}{field.name}.")
    return found


def build(cls: type, values: Mapping[str, Any], section: str = "") -> Any:
    """A `cls` from values by dotted name. A ValueError of a dataclass says of which section it speaks."""
    hints, arguments = get_type_hints(cls), {}
    for field in _given(cls):
        name = f"{section}.{field.name}" if section else field.name
        if is_dataclass(hints[field.name]):
            arguments[field.name] = build(hints[field.name], values, name)
        elif name in values:
            arguments[field.name] = values[name]
    try:
        return cls(**arguments)
    except ValueError as error:
        known = not section or str(error).startswith((f"{section}.", f"{section}:"))
        raise ValueError(str(error) if known else f"{section}: {error}") from error


def plain(value: Any) -> Any:
    """The same value in dicts, lists, str, int, float, bool and None only, as YAML can hold it."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in _given(type(value))}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def field_texts(cls: type) -> dict[str, str]:
    """Field -> the string literal under it, its help text; those of base classes included."""
    texts: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(cls.__mro__)):
        definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for statement, below in pairwise(definition.body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts


def words(hint: Any) -> str:
    """A type as it is written in a flag: `INT`, `INT,INT`, `linear|cosine`, `NUMBER|null`; `INT[,...]`: one or more."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return ",".join("..." if item is ... else words(item) for item in get_args(hint))
    options = list(alternatives(hint))
    if len(options) == 1:
        return NAMES.get(hint, str(hint))
    if float in options and int in options:
        options.remove(int)
    texts = []
    for option in options:
        item, *rest = get_args(option) or (None,)
        if rest == [...] and item in options:
            continue  # the brackets below say it
        texts.append(words(option) + ("[,...]" if tuple[option, ...] in options else ""))  # type: ignore[valid-type]
    return "|".join(texts)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a union leaves open; a type that is no union, alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def kinds(hint: Any) -> set[Any]:
    """The plain types that a value of this type, or an item of it, may have."""
    if get_origin(hint) is Literal:
        return {type(choice) for choice in get_args(hint)}
    return set().union(*(kinds(item) for item in get_args(hint) if item is not ...)) or {hint}


def _given(cls: type) -> Iterator[Field]:
    """Fields that the caller of the constructor may give."""
    return (field for field in fields(cls) if field.init)


def _default(field: Field, instance: Any) -> Any:
    if instance is not None:
        return getattr(instance, field.name)
    return field.default_factory() if field.default_factory is not MISSING else field.default
