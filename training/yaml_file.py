"""Reads and writes settings as YAML: names and values only, in bounded time. An error is one line.

1e-4 is a number; a date is a text. 017, duplicate names, tags (!), aliases (*, &) and deep nesting are errors.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from residual.weights.config import foreign_version
from storage.read import read_text

Number = TypeVar("Number", int, float)
MAX_BYTES = 1 << 17
"""of a file; reading one of this size takes seconds"""
MAX_DEPTH = 16
"""lists and sections within each other"""
MAX_DIGITS = 100
"""characters of an integer; Python's `int` needs quadratic time"""
FORMAT_VERSION = 2
"""of the config.yaml of a run folder"""


def read_settings(path: Path, is_record: bool = False) -> tuple[dict[str, Any], int | None]:
    """The settings in a file, by dotted name, and its format version, which a config.yaml of a run folder has.

    Raises ValueError as `read_yaml` does, for a key with a dot, for another version, and for none in a record.
    """
    tree = read_yaml(path)
    version = tree.pop("format_version", None)
    if version != FORMAT_VERSION and (is_record or version is not None):
        raise ValueError(
            f"{path} has {foreign_version(version, FORMAT_VERSION)}. Continue the run with the version that wrote it, "
            "or start over: with a config of your own, another --run, or --fresh"
        )
    try:
        return dict(flat(tree)), version
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file. Raises ValueError, with the line if it is known, if there is none."""
    try:
        text = read_text(path, MAX_BYTES)
    except FileNotFoundError:
        raise ValueError(f"config {path} does not exist{listing(path.parent)}") from None
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: {_problem(error)}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, Mapping):
        found = "is empty" if tree is None else f"holds {tree!r:.40}, not `key: value` lines"
        raise ValueError(f"{path} {found}; write at least one setting, such as `task: NAME`")
    return dict(tree)


def read_value(text: str) -> Any:
    """One value, by the same rules as in a file. Raises ValueError."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def write_yaml(tree: Mapping[str, Any]) -> str:
    """The mapping as YAML that `read_yaml` reads back. Lists are written in one line."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted name; an empty section is one value. Raises ValueError for a key with a dot."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if "." in str(key):
            parent, _, last = str(key).rpartition(".")
            raise ValueError(f"{name} is not a key; write `{last}:` indented below `{parent}:`")
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def listing(folder: Path) -> str:
    """The end of a message: the configs in a folder, or else those in configs/, if there are any."""
    found = sorted(folder.glob("[!.]*.yaml")) or sorted(Path("configs").glob("[!.]*.yaml"))
    return f"; there is {', '.join(map(str, found[:8]))}" if found else ""


class _Loader(yaml.SafeLoader):
    """Builds dicts with texts as keys, lists, str, int, float, bool and None from YAML without tags and aliases."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            mark = "*" if isinstance(event, yaml.AliasEvent) else "&"
            _refuse(event, f"{mark}{event.anchor} is an alias of YAML; write the value itself, or quote a text")
        if getattr(event, "tag", None) is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            _refuse(event, f"{tag!r} is a tag of YAML; leave it out, or quote a text")
        if self.depth == MAX_DEPTH:
            _refuse(
                event, f"lists or sections are nested more than {MAX_DEPTH} deep; write `key: value` below `section:`"
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:  # type: ignore[override]
        lines, found = dict[str, int](), dict[str, Any]()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse(key, "a list or a section cannot be the name of a setting; write `key: value`")
            if (name := key.value) in lines:
                _refuse(key, f"{name} was already given in line {lines[name]}; keep one of the two")
            lines[name] = key.start_mark.line + 1
            found[name] = self.construct_object(value, deep=True)
        return found

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            _refuse(node, f"an integer of {len(node.value):,} characters is too long; give at most {MAX_DIGITS}")
        return _number(node, super().construct_yaml_int)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return _number(node, super().construct_yaml_float)


def _number(node: yaml.ScalarNode, construct: Callable[[yaml.ScalarNode], Number]) -> Number:
    if re.fullmatch(r"[-+]?0[0-7_]+|.*:.*", node.value):
        problem = f"{node.value} is not decimal to YAML 1.1 (017 is 15, 1:30 is 90); write a decimal, or quote it"
        _refuse(node, problem)
    try:
        return construct(node)
    except ValueError:
        _refuse(node, f"{node.value} is not a number; quote it if it is a text")


def _refuse(place: Any, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


def _problem(error: yaml.MarkedYAMLError) -> str:
    """The problem in one line; a syntax error, which PyYAML raises, with its context and a way out."""
    if isinstance(error, yaml.constructor.ConstructorError):
        return str(error.problem)
    where = f"{error.context}, " if error.context else ""
    return f"{where}{error.problem}; check indents and brackets, and quote a text with special characters"


class _Dumper(yaml.SafeDumper):
    pass


_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0].rpartition(":")[2] in ("null", "bool", "int", "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))
# In YAML 1.1, which PyYAML reads, a number with an exponent but without a decimal point is a string.
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
