"""Reads and writes YAML. 1e-4 is a number; 017 and duplicate keys are errors; an error is one line."""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml


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
    if tree is None:
        raise ValueError(f"{path} is empty; write at least one setting, such as `task: NAME`")
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds {_show(tree)}, not `key: value` lines; write settings such as `task: NAME`")
    return dict(tree)


def read_value(text: str) -> Any:
    """One value, by the same rules as in a file. Raises ValueError."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{_show(text)} is not a value; put texts with special characters in quotes") from error


def write_yaml(tree: Mapping[str, Any]) -> str:
    """The mapping as YAML that `read_yaml` reads back. Lists are written in one line."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def listing(folder: Path) -> str:
    """The end of a message: the configs in a folder, if there are any."""
    found = sorted(map(str, folder.glob("*.yaml")))[:8] or sorted(map(str, Path("configs").glob("*.yaml")))[:8]
    return f"; there is {', '.join(found)}" if found else ""


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
        text = str(node.value)
        if ":" in text or re.fullmatch(r"[-+]?0[0-7_]+", text):
            problem = f"{text} is not decimal to YAML 1.1 (017 is 15, 1:30 is 90); write a decimal, or a text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)


class _Dumper(yaml.SafeDumper):
    pass


# In YAML 1.1, which PyYAML reads, a number with an exponent but without a decimal point is a string.
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
