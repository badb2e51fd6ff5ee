"""Reads and writes settings as YAML. 1e-4 is a number; 017 and duplicate keys are errors; an error is one line."""

import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from residual.weights.config import foreign_version

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
    if not path.is_file():
        raise ValueError(f"config {path} does not exist{listing(path.parent)}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, Mapping):
        found = "is empty" if tree is None else f"holds {tree!r:.40}, not `key: value` lines"
        raise ValueError(f"{path} {found}; write at least one setting, such as `task: NAME`")
    return dict(tree)


def read_value(text: str) -> Any:
    """One value, by the same rules as in a file. Raises ValueError."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def write_yaml(tree: Mapping[str, Any]) -> str:
    """The mapping as YAML that `read_yaml` reads back. Lists are written in one line."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted name. Raises ValueError for a key with a dot."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if "." in str(key):
            parent, _, last = str(key).rpartition(".")
            raise ValueError(f"{name} is not a key; write `{last}:` indented below `{parent}:`")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def listing(folder: Path) -> str:
    """The end of a message: the configs in a folder, or else those in configs/, if there are any."""
    found = sorted(map(str, folder.glob("*.yaml"))) or sorted(map(str, Path("configs").glob("*.yaml")))
    return f"; there is {', '.join(found[:8])}" if found else ""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if (name := str(key.value)) in lines:
                problem = f"{name} was already given in line {lines[name]}; keep one of the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        if re.fullmatch(r"[-+]?0[0-7_]+|.*:.*", node.value):
            problem = f"{node.value} is not decimal to YAML 1.1 (017 is 15, 1:30 is 90); write a decimal, or quote it"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return self.construct_yaml_int(node)


class _Dumper(yaml.SafeDumper):
    pass


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)
_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))
# In YAML 1.1, which PyYAML reads, a number with an exponent but without a decimal point is a string.
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
