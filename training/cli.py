"""The command line of a training run: one YAML file, every setting of which can also be given as a flag."""

import re
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from residual.names import closest, require_known, shorten
from residual.weights.config import convert
from training.run import FORMAT_VERSION, Run
from training.script import rank
from training.settings import Leaf, flat, given_fields, kind_of, leaves, plain, sections
from training.yaml_file import listing, read_value, read_yaml

R = TypeVar("R", bound=Run)
RUN_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.,+=@-]*[A-Za-z0-9_,+=@-])?")
ABOUT = """Train a model. The same command resumes a run that was interrupted.

A flag `--train.images 2e5` equals `images: 2e5` in section `train` of the YAML file, and has precedence over it. A list
is 1,2,2 in a flag and [1, 2, 2] in the file. null means none. Fields depend on the `kind` of a section: --help shows
those of the kinds that are chosen, as with `--help --optimizer.kind sgd`.
"""
OWN = {
    "help": (None, "show this text and exit"),
    "config": ("FILE", "the run, as a YAML file"),
    "run": ("FOLDER", "its log, checkpoints, samples and model (default: runs/NAME for a config NAME.yaml)"),
    "fresh": (None, "start over; the existing contents of the run folder are moved aside"),
    "dry-run": (None, "show the settings, the size of the model, memory and learning rates, and exit"),
    "validate": (None, "check every image of the data set, report errors and statistics, and exit"),
}
WORDS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", bool: "true|false", types.NoneType: "null"}


@dataclass(frozen=True)
class Command(Generic[R]):
    """A parsed command line."""

    task: str
    run: R
    folder: Path
    """the run folder"""
    fresh: bool
    dry_run: bool
    validate: bool
    resolved: dict[str, Any]
    """all settings in plain types, defaults included; written as YAML they give the same run again"""


def parse(runs: Mapping[str, type[R]], argv: Sequence[str], default_config: Path | None = None) -> Command[R]:
    """Reads the flags of the command (`OWN`) and those of the run, and the YAML file.

    `task`, a key of `runs`, is read first; then `init` and the `kind` and `preset` of each section; then all values.
    `--help` prints the settings and exits.

    Raises ValueError, in one line, for what cannot be read, is unknown, does not fit, or is refused by a dataclass.
    """
    own, flags = read_flags(argv)
    path = Path(own["config"]) if "config" in own else None if "help" in own else default_config
    if path is None and "help" not in own:
        raise ValueError(f"no config is given; add --config FILE{listing(Path('configs'))}")
    file, version = _read(path) if path else ({}, None)

    task = str(flags.pop("task", file.pop("task", next(iter(runs)))))
    run_class = runs[require_known("task", task, runs)]
    folder = Path(own["run"]) if "run" in own else Path("runs", path.stem if path else "help")
    if version is not None and path and "run" not in own:
        folder = path.parent  # the config.yaml of a run folder continues that run
    try:
        schema = Schema(run_class, file, flags, path)
    except ValueError:
        # a run that is resumed no longer needs the model that it was initialised from
        record, _ = _read(folder / "config.yaml") if (folder / "config.yaml").is_file() else ({}, None)
        if "fresh" in own or "init" not in record or record["init"] != flags.get("init", file.get("init")):
            raise
        stored = {name: value for name, value in record.items() if name.startswith("model.")}
        schema = Schema(run_class, stored | file, flags, path, use_init=False)
    if "help" in own or path is None:
        if rank() == 0:
            print(schema.help(task, list(runs)))
        raise SystemExit(0)

    run = schema.build()
    resolved = {"task": task, **plain(run)}
    for section, _, name in (name.rpartition(".") for name in run_class.derived):
        resolved[section].pop(name, None)
    return Command(task, run, _checked(folder, path), "fresh" in own, "dry-run" in own, "validate" in own, resolved)


