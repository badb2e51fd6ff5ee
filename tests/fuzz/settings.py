"""Inputs of the command line: YAML files and flags."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from storage.read import read_json, read_text
from tasks import RUNS
from tests.fuzz.boundary import Case, Kind
from tests.fuzz.mutate import TEXTS, damaged_bytes, damaged_json, deep, json_bytes, odd_entries, odd_values
from training.cli import parse
from training.yaml_file import read_settings, write_yaml

RECIPES = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))
INSERTED = (
    "&a [*a]",
    "*a",
    "&a",
    "!!int ''",
    "!!binary x",
    "!!python/object/apply:os.system [id]",
    "!!set {a}",
    "!x",
    "---",
    "...",
    "\t",
    "{",
    "}",
    "[",
    "- ",
    "? ",
    ": ",
    "<<: x",
    "017",
    "0x1F",
    "1:30",
    "1_0",
    "9" * 4000,
    "1e99999",
    ".inf",
    ".nan",
    "2026-11-27",
    "yes",
    "~",
    "''",
    "'",
    '"\\ud800"',
    '"\\0"',
    "%YAML 9.9",
    "[" * 2000,
    "{a: " * 200,
    "\x1b[2J",
    "\ufeff",
    "\u2028",
    "\x00",
    "|\n",
    "#",
    "@",
    "`",
)


@st.composite
def texts(draw: DrawFn) -> bytes:
    """A recipe with changed values, lines, or bytes."""
    text = draw(st.sampled_from(RECIPES)).read_bytes()
    match draw(st.sampled_from(("values", "values", "lines", "lines", "bytes"))):
        case "bytes":
            return draw(damaged_bytes(text))
        case "values":
            tree = draw(damaged_json(yaml.safe_load(text)))
            try:
                return (write_yaml(tree) if isinstance(tree, dict) else yaml.safe_dump(tree)).encode("utf-8", "replace")
            except yaml.YAMLError:  # what YAML cannot express
                return repr(tree).encode("utf-8", "replace")
    lines = text.decode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place, new = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(INSERTED))
        key = lines[place].partition(":")[0]
        lines[place] = draw(
            st.sampled_from((new, f"{key}: {new}", f"{lines[place]} {new}", f"{lines[place]}\n{key}: 1"))
        )
    return "\n".join(lines).encode()


@st.composite
def files(draw: DrawFn) -> Case:
    """A file of settings, or what is in its place."""
    content = draw(st.one_of(texts(), texts(), texts(), texts(), odd_entries()))
    return Case({"run.yaml": content}, {"record": draw(st.booleans())})


def use_file(folder: Path, options: Mapping[str, Any]) -> None:
    """Reads the settings, as a record of a run or as a recipe, and parses a command line with them."""
    path = folder / "run.yaml"
    parsed = parse(RUNS, ["--config", str(path), "--run", str(folder / "run")])
    settings, _ = read_settings(path, is_record=False)
    assert all(isinstance(name, str) for name in settings)
    (folder.parent / "scratch" / "again.yaml").write_text(write_yaml(parsed.resolved))
    again = parse(RUNS, ["--config", str(folder.parent / "scratch" / "again.yaml"), "--run", str(folder / "run")])
    assert again.resolved == parsed.resolved
    if options["record"]:
        read_settings(path, is_record=True)


FLAGS = (
    "--data.source",
    "--data.size",
    "--data.range",
    "--data.background",
    "--data.cache",
    "--model.preset",
    "--model.kind",
    "--model.channel_multipliers",
    "--model.heads",
    "--model.size",
    "--objective.kind",
    "--objective.timesteps",
    "--train.images",
    "--train.batch",
    "--train.seed",
    "--optimizer.kind",
    "--optimizer.learning_rate",
    "--sample.num",
    "--task",
    "--init",
    "--freeze",
    "--config",
    "--run",
    "--fresh",
    "--dry-run",
    "--validate",
    "--no.such",
    "--",
    "-x",
    "--=",
    "--model",
    "--train.updates",
)
VALUES = (
    *TEXTS,
    "1",
    "0",
    "-1",
    "1e3",
    "1,2,2",
    "[1, [2]]",
    "true",
    ".inf",
    "9" * 5000,
    "classification",
    "diffusion",
    "sgd",
)


def use_flags(folder: Path, options: Mapping[str, Any]) -> None:
    """Parses a command line."""
    parsed = parse(RUNS, options["argv"], RECIPES[0])
    assert parsed.task in RUNS


@st.composite
def flags(draw: DrawFn) -> Case:
    """A command line of a few words."""
    argv: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        name, value = draw(st.sampled_from(FLAGS)), draw(st.one_of(st.sampled_from(VALUES), st.text(max_size=8)))
        argv += draw(st.sampled_from(([name, value], [name, value], [f"{name}={value}"], [name], [value])))
    return Case({}, {"argv": argv})


def use_json(folder: Path, options: Mapping[str, Any]) -> None:
    """Reads a text and a JSON object."""
    assert isinstance(read_text(folder / "file.json"), str)
    assert isinstance(read_json(folder / "file.json"), dict)


def json_files() -> SearchStrategy[Case]:
    """A JSON file, or what is in its place."""
    document = {"a": {"b": [1, 2.5, "x", None]}, "c": deep(5)}
    other = odd_values().map(lambda value: repr(value).encode("utf-8", "replace"))
    return st.one_of(json_bytes(document), other, odd_entries()).map(lambda content: Case({"file.json": content}))


def kinds() -> dict[str, Callable[[], Kind]]:
    """Makes the kinds of this file, by name."""
    return {
        "settings": lambda: Kind(files(), use_file, 40),
        "flags": lambda: Kind(flags(), use_flags, 50),
        "json": lambda: Kind(json_files(), use_json, 100),
    }
