"""The command line of a training run: one YAML file, every setting of which can also be given as a flag."""

import contextlib
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from residual.names import closest, require_known, shorten
from residual.weights.config import convert
from storage.secret import secret_in
from storage.write import expand_home
from training.flags import OWN, read_flags
from training.run import Run
from training.script import VERSION, ScriptParser, show_and_exit
from training.settings import Leaf, is_representable, kind_of, leaves, plain, sections, show
from training.yaml_file import flat, listing, read_settings, read_value

R = TypeVar("R", bound=Run)
RUN_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.,+=@-]*[A-Za-z0-9_,+=@-])?")
ABOUT = """Train a model. The same command resumes a run that was interrupted.

what people ask first:
  a recipe          --config configs/digits.yaml; each setting of the file can be changed by a flag
  my own images     --data.source FOLDER; --validate looks at every image first
  size of images    --data.size 64
  classes           subfolders of the folder, or --data.label_column NAME of a table
  where results go  --run FOLDER: log, checkpoints, samples, model, report.html
  how long          --train.images 200000, counted in images seen
  memory            --train.batch 64; --train.micro_batch 16 computes a batch in parts
  speed             --train.compile full, --train.precision bf16
  learning rate     --optimizer.learning_rate 1e-4
  saving, looking   --train.checkpoint_every_images 50000, --train.eval_every_images 50000
  several GPUs      torchrun --nproc_per_node 8 -- train.py ..., or accelerate launch train.py ...
  afterwards        python sample.py FOLDER --num 64; python evaluate.py FOLDER

A flag `--train.images 2e5` equals `images: 2e5` in section `train` of the YAML file, and has precedence over it. A list
is 1,2,2 in a flag and [1, 2, 2] in the file. null means none. Fields depend on the task and on the `kind` of a section:
--help shows those that are chosen, as with `--help --task classification --optimizer.kind sgd`, and the values that a
config, flags or `--init` give.

A flag that chooses a preset or another kind replaces what the file has in that section.
"""
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
    profile: bool
    resolved: dict[str, Any]
    """all settings in plain types, defaults included; written as YAML they give the same run again"""
    notes: tuple[str, ...] = ()
    """which config, preset or init the settings come from, and what of them is not used; to be printed"""


def parse(runs: Mapping[str, type[R]], argv: Sequence[str], default_config: Path | None = None) -> Command[R]:
    """Reads the flags of the command (`OWN`) and those of the run, and the YAML file.

    `task`, a key of `runs`, is read first; then `init` and the `kind` and `preset` of each section; then all values.
    Without `--config` the defaults of the task are used. If no setting is given either, they are those of the run in
    the folder `--run`, if there is one, or else those of `default_config`. `--help` prints the settings and exits,
    `--version` the version.

    Raises ValueError, in one line, for what cannot be read, is unknown, does not fit, or is refused by a dataclass.
    """
    own, flags = read_flags(argv)
    if "version" in own:
        show_and_exit(VERSION)
    if "print-completion" in own:
        settings_parser("train.py", all_settings(runs), OWN).print_completion(own["print-completion"])
    path, notes = _config_of(own, flags, default_config)
    file, version = read_settings(path) if path else ({}, None)
    task = str(flags.pop("task", file.pop("task", None) or next(iter(runs))))
    run_class = runs[require_known("task", task, runs)]
    default = path.parent if path and version else Path("runs", path.stem if path else task)
    # By default the config.yaml of a run folder continues that run.
    folder = expand_home("run", Path(own.get("run", default)))
    record = folder / "config.yaml"
    schema = Schema(run_class, file, flags, path, record if record.is_file() and "fresh" not in own else None)
    if "help" in own:
        show_and_exit(schema.help(task, list(runs)))
    if not RUN_NAME.fullmatch(folder.name):
        name = re.sub(r"[^A-Za-z0-9_]+", "-", folder.name).strip("-") or default.name
        raise ValueError(
            f"run folder {str(folder)!r} has a name that some systems cannot store; "
            f"use letters, digits and inner _ . , + = @ -, such as --run {Path('runs', name)}"
        )
    run = schema.build()
    resolved = {"task": task, **plain(run)}
    for section, _, name in (name.rpartition(".") for name in run_class.derived):
        resolved[section].pop(name, None)
    _require_no_secret(resolved)
    notes += schema.notes()
    fresh, dry_run, validate, profile = (name in own for name in ("fresh", "dry-run", "validate", "profile"))
    return Command(task, run, folder, fresh, dry_run, validate, profile, resolved, tuple(notes))