def read_flags(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Splits a command line into the flags of the command and those of the run, each name -> text.

    The last of several equal flags counts, so that a script may end in "$@". Raises ValueError.
    """
    own: dict[str, str] = {}
    flags: dict[str, str] = {}
    words, last = list(argv), ""
    while words:
        word = words.pop(0).replace("-h", "--help", 1) if words[0] == "-h" else words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            is_item = last and not word.startswith("-")
            way_out = f"write a list as one value: {last},{word}" if is_item else "every flag starts with --"
            raise ValueError(f"{word!r} is not a flag; {way_out}")
        if name in OWN and OWN[name][0] is None:
            if equals:
                raise ValueError(f"--{name} takes no value; leave {equals}{text} out")
        elif not equals:
            if not words or words[0].startswith("--"):
                raise ValueError(f"--{name} has no value; write --{name} VALUE")
            text = words.pop(0)
        if name == "config" and name in own:
            raise ValueError(f"--config is given twice ({own[name]}, {text}); give one file and change it by flags")
        (own if name in OWN else flags)[name] = text
        last = "" if name in OWN else f"--{name} {text}"
    return own, flags


class Schema(Generic[R]):
    """The settings that can be given for a run, with the `kind` and the `preset` of each section already chosen.

    `file` and `flags` are what is given, by dotted name. Raises ValueError for an unknown kind or preset, for two that
    contradict each other, and as `Run.init_config` does.
    """

    def __init__(
        self,
        run: type[R],
        file: Mapping[str, Any],
        flags: Mapping[str, str],
        path: Path | None = None,
        use_init: bool = True,
    ) -> None:
        self.run, self.file, self.flags, self.path, self.use_init = run, file, flags, path, use_init
        self.sections = sections(run)
        self.classes: dict[str, type] = {}
        top = {leaf.name: leaf for leaf in leaves(run)}
        found = [leaf for name, leaf in top.items() if name not in self.sections]
        for name, declared in self.sections.items():
            found += self._section(declared, top[name])
        self.leaves = {leaf.name: leaf for leaf in found if leaf.name not in run.derived}

    def _section(self, declared: Field, leaf: Leaf) -> list[Leaf]:
        """Chooses kind and preset of a section, and lists its values."""
        name, table = leaf.name, declared.metadata.get("table")
        presets: Mapping[str, Any] = (declared.metadata.get("presets") or dict)()
        preset, init = self._first(f"{name}.preset"), self._first("init") if self.use_init and name == "model" else None
        default, source = None, ""
        if preset is not None and presets:
            default, source = presets[require_known(f"{name}.preset", str(preset), presets)], f"{name}.preset={preset}"
        elif isinstance(init, str):
            default, source = self.run.init_config(init), f"init={init}"
        basis = leaf.default if default is None else default
        cls = leaf.hint if basis is MISSING else type(basis)
        pseudo: list[Leaf] = []
        if table:
            kind = self._first(f"{name}.kind") or kind_of(table, basis)
            cls = table[require_known(f"{name}.kind", str(kind), table)]
            if default is not None and type(default) is not cls:
                raise ValueError(
                    f"{name}.kind={kind} contradicts {source}, which is {kind_of(table, default)}; leave one out"
                )
            help_text = "\n\n".join([leaf.help, *(f"{key}: {_summary(each)}" for key, each in table.items())])
            pseudo.append(Leaf(f"{name}.kind", Literal[tuple(table)], kind, help_text.strip()))
        if presets:
            hint = Literal[(*presets, None)]  # type: ignore[valid-type]
            pseudo.append(Leaf(f"{name}.preset", hint, preset, "a published model; its values become the defaults"))
        self.classes[name] = cls
        return pseudo + leaves(cls, name, basis if type(basis) is cls else None)

    def _first(self, name: str) -> Any:
        """A value that the others depend on."""
        value = self.flags.get(name, self.file.get(name))
        return None if value == "null" else value

    def build(self) -> R:
        """The run. Raises ValueError as `values` does, and if a dataclass refuses its values."""
        values = self.values()
        return _make(self.run, "", values | {name: _make(cls, name, values) for name, cls in self.classes.items()})

    def values(self) -> dict[str, Any]:
        """The value of every field, by dotted name: from the flags, else from the file, else the default.

        Raises ValueError for an unknown name, a value of the wrong type, and one that is missing.
        """
        values = {name: leaf.default for name, leaf in self.leaves.items()}
        for where, given in ((f"{self.path}: ", self.file), ("--", self.flags)):
            for name, value in given.items():
                if value is not None or name not in self.sections:  # an empty section in the file is None
                    leaf = self._leaf(name, value, where)
                    values[name] = _converted(leaf, value, where)
        if missing := next((name for name, value in values.items() if value is MISSING), None):
            raise ValueError(f"{missing} is missing; give it in {self.path or 'a config'} or as --{missing}")
        return values

    def _leaf(self, name: str, value: Any, where: str) -> Leaf:
        """The field of this name. Raises ValueError with the closest names, or the reason why it cannot be set."""
        if name in self.leaves:
            return self.leaves[name]
        if name in self.run.derived:
            raise ValueError(f"{where}{name} may not be set: {self.run.derived[name]}")
        dashes = "--" if where == "--" else ""
        if name in self.sections:
            example = next(leaf for leaf in self.leaves if leaf.startswith(f"{name}."))
            raise ValueError(f"{where}{name}={value} is a section; set its fields, such as {dashes}{example}")
        section, _, last = name.rpartition(".")
        table: Mapping[str, type] = (
            self.sections[section].metadata.get("table") or {} if section in self.sections else {}
        )
        for kind, cls in table.items():
            if last in (each.name for each in given_fields(cls)):
                raise ValueError(f"{where}{name} is unknown; it needs {dashes}{section}.kind={kind}")
        raise ValueError(f"{where}{name} is unknown; {self._way_out(name, dashes)}")

    def _way_out(self, name: str, dashes: str) -> str:
        """The closest names: in the same section, with the same last part, or anywhere."""
        section, _, last = name.rpartition(".")
        names = [*self.leaves, *(OWN if dashes else self.sections)]
        beside = {other.rpartition(".")[2]: other for other in names if other.rpartition(".")[0] == section}
        near = [beside[other] for other in closest(last, beside, 2)]
        near += [other for other in names if other.rpartition(".")[2] == last]
        if not near and section in self.sections:
            return f"the section {section} has {shorten(list(beside), 30)}"
        near = near or closest(name, names, 2)
        return f"did you mean {' or '.join(dashes + other for other in near[:3])}?" if near else "--help lists them"

    def help(self, task: str, tasks: Sequence[str]) -> str:
        """The text of `--help`: every flag with its type, default and meaning."""
        lines = [f"usage: {Path(sys.argv[0]).name} [--config FILE] [--SECTION.FIELD VALUE ...]", "", ABOUT, "command:"]
        for name, (metavar, text) in OWN.items():
            lines += [f"  --{name}{f' {metavar}' if metavar else ''}", _filled(text, 6)]
        lines += ["", "run:"]
        section = ""
        for leaf in [Leaf("task", Literal[tuple(tasks)], task, "what is trained"), *self.leaves.values()]:
            if (parent := leaf.name.rpartition(".")[0]) != section:
                section, about = parent, _summary(self.classes[parent])
                lines += ["", f"{section}:", *([_filled(about, 2), ""] if about else [])]
            default = "required" if leaf.default is MISSING else f"default: {show(leaf.default, flag=True)}"
            lines += [f"  --{leaf.name} {words(leaf.hint)}  ({default})", _filled(leaf.help, 6)]
        return "\n".join(lines)


def words(hint: Any) -> str:
    """A type as it is written in a flag: `INT`, `INT,INT`, `linear|cosine`, `NUMBER|null`; `INT[,...]`: one or more."""
    if get_origin(hint) is Literal:
        return "|".join("null" if choice is None else str(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return ",".join("..." if item is ... else words(item) for item in get_args(hint))
    options = _options(hint)
    if len(options) == 1:
        return WORDS.get(hint, str(hint))
    texts = []
    for option in options:
        item, *rest = get_args(option) or (None,)
        if (rest == [...] and item in options) or (option is int and float in options):
            continue  # covered by the brackets below, or by NUMBER
        texts.append(words(option) + ("[,...]" if tuple[option, ...] in options else ""))  # type: ignore[valid-type]
    return "|".join(texts)


def show(value: Any, flag: bool) -> str:
    """A value as it is written in a flag, or in a file."""
    if isinstance(value, tuple | list):
        items = (",", ", ")[not flag].join(show(item, flag) for item in value)
        return items if flag and value else f"[{items}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _read(path: Path) -> tuple[dict[str, Any], int | None]:
    """The settings in a file, by dotted name, and its format version if it is the config.yaml of a run folder."""
    tree = read_yaml(path)
    version = tree.pop("format_version", None)
    if version not in (None, FORMAT_VERSION):
        raise ValueError(
            f"{path} has format_version {version}, this version reads {FORMAT_VERSION}; use the version that wrote it, "
            "or start over with a config of your own"
        )
    try:
        return dict(flat(tree)), version
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _converted(leaf: Leaf, value: Any, where: str) -> Any:
    """The value as the type of its field; of a flag, from its text. Raises ValueError."""
    try:
        return convert(_from_text(value, leaf.hint) if where == "--" else value, leaf.hint)
    except TypeError:
        example = "" if leaf.default in (None, MISSING) else f", such as {show(leaf.default, where == '--')}"
        given = f"{where}{leaf.name}={show(value, where == '--')}"
        raise ValueError(f"{given} does not fit; give {words(leaf.hint)}{example}") from None


def _from_text(text: str, hint: Any) -> Any:
    """The value of a flag: that of the same text in the file, but texts need no quotes and lists no brackets."""
    options = _options(hint)
    if {str, Path} & set(options):
        try:
            value = read_value(text)
        except ValueError:
            return text
        return value if type(value) in options else text
    is_list = [get_origin(option) is tuple for option in options if option is not types.NoneType]
    brackets = not text.startswith("[") and ("," in text if not all(is_list) else any(is_list))
    try:
        return read_value(f"[{text}]" if brackets else text)
    except ValueError:
        if tuple[str, ...] in options:  # such as *.bias, which has another meaning in YAML
            return text.split(",")
        raise


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is no union, alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _make(cls: type, section: str, values: Mapping[str, Any]) -> Any:
    """A dataclass from values by dotted name. Its ValueError names the section."""
    prefix = f"{section}." if section else ""
    names = [each.name for each in given_fields(cls)]
    try:
        return cls(**{name: values[prefix + name] for name in names if prefix + name in values})
    except ValueError as error:
        if not section or str(error).startswith((prefix, f"{section}:")):
            raise
        is_dotted = str(error).partition("=")[0] in names
        raise ValueError(f"{section}{'.' if is_dotted else ': '}{error}") from error


def _summary(cls: type) -> str:
    """The first paragraph of a dataclass's docstring, without what it raises; nothing if it has none of its own."""
    text = cls.__doc__ or ""
    own = not text.startswith(f"{cls.__name__}(")  # the docstring that `dataclass` generates
    return text.strip().partition("\n\n")[0].partition("Raises ")[0] if own else ""


def _filled(text: str, indent: int) -> str:
    width = shutil.get_terminal_size().columns - 2
    lines = (
        textwrap.fill(line, width, initial_indent=" " * indent, subsequent_indent=" " * indent)
        for line in text.split("\n\n")
    )
    return "\n".join(lines)


def _checked(folder: Path, config: Path) -> Path:
    if not RUN_NAME.fullmatch(folder.name):
        name = re.sub(r"[^A-Za-z0-9_]+", "-", folder.name).strip("-") or config.stem
        raise ValueError(
            f"run folder {str(folder)!r} has a name that some systems cannot store; "
            f"use letters, digits and inner _ . , + = @ -, such as --run {Path('runs', name)}"
        )
    return folder
