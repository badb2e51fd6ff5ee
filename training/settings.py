"""Settings in frozen dataclasses: declares fields and sections, lists them by name, writes them as plain values."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

MAX_FLOAT = 3.4e38
"""about the largest number of float32"""


def setting(default: Any, *, may_change: bool = False) -> Any:
    """Declares a field. A run that is resumed may have another value only if it `may_change`."""
    return field(default=default, metadata={"may_change": may_change})


def variants(table: Mapping[str, type], default: str, presets: Callable[[], Mapping[str, Any]] = dict) -> Any:
    """Declares a section whose dataclass is chosen by `section.kind`, a key of `table`.

    The table is read whenever settings are parsed or written, so a user's script may add to it. `section.preset`, a
    key of `presets`, gives the defaults and chooses the kind.
    """
    return field(default_factory=lambda: table[default](), metadata={"table": table, "presets": presets})


def require(rule: bool, config: Any, name: str, way_out: str) -> None:
    """Raises ValueError for the value of the field `name`, unless it is representable and the rule holds."""
    value = getattr(config, name)
    if not (rule and is_representable(value)):
        raise ValueError(f"{name}={value} is out of range; {way_out}")


def is_representable(value: Any) -> bool:
    """Whether all numbers of a value, or of a list of values, are finite in float32, and its integers below 2^64."""
    if isinstance(value, list | tuple):
        return all(map(is_representable, value))
    if isinstance(value, float):
        return abs(value) <= MAX_FLOAT
    return not isinstance(value, int) or abs(value) < 2**64


@dataclass(frozen=True)
class Leaf:
    """One value of a run's settings, such as `train.images`."""

    name: str
    """dotted"""
    hint: Any
    """its type"""
    default: Any
    """MISSING if the user has to give it"""
    help: str


def sections(run: type) -> dict[str, Field]:
    """The fields of a run that are sections, by name."""
    hints = get_type_hints(run)
    return {each.name: each for each in fields(run) if "table" in each.metadata or is_dataclass(hints[each.name])}


def leaves(cls: type, section: str = "", default: Any = None) -> list[Leaf]:
    """The values of one dataclass, in the order of declaration. The instance `default` replaces its defaults."""
    hints, texts, found = get_type_hints(cls), field_texts(cls), []
    for each in fields(cls):
        value = each.default if each.default_factory is MISSING else each.default_factory()
        value = getattr(default, each.name, value)
        found.append(Leaf(f"{section}.{each.name}".lstrip("."), hints[each.name], value, texts.get(each.name, "")))
    return found


def kind_of(table: Mapping[str, type], config: Any) -> str:
    """The name of a variant, by the type of the instance. Raises ValueError if the table lacks it."""
    if (name := next((name for name, cls in table.items() if cls is type(config)), None)) is None:
        raise ValueError(f"{type(config).__name__} is none of the kinds {', '.join(table)}")
    return name


def plain(config: Any) -> Any:
    """The settings in dicts, lists, str, int, float, bool and None only. Values come before sections."""
    if isinstance(config, list | tuple):
        return [plain(item) for item in config]
    if not is_dataclass(config):
        return str(config) if isinstance(config, Path) else config
    tree = {}
    for each in fields(config):
        value, table = getattr(config, each.name), each.metadata.get("table")
        tree[each.name] = {"kind": kind_of(table, value), **plain(value)} if table else plain(value)
    return dict(sorted(tree.items(), key=lambda item: isinstance(item[1], dict)))


def show(value: Any, flag: bool) -> str:
    """A value as it is written in a flag, or in a file."""
    if isinstance(value, tuple | list):
        items = (",", ", ")[not flag].join(show(item, flag) for item in value)
        return items if flag and value else f"[{items}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def changeable(run: Any) -> set[str]:
    """The dotted names of the fields that were declared with `may_change`, and of those of such a section."""
    found = {each.name for each in fields(run) if each.metadata.get("may_change")}
    for section in sections(type(run)):
        for each in fields(getattr(run, section)):
            if section in found or each.metadata.get("may_change"):
                found.add(f"{section}.{each.name}")
    return found


@cache
def field_texts(cls: type) -> dict[str, str]:
    """The string literal under each field, its help text; fields of base classes included."""
    texts: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(cls.__mro__)):
        definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for statement, below in pairwise(definition.body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts
