"""What may be said about a run, checked: its fields, the defaults of a preset, the fields that nobody may set.

Types are checked, and `--help` is written, by jsonargparse; what stands around it is for whoever reads an error: one
line with the value, the rule and the way out.
"""

from argparse import ArgumentError
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_origin

import jsonargparse

from residual.names import closest
from training.fields import Leaf, alternatives, kinds, leaves, sections, words
from training.yaml_file import read_value

USAGE = "%(prog)s [--config FILE] [--run FOLDER] [--fresh] [--dry-run] [--validate]\n       [--SECTION.KEY VALUE ...]"
DESCRIPTION = "Train a model. The same command resumes a run that was interrupted."
EPILOG = (
    "A flag `--train.images 2e5` says the same as `images: 2e5` in the section `train` of the YAML file, and wins over "
    "it. Write a list as 1,2,2 in a flag and as [1, 2, 2] in the file; null means none."
)
OWN = {
    "config": ("FILE", "the run, as a YAML file"),
    "run": ("FOLDER", "for its log, checkpoints, samples and model (default: runs/NAME for a config NAME.yaml)"),
    "fresh": (None, "start anew; what the folder holds is moved aside"),
    "dry-run": (None, "show the settings, the size of the model, memory and learning rates, and stop"),
    "validate": (None, "look at every image of the data set, tell what is wrong and what there is, and stop"),
}


