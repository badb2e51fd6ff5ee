"""The command line of a training: one YAML file per run, every setting of which can also be given as a flag."""

import argparse
import functools
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from training.fields import build, plain
from training.schema import OWN, Schema, nearest
from training.yaml_file import listing, read_yaml

INTERRUPTED = 128 + signal.SIGINT
PATIENCE_S = 5.0
"""for how long the other processes leave it to the first to say what is wrong"""

RUN_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.,+=@-]*[A-Za-z0-9_,+=@-])?")


@dataclass(frozen=True)
class Command:
    """What a command line asks for."""

    run: Any
    """an instance of the run dataclass of its task"""
    folder: Path
    """where the run is kept"""
    fresh: bool
    dry_run: bool
    validate: bool
    resolved: dict[str, Any]
    """the settings of `run` in plain types, defaults included; written as YAML they give the same run again"""


def parse(runs: Mapping[str, type], argv: Sequence[str], default_config: Path | None = None) -> Command:
    """Reads the flags of the command itself (`OWN`) and those of the run, dotted, such as `--train.images 2e5`.

    `task`, and `model.preset` and `init` where the task has them, are read first, the rest as fields of the run
    dataclass `runs[task]` (see `Schema` for what that class may declare). `--help` prints the settings of the task and
    exits.

    Raises ValueError, in one line, for what cannot be read, is unknown, does not fit, or is refused by a dataclass.
    """
    own, flags = read_flags(argv)
    path = Path(own["config"]) if "config" in own else None if "help" in own else default_config
    if path is None and "help" not in own:
        raise ValueError(f"no config is given; add --config FILE{listing(Path('configs'))}")
    tree = read_yaml(path) if path else {}
    is_record = tree.pop("format_version", None) is not None  # the config.yaml of a run folder: continues that run

    task = tree["task"] = flags.pop("task", tree.get("task", next(iter(runs))))
    if task not in list(runs):
        raise ValueError(f"task={task!r} is unknown; {nearest(str(task), runs)}")
    folder = Path("runs", "help" if path is None else path.stem)
    folder = Path(own["run"]) if "run" in own else path.parent if is_record and path else folder
    schema = _schema(runs[task], tree, flags, {} if "fresh" in own else _record(folder))
    if "help" in own or path is None:
        if _rank() == 0:
            schema.parser().print_help()
        raise SystemExit(0)

    run = build(runs[task], schema.values(tree, flags, path))
    resolved = plain(run)
    for name in schema.derived:
        *parents, last = name.split(".")
        functools.reduce(dict.__getitem__, parents, resolved).pop(last)
    return Command(run, _checked_name(folder, path), "fresh" in own, "dry-run" in own, "validate" in own, resolved)


def command(main: Callable[[Sequence[str]], None]) -> Callable[..., None]:
    """Makes a script of `main`: a ValueError ends it with one line and exit code 2 (`python -X dev`: with its trace).

    So does an OSError about a file or folder that the user named: one that is in the way, or may not be written. Ctrl-C
    ends it without a trace, with exit code 130.

    Under several processes the first one speaks. The others keep the line back for some seconds, in which the
    launcher ends them if the first one failed as well; an error that only they have is printed then.
    """

    @functools.wraps(main)
    def script(argv: Sequence[str] | None = None) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files that the terminal cannot show
        try:
            main(sys.argv[1:] if argv is None else argv)
        except (ValueError, OSError) as error:
            if sys.flags.dev_mode or (isinstance(error, OSError) and error.filename is None):
                raise
            if isinstance(error, OSError):
                error = ValueError(f"{error.filename}: {error.strerror}")
            speaker = Path(sys.argv[0]).name
            if rank := _rank():
                time.sleep(PATIENCE_S)
                speaker += f" (process {rank})"
            print(f"{speaker}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None

    return script


class ScriptParser(argparse.ArgumentParser):
    """The parser of a script with a command line of its own, whose errors are ValueErrors for `command`."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def read_flags(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Splits a command line into the flags of the command itself and those of the run, each name -> text.

    Of a flag that is given twice the last counts, so that a script can end in "$@". Raises ValueError.
    """
    own: dict[str, str] = {}
    flags: dict[str, str] = {}
    words, last = list(argv), ""
    while words:
        word = "--help" if words[0] == "-h" else words[0]
        name, equals, text = word.removeprefix("--").partition("=")
        del words[0]
        if not word.startswith("--"):
            way_out = (
                f"write a list as one value: {last},{word}"
                if last and not word.startswith("-")
                else "every flag starts with --"
            )
            raise ValueError(f"{word!r} stands alone; {way_out}")
        if (name in OWN and OWN[name][0] is None) or name == "help":
            if equals:
                raise ValueError(f"--{name} takes no value; leave {equals}{text} out")
        elif not equals:
            if not words or words[0].startswith("--"):
                raise ValueError(f"--{name} has no value; write --{name} VALUE")
            text = words.pop(0)
        if name == "config" and name in own:
            raise ValueError(f"--config is given twice ({own[name]}, {text}); give one file and change it by flags")
        is_own = name in OWN or name == "help"
        (own if is_own else flags)[name] = text
        last = "" if is_own else f"--{name} {text}"
    return own, flags


def _schema(cls: type, tree: dict[str, Any], flags: Mapping[str, str], record: Mapping[str, Any]) -> Schema:
    """The schema, with the defaults of the preset or of the model that the run starts from.

    A run that is gone on with needs that model no longer: `record`, what its folder says, then stands in for it.
    """
    model = tree["model"] if isinstance(tree.get("model"), Mapping) else {}
    preset, init = flags.get("model.preset", model.get("preset")), flags.get("init", tree.get("init"))
    init = None if init == "null" else init
    try:
        return Schema(cls, preset, init)
    except ValueError:
        if preset is not None or init is None or record.get("init") != init:
            raise
    tree["model"] = dict(record["model"]) | model
    return Schema(cls)


def _record(folder: Path) -> Mapping[str, Any]:
    """The settings of the run in this folder, if there is one."""
    return read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}


def _checked_name(folder: Path, config: Path) -> Path:
    if not RUN_NAME.fullmatch(folder.name):
        name = re.sub(r"[^A-Za-z0-9_]+", "-", folder.name).strip("-") or config.stem
        raise ValueError(
            f"run folder {str(folder)!r} has a name that not every system can hold; "
            f"use letters, digits and inner _ . , + = @ -, such as --run {Path('runs', name)}"
        )
    return folder


def _rank() -> int:
    """The number of this process, as torchrun and accelerate's launcher tell it."""
    return int(os.environ.get("RANK", 0))