def _require_no_secret(resolved: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that contains a secret: settings are stored in the run folder and in trackers."""
    for name, value in flat(resolved):
        if what := secret_in(str(value)):
            raise ValueError(
                f"{name} contains {what}, and all settings are stored in the run folder; "
                "leave secrets to the environment, such as HF_TOKEN, which the libraries read themselves"
            )


def _config_of(
    own: Mapping[str, str], flags: Mapping[str, str], default_config: Path | None
) -> tuple[Path | None, list[str]]:
    """The file of the settings, if there is one, and a note if the user did not give it."""
    if "config" in own:
        return expand_home("config", Path(own["config"])), []
    if flags or "help" in own:
        return None, []
    if "run" in own and (record := expand_home("run", Path(own["run"])) / "config.yaml").is_file():
        return record, [f"settings: those of {record}"]
    if default_config is None:
        raise ValueError(f"no config is given; add --config FILE{listing(Path('configs'))}")
    return default_config, [f"settings: those of {default_config}, because none are given"]


class Schema(Generic[R]):
    """The settings that can be given for a run, with the `kind` and the `preset` of each section already chosen.

    `file` and `flags` are what is given, by dotted name. A flag that chooses a preset or another kind replaces what the
    file has in that section. `record` is the config.yaml of a run to resume, which no longer needs the model that it
    was initialised from.

    Raises ValueError for an unknown kind or preset, for two that contradict each other, and as `Run.init_config` does.
    """

    def __init__(
        self,
        run: type[R],
        file: Mapping[str, Any],
        flags: Mapping[str, str],
        path: Path | None = None,
        record: Path | None = None,
    ) -> None:
        self.run, self.file, self.flags, self.path, self.record = run, file, flags, path, record
        self.sections, self.classes = sections(run), dict[str, type]()
        self.bases, self.replaced = dict[str, str](), list[str]()
        top = leaves(run)
        found = [leaf for leaf in top if leaf.name not in self.sections]  # before the sections
        for leaf in top:
            found += self._section(leaf) if leaf.name in self.sections else []
        self.leaves = {leaf.name: leaf for leaf in found if leaf.name not in run.derived}

    def _section(self, leaf: Leaf) -> list[Leaf]:
        """Chooses kind and preset of a section, and lists its values."""
        name, metadata = leaf.name, self.sections[leaf.name].metadata
        table, pseudo = metadata.get("table"), list[Leaf]()
        presets = metadata["presets"]() if table else {}
        default = self._init_config(self._first("init")) if name == "model" else None
        if default is not None:
            self.bases[name] = f"init={self._first('init')}"
        self._replace_file(leaf, table or {}, presets, default or leaf.default)
        preset = self._first(f"{name}.preset") if presets else None
        if preset is not None:
            default = presets[require_known(f"{name}.preset", str(preset), presets)]
            self.bases[name] = f"{name}.preset={preset}"
        basis = leaf.default if default is None else default
        cls = leaf.hint if basis is MISSING else type(basis)
        if table:
            kind = str(self._first(f"{name}.kind") or kind_of(table, basis))
            cls = table[require_known(f"{name}.kind", kind, table)]
            if default is not None and type(default) is not cls:
                is_kind = kind_of(table, default)
                raise ValueError(
                    f"{name}.kind={kind} contradicts {self.bases[name]}, which is {is_kind}; leave one out"
                )
            meanings = " ".join(f"{key}: {_summary(each)}" for key, each in table.items())
            pseudo.append(Leaf(f"{name}.kind", Literal[tuple(table)], kind, f"{leaf.help} {meanings}".strip()))
        if presets:
            hint = Literal[(*presets, None)]  # type: ignore[valid-type]
            pseudo.append(Leaf(f"{name}.preset", hint, preset, "a published model; its values become the defaults"))
        self.classes[name] = cls
        return pseudo + leaves(cls, name, basis if type(basis) is cls else None)

    def _replace_file(self, leaf: Leaf, table: Mapping[str, type], presets: Mapping[str, Any], basis: Any) -> None:
        """Leaves out what the file has in a section, if a flag chooses another basis for its values."""
        name, given = leaf.name, self.flags
        of_file = [each for each in self.file if each.startswith(f"{name}.")]
        kind, preset = self.file.get(f"{name}.kind"), self.file.get(f"{name}.preset")
        if table and kind is None:
            kind = kind_of(table, presets.get(preset, basis) if isinstance(preset, str) else basis)
        is_basis = f"{name}.preset" in given and (preset is not None or given[f"{name}.preset"] != "null")
        chosen = [f"{name}.preset"] if presets and is_basis else []
        chosen += [f"{name}.kind"] if given.get(f"{name}.kind", kind) != kind else []
        if chosen and of_file:
            self.file = {each: value for each, value in self.file.items() if each not in of_file}
            what = f"--{chosen[0]} {given[chosen[0]]} replaces the section {name} of {self.path}"
            self.replaced.append(f"{what}: not used are {', '.join(of_file)}")

    def _first(self, name: str) -> Any:
        """A value that others depend on."""
        value = self.flags.get(name, self.file.get(name))
        return None if value == "null" else value

    def _init_config(self, init: Any) -> Any:
        try:
            return self.run.init_config(init) if isinstance(init, str) else None
        except ValueError:
            record = read_settings(self.record)[0] if self.record else {}
            if record.get("init") != init:
                raise
            self.file = {name: value for name, value in record.items() if name.startswith("model.")} | dict(self.file)
            return None

    def build(self) -> R:
        """The run. Raises ValueError as `values` does, and if a dataclass refuses its values."""
        values = self.values()
        return _make(self.run, "", values | {name: _make(cls, name, values) for name, cls in self.classes.items()})

    def notes(self) -> list[str]:
        """What of the file is not used; and for each section with a preset, or with the values of `init`, which one,
        and which values differ from it."""
        lines, values = list(self.replaced), self.values()
        for section, basis in self.bases.items():
            differ = [
                f"{name}={show(values[name], True)} instead of {show(leaf.default, True)}"
                for name, leaf in self.leaves.items()
                if name.startswith(f"{section}.") and values[name] != leaf.default
            ]
            lines.append(" with ".join([basis, *([", ".join(differ)] if differ else [])]))
        return lines

    def values(self) -> dict[str, Any]:
        """The value of every field, by dotted name: from the flags, else from the file, else the default.

        Raises ValueError for an unknown name, a value of the wrong type, and one that is missing.
        """
        values = {name: leaf.default for name, leaf in self.leaves.items()}
        for where, given in ((f"{self.path}: ", self.file), ("--", self.flags)):
            for name, value in given.items():
                if name in self.sections and (value is None or value == {}):
                    continue  # an empty section in the file
                if name not in self.leaves:
                    raise ValueError(f"{where}{name}{self._unknown(name, value, '--' if where == '--' else '')}")
                values[name] = _converted(self.leaves[name], value, where)
        if missing := next((name for name, value in values.items() if value is MISSING), None):
            raise ValueError(f"{missing} is missing; give it in {self.path or 'a config'} or as --{missing} VALUE")
        return values

    def _unknown(self, name: str, value: Any, dashes: str) -> str:
        """Why a name cannot be set, and the closest names: in its section, with the same last part, or anywhere."""
        section, _, last = name.rpartition(".")
        if name in self.run.derived:
            return f" may not be set: {self.run.derived[name]}"
        names = [*self.leaves, *(OWN if dashes else self.sections)]
        beside = {other.rpartition(".")[2]: other for other in names if other.rpartition(".")[0] == section}
        if name in self.sections:
            example = next(other for other in names if other.startswith(f"{name}."))
            return f"={value} is a section; set its fields, such as {dashes}{example}"
        if section in self.sections:
            for kind, cls in self.sections[section].metadata.get("table", {}).items():
                if last in (each.name for each in fields(cls)):
                    return f" is unknown; it needs {dashes}{section}.kind={kind}"
        near = [beside[other] for other in closest(last, beside, 2)]
        near += [other for other in names if other.rpartition(".")[2] == last]
        if not near and section in self.sections:
            return f" is unknown; the section {section} has {shorten(list(beside), 30)}"
        near = near or closest(name, names, 2)
        way_out = f"did you mean {' or '.join(dashes + other for other in near[:3])}?"
        return f" is unknown; {way_out if near else '--help lists them'}"

    def help(self, task: str, tasks: Sequence[str]) -> str:
        """The text of `--help`: every flag with its type, default and meaning, and the value that is given."""
        lines = [f"usage: {Path(sys.argv[0]).name} [--config FILE] [--SECTION.FIELD VALUE ...]", "", ABOUT, "command:"]
        for name, (metavar, text) in OWN.items():
            lines += [f"  --{name}{f' {metavar}' if metavar else ''}", _filled(text, 6)]
        about = f"what is trained; --help --task {'|'.join(tasks)} lists its settings"
        return "\n".join(
            [*lines, "", "run:", *self._help(Leaf("task", Literal[tuple(tasks)], task, about)), *self.fields()]
        )

    def fields(self, *prefixes: str) -> list[str]:
        """The lines of a help text: the settings whose names start with one of `prefixes`, or all if none is given."""
        lines, section = list[str](), ""
        for leaf in self.leaves.values():
            if not leaf.name.startswith(prefixes or ""):
                continue
            if (parent := leaf.name.rpartition(".")[0]) != section:
                section, about = parent, _summary(self.classes[parent])
                lines += ["", f"{section}:", *([_filled(about, 2), ""] if about else [])]
            lines += self._help(leaf)
        return lines

    def _help(self, leaf: Leaf) -> list[str]:
        default = "required" if leaf.default is MISSING else f"default: {show(leaf.default, flag=True)}"
        is_own = leaf.name.endswith((".kind", ".preset"))  # their default is what is chosen
        given = None if is_own else self.flags.get(leaf.name, self.file.get(leaf.name))
        now = "" if given is None else f"{show(given, flag=True)}; "
        return [f"  --{leaf.name} {words(leaf.hint)}  ({now}{default})", _filled(leaf.help, 6)]


def all_settings(runs: Mapping[str, type[R]]) -> dict[str, list[Leaf]]:
    """The settings of all tasks and of every kind of a section, by dotted name; each as all of these have it."""
    found = {"task": [Leaf("task", Literal[tuple(runs)], MISSING, "what is trained")]}
    for run in runs.values():
        tables = {name: section.metadata.get("table", ()) for name, section in sections(run).items()}
        chosen = [{f"{name}.kind": kind} for name, table in tables.items() for kind in table]
        for flags in ({}, *chosen):
            for name, leaf in Schema(run, {}, flags).leaves.items():
                found.setdefault(name, []).append(leaf)
    return found


def settings_parser(
    script: str, settings: Mapping[str, Sequence[Leaf]], own: Mapping[str, tuple[str | None, str]]
) -> ScriptParser:
    """The flags of a script that reads settings, and its `own` ones, with their choices, for completion in a shell."""
    p = ScriptParser(prog=script)
    for name, (metavar, text) in own.items():
        if name not in ("help", "version", "print-completion"):  # which every parser has
            options: dict[str, Any] = {"action": "store_true"} if metavar is None else {"metavar": metavar}
            p.add_argument(f"--{name}", help=text, **options)
    for name, same in settings.items():
        found = dict.fromkeys(word for leaf in same for word in words(leaf.hint).split("|"))
        choices = [word for word in found if re.fullmatch(r"[a-z0-9_.-]+", word)]
        p.add_argument(f"--{name}", choices=choices or None, help=same[0].help.replace("%", "%%"))
    return p


def words(hint: Any) -> str:
    """A type as it is written in a flag: `INT`, `INT,INT`, `linear|cosine`, `NUMBER|null`, `INT[,...]`,
    `TEXT|[INT,...]`."""
    if get_origin(hint) is tuple:
        return ",".join("..." if item is ... else words(item) for item in get_args(hint))
    if get_origin(hint) is Literal:
        return "|".join(show(choice, flag=True) for choice in get_args(hint))
    if not (options := get_args(hint)):
        return WORDS.get(hint, str(hint))
    if str in options:  # a text may have commas, so a list needs its brackets
        return "|".join(f"[{words(each)}]" if get_origin(each) is tuple else words(each) for each in options)
    several = [tuple[option, ...] for option in options if tuple[option, ...] in options]  # type: ignore[valid-type]
    left = [option for option in options if option not in several and (option is not int or float not in options)]
    return "|".join(words(each) + ("[,...]" if tuple[each, ...] in several else "") for each in left)  # type: ignore[valid-type]


def _converted(leaf: Leaf, value: Any, where: str) -> Any:
    """The value as the type of its field. A flag is read as in a file, but texts need no quotes, lists no brackets."""
    is_flag, problem = where == "--", "does not fit"
    as_text = [lambda: read_value(value), lambda: read_value(f"[{value}]"), lambda: value.split(",")]
    for reading in [*(as_text if is_flag else []), lambda: value]:
        with contextlib.suppress(TypeError, ValueError):
            if is_representable(converted := convert(reading(), leaf.hint)):
                return converted
            problem = "is not finite or too large"
    example = "" if leaf.default in (None, MISSING) else f", such as {show(leaf.default, is_flag)}"
    raise ValueError(f"{where}{leaf.name}={show(value, is_flag)} {problem}; give {words(leaf.hint)}{example}")


def _make(cls: type, section: str, values: Mapping[str, Any]) -> Any:
    """A dataclass from values by dotted name. Its ValueError names the section."""
    prefix = f"{section}." if section else ""
    names = [each.name for each in fields(cls)]
    try:
        return cls(**{name: values[prefix + name] for name in names if prefix + name in values})
    except ValueError as error:
        if not section or str(error).startswith((prefix, f"{section}:")):
            raise
        is_dotted = str(error).partition("=")[0] in names
        raise ValueError(f"{section}{'.' if is_dotted else ': '}{error}") from error


def _summary(cls: type) -> str:
    """The first paragraph of a dataclass's docstring, without what it raises; nothing if it has none of its own."""
    text = (cls.__doc__ or "").partition("\n\n")[0].partition("Raises ")[0]
    return "" if text.startswith(f"{cls.__name__}(") else " ".join(text.split())  # `dataclass` generates such a text


def _filled(text: str, indent: int) -> str:
    width, margin = shutil.get_terminal_size().columns - 2, " " * indent
    return textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin)