class Schema:
    """The settings of a run dataclass.

    The class may have `derived` (dotted field -> why it may not be set), and `presets` (name -> instance) with
    `preset_names`, whose instances give the defaults of its section `model`; without a preset, those are what its
    `start_config` answers for the model that the run starts from, if it has a field `init` and the model tells.
    Raises ValueError for an unknown preset, and as `start_config` does.
    """

    def __init__(self, cls: Any, preset: Any = None, init: Any = None):
        self.sections = sections(cls)
        self.derived: Mapping[str, str] = getattr(cls, "derived", {})
        self.presets: list[str] = list(cls.preset_names()) if hasattr(cls, "presets") else []
        if preset is not None and self.presets and preset not in self.presets:
            raise ValueError(f"model.preset={preset!r} is unknown; {nearest(str(preset), self.presets)}")
        model = None
        if preset is not None and self.presets:
            model = cls.presets(preset)
        elif isinstance(init, str) and hasattr(cls, "start_config"):
            model = cls.start_config(init)
        given = {} if model is None else {"model": model}
        found = [leaf for leaf in leaves(cls, given) if leaf.name not in self.derived]
        if self.presets:
            text = "a published model, whose values are the defaults of this section"
            hint = Literal[tuple(self.presets)] | None  # type: ignore[valid-type]
            found.insert(0, Leaf("model.preset", hint, preset, text))
        self.leaves = {leaf.name: leaf for leaf in found}

    def values(self, tree: Mapping[str, Any], flags: Mapping[str, str], path: Path | None) -> dict[str, Any]:
        """The checked value of every field, by dotted name: from the flags, else the file, else its default.

        Raises ValueError for an unknown name, a value of the wrong kind, and one that is missing.
        """
        parser, values = self.parser(), {name: leaf.default for name, leaf in self.leaves.items()}
        for name, value in self._flat(tree, path):
            values[name] = _checked(parser, self._leaf(name, f"{path}: "), value, f"{path}: ")
        for name, text in flags.items():
            leaf = self._leaf(name, "--")
            values[name] = _checked(parser, leaf, _from_text(text, leaf.hint), "--")
        if missing := next((name for name, value in values.items() if value is MISSING), None):
            raise ValueError(f"{missing} is missing; give it in {path or 'a config'} or as --{missing}")
        values.pop("model.preset", None)
        return values

    def parser(self) -> Any:
        """The fields as a jsonargparse parser, grouped by section."""
        parser = jsonargparse.ArgumentParser(
            prog="train.py",
            usage=USAGE,
            description=DESCRIPTION,
            epilog=EPILOG,
            formatter_class=_Help,
            exit_on_error=False,
            allow_abbrev=False,
        )
        for name, (metavar, text) in OWN.items():
            kind = {"metavar": metavar} if metavar else {"action": "store_true"}
            parser.add_argument(f"--{name}", help=text, **kind)
        groups = {"": parser.add_argument_group("the run")}
        for name, cls in self.sections.items():
            groups[name] = parser.add_argument_group(name, description=_about(cls))
        for leaf in self.leaves.values():
            value = "required" if leaf.default is MISSING else f"default: {show(leaf.default, flag=True)}"
            groups[leaf.name.rpartition(".")[0]].add_argument(
                f"--{leaf.name}",
                type=leaf.hint,
                default=None if leaf.default is MISSING else leaf.default,
                metavar=f"{words(leaf.hint)}  ({value})",
                help=leaf.help,
            )
        return parser

    def _flat(self, tree: Mapping[str, Any], path: Path | None, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """The entries of the file, by dotted name."""
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if "." in str(key):
                section, _, rest = str(key).rpartition(".")
                raise ValueError(f"{path}: {name} is not a key; write `{rest}:` indented below `{section}:`")
            if name not in self.sections:
                yield name, value
            elif value is None or isinstance(value, Mapping):
                yield from self._flat(value or {}, path, f"{name}.")
            else:
                raise ValueError(f"{path}: {name}={value!r} is not a section; write its keys indented below `{name}:`")

    def _leaf(self, name: str, where: str) -> Leaf:
        """The field of this name. Raises ValueError with the nearest names, or why it may not be set."""
        if name in self.leaves:
            return self.leaves[name]
        if name in self.derived:
            raise ValueError(f"{where}{name} may not be set: {self.derived[name]}")
        if name in self.sections:
            example = next((leaf for leaf in self.leaves if leaf.startswith(f"{name}.")), "")
            raise ValueError(f"{where}{name} is a section; set its keys one by one, such as --{example}")
        dashes = where if where == "--" else ""
        raise ValueError(f"{where}{name} is unknown; {self._way_out(name, dashes)}")

    def _way_out(self, name: str, dashes: str) -> str:
        """The likeliest names: of the same section, of the same last part, else of any."""
        section, _, last = name.rpartition(".")
        known = [*self.leaves, *(OWN if dashes else self.sections)]
        beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
        likely = [beside[near] for near in closest(last, beside, 2)]
        likely += [other for other in known if other.rpartition(".")[2] == last]
        if likely or section not in self.sections:
            return nearest(name, known, dashes, likely)
        return f"the section {section} has {', '.join(beside)}"


def nearest(name: str, known: Collection[str], dashes: str = "", likely: Sequence[str] = ()) -> str:
    """The way out of an unknown name: the likeliest of the known ones, all if they are few, else where to find them."""
    if found := likely or closest(name, known, 2):
        return f"did you mean {' or '.join(dashes + other for other in found[:3])}?"
    return f"there is {', '.join(known)}" if len(known) <= 12 else "see train.py --help"


class _Help(jsonargparse.DefaultHelpFormatter):
    """Each flag on a line of its own, its meaning below it."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, max_help_position=6, **options)

    def _get_help_string(self, action: Any) -> str:
        return action.help or ""


def _about(cls: type) -> str:
    """The first paragraph of a dataclass's docstring, without what it raises; nothing if it has none of its own."""
    text = cls.__doc__ or ""
    own = not text.startswith(f"{cls.__name__}(")  # what dataclass writes where there is none
    return text.strip().partition("\n\n")[0].partition("Raises ")[0] if own else ""


def _checked(parser: Any, leaf: Leaf, value: Any, where: str) -> Any:
    """`value` as the type of its field: 2e5 as a count, a list as a tuple, a text as a path."""
    allowed = kinds(leaf.hint)
    try:
        if value is None and NoneType not in allowed:
            raise TypeError
        return parser.parse_object({leaf.name: _counts(value, allowed)}, defaults=False)[leaf.name]
    except (TypeError, ArgumentError):
        example = "" if leaf.default in (None, MISSING) else f", such as {show(leaf.default, where == '--')}"
        given = f"{where}{leaf.name}={show(value, where == '--')}"
        raise ValueError(f"{given} does not fit; give {words(leaf.hint)}{example}") from None


def _counts(value: Any, allowed: set[Any]) -> Any:
    """Whole numbers written as 2e5, where a count is due, as ints."""
    if isinstance(value, list):
        return [_counts(item, allowed) for item in value]
    whole = isinstance(value, float) and value.is_integer() and int in allowed and float not in allowed
    return int(value) if whole else value


def _from_text(text: str, hint: Any) -> Any:
    """The value of a flag: what the same text in the file would give, but texts need no quotes, lists no brackets."""
    options = alternatives(hint)
    if {str, Path} & set(options):
        try:
            value = read_value(text)
        except ValueError:
            return text
        return value if type(value) in options else text
    is_list = [get_origin(option) is tuple for option in options if option is not NoneType]
    brackets = not text.startswith("[") and ("," in text if not all(is_list) else any(is_list))
    try:
        return read_value(f"[{text}]" if brackets else text)
    except ValueError:
        if tuple[str, ...] in options:  # such as *.bias, which YAML takes for something else
            return text.split(",")
        raise


def show(value: Any, flag: bool) -> str:
    """A value as it is written in a flag, or in a file."""
    if isinstance(value, tuple | list):
        items = (",", ", ")[not flag].join(show(item, flag) for item in value)
        return items if flag and value else f"[{items}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
