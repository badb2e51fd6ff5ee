"""The command line: what it reads, what it refuses and in which words, and what `--help` shows."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import residual
from training import script
from training.cli import Command, Schema, parse, words
from training.data import ImageSet
from training.ema import EmaConfig
from training.optimizer import OPTIMIZERS, SGD, AdamW
from training.run import Run
from training.schedule import SCHEDULES, Constant
from training.script import command
from training.settings import changeable, field_texts, plain, setting, variants
from training.task import Task
from training.yaml_file import FORMAT_VERSION, read_value, read_yaml, write_yaml

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the images come from. Raises ValueError for what cannot be."""

    source: str = "digits"
    """a folder or a name"""
    size: tuple[int, int] | int | None = None
    cache: Path | None = None
    flip: bool = False
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shape of the model."""

    channels: int = 128
    """width, of which 100% is used"""
    in_channels: int = 3
    multipliers: tuple[int, ...] = (1, 2, 2)
    heads: int | tuple[int, ...] = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.channels % 4:
            raise ValueError(f"channels={self.channels} is not a multiple of 4; give 128")


@dataclass(frozen=True, kw_only=True)
class Wide:
    """A model of another shape."""

    width: int = 2
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Train:
    images: int = setting(1000, may_change=True)
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images={self.images} is out of range; give at least 1")


PRESETS = {
    "small": Model(channels=8, in_channels=1),
    "large": Model(channels=512, dropout=0.1),
    "wide": Wide(width=9),
}
MODELS: dict[str, type] = {"model": Model, "wide": Wide}


class Buildable(Run[Task]):
    """A run without a model, which a command line does not need."""

    def build(self, images: ImageSet) -> Task:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Toy(Buildable):
    data: Data = field(default_factory=Data)  # type: ignore[assignment]
    model: object = variants(MODELS, default="model", presets=lambda: PRESETS)
    """which model"""
    train: Train = field(default_factory=Train)  # type: ignore[assignment]
    derived: ClassVar[dict[str, str]] = {"model.in_channels": "it follows from the images; see data.source"}

    @classmethod
    def init_config(cls, init: str) -> object:
        if init not in PRESETS:
            raise ValueError(f"init={init}: there is no such model")
        return PRESETS[init]


@dataclass(frozen=True, kw_only=True)
class Plain(Buildable):
    """A task without presets, with a setting that nobody can guess."""

    goal: str


RUNS: dict[str, type[Run]] = {"toy": Toy, "plain": Plain}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


def read(text: str, *flags: str) -> Command:
    Path("some.yaml").write_text(text, encoding="utf-8")
    return parse(RUNS, ["--config", "some.yaml", *flags])


# --- what it reads ---------------------------------------------------------------------------------------------------


def test_flags_win_over_the_file_and_the_file_over_the_defaults():
    run = read("model: {channels: 32, dropout: 0.5}", "--model.channels", "16").run
    assert run == Toy(model=Model(channels=16, dropout=0.5))


def test_the_defaults_of_a_section_are_those_of_the_run():
    assert read("task: toy").run.model.channels == 128


def test_task_picks_the_dataclass():
    assert read("{task: plain, goal: x}").run == Plain(goal="x")
    assert read("goal: x", "--task=plain").run == Plain(goal="x")


@pytest.mark.parametrize("by_flag", [False, True])
def test_a_preset_gives_the_defaults_of_the_model_but_not_the_derived_fields(by_flag: bool):
    flags = ["--model.preset", "large", "--model.multipliers", "3"] if by_flag else []
    parsed = read(f"model: {{channels: 16{'' if by_flag else ', preset: large, multipliers: [3]'}}}", *flags)
    assert parsed.run.model == Model(channels=512 if by_flag else 16, dropout=0.1, multipliers=(3,))
    assert read("model: {preset: small}").run.model.in_channels == Model().in_channels
    assert "preset" not in parsed.resolved["model"]


@pytest.mark.parametrize(
    "given", [("model: {kind: wide, width: 5}",), ("task: toy", "--model.kind", "wide", "--model.width=5")]
)
def test_the_kind_chooses_the_dataclass_of_a_section(given: tuple[str, ...]):
    parsed = read(*given)
    assert parsed.run.model == Wide(width=5)
    assert parsed.resolved["model"] == {"kind": "wide", "width": 5, "dropout": 0.0}


def test_a_preset_chooses_the_kind():
    assert read("model: {preset: wide, dropout: 0.5}").run.model == Wide(width=9, dropout=0.5)
    assert read("model: {preset: wide}", "--model.preset", "null").run.model == Model()


def test_the_model_of_init_gives_defaults_and_chooses_the_kind():
    assert read("init: wide").run.model == Wide(width=9)
    assert read("init: wide", "--model.preset", "large").run.model == Model(channels=512, dropout=0.1)
    assert read("{init: wide, model: {width: 3}}").run.model == Wide(width=3)


@pytest.mark.parametrize(
    ("text", "flags", "expected", "notes"),
    [
        ("model: {channels: 4, heads: 2}", "--model.preset large", Model(channels=512, dropout=0.1), "channels.*heads"),
        ("model: {preset: small, heads: 2}", "--model.preset large", Model(channels=512, dropout=0.1), "preset.*heads"),
        ("model: {preset: wide, dropout: 0.5}", "--model.preset null", Model(), "preset.*dropout"),
        ("model: {preset: wide, dropout: 0.5}", "--model.kind model", Model(), "preset.*dropout"),
        ("model: {preset: wide, dropout: 0.5}", "--model.kind wide", Wide(width=9, dropout=0.5), "dropout=0.5.*0.0"),
        ("model: {dropout: 0.5}", "--model.kind model", Model(dropout=0.5), None),
        ("model: {channels: 4}", "--model.kind wide --model.width 3", Wide(width=3), "channels"),
        ("{init: wide, model: {dropout: 0.5}}", "--model.kind wide", Wide(width=9, dropout=0.5), "init=wide.*0.5"),
        ("model: {dropout: 0.5}", "--init wide --model.width 3", Wide(width=3, dropout=0.5), "init=wide.*width=3.*0.5"),
        ("model: {channels: 4}", "--init large --model.kind wide --model.preset wide", Wide(width=9), "channels"),
        ("model: {dropout: 0.5}", "--model.preset null", Model(dropout=0.5), None),
        ("task: toy", "--model.preset large --model.dropout 0", Model(channels=512), "large.*dropout=0.0.*0.1"),
    ],
)
def test_a_flag_that_chooses_replaces_the_section_of_the_file(text: str, flags: str, expected: object, notes: str):
    parsed = read(text, *flags.split())
    assert parsed.run.model == expected
    assert re.search(notes or "^$", " ".join(parsed.notes))


def test_another_kind_of_any_section_replaces_the_section_of_the_file():
    text = "optimizer: {learning_rate: 0.5, weight_decay: 0.1}\nschedule: {warmup_images: 7}"
    parsed = read(text, "--optimizer.kind", "sgd", "--optimizer.momentum", "0.5", "--schedule.kind", "constant")
    assert (parsed.run.optimizer, parsed.run.schedule) == (SGD(momentum=0.5), Constant(warmup_images=7))
    (note,) = parsed.notes
    assert re.search(r"--optimizer\.kind sgd.* some\.yaml.*optimizer\.learning_rate.*optimizer\.weight_decay", note)


def test_a_resumed_run_does_not_need_the_model_of_init(monkeypatch: pytest.MonkeyPatch):
    record = Path("runs/some/config.yaml")
    record.parent.mkdir(parents=True)
    record.write_text(write_yaml({"format_version": FORMAT_VERSION} | read("init: wide").resolved))
    monkeypatch.delitem(PRESETS, "wide")
    assert read("init: wide", "--model.dropout", "0.5").run.model == Wide(width=9, dropout=0.5)
    for text, flags in (("init: wide", ["--fresh"]), ("init: other", [])):
        with pytest.raises(ValueError, match=r"^init=(wide|other): there is no such model"):
            read(text, *flags)


def test_a_script_may_add_kinds(monkeypatch: pytest.MonkeyPatch):
    @dataclass(frozen=True, kw_only=True)
    class Deep:
        depth: int = 1
        """layers"""

    monkeypatch.setitem(MODELS, "deep", Deep)
    parsed = read("task: toy", "--model.kind", "deep", "--model.depth", "3")
    assert parsed.run.model == Deep(depth=3)
    assert read(write_yaml(parsed.resolved)).run == parsed.run


def test_fields_that_may_change_are_known_by_dotted_name():
    assert changeable(read("task: toy").run) == {"train.images", "ema.snapshot_every_images"}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--train.images 2e5", 200_000),
        ("--train.images=1_000", 1_000),
        ("--train.rate 1e-4", 1e-4),
        ("--train.rate 1", 1.0),
        ("--train.clip null", None),
        ("--train.clip 2", 2.0),
        ("--train.schedule cosine", "cosine"),
        ("--train.betas 0.5,0.9", (0.5, 0.9)),
        ("--model.multipliers 1,2,2", (1, 2, 2)),
        ("--model.multipliers [1,2,2]", (1, 2, 2)),
        ("--model.multipliers 1e1,2", (10, 2)),
        ("--model.multipliers 4", (4,)),
        ("--model.multipliers []", ()),
        ("--model.heads 4", 4),
        ("--model.heads 4,8", (4, 8)),
        ("--data.size 32", 32),
        ("--data.size 32,48", (32, 48)),
        ("--data.size null", None),
        ("--data.flip true", True),
        ("--data.source 1e5", "1e5"),
        ("--data.source a:b,c", "a:b,c"),
        ("--data.source [x]*.png", "[x]*.png"),
        ("--data.source 1:30", "1:30"),
        ("--data.cache a/b", Path("a/b")),
        ("--data.cache null", None),
        ("--data.columns a,b", ("a", "b")),
        ("--data.columns a", ("a",)),
    ],
)
def test_a_flag_reads_as_the_type_of_its_field(flag: str, value: object):
    section, name = re.split("[ =]", flag)[0].removeprefix("--").split(".")
    found = getattr(getattr(read("task: toy", *flag.split(" ")).run, section), name)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_the_file_reads_numbers_as_people_write_them():
    run = read("train: {images: 2e5, rate: 1e-4, betas: [1e-1, .5]}\nmodel: {multipliers: [1, 2.0]}").run
    assert (run.train.images, run.train.rate, run.train.betas) == (200_000, 1e-4, (0.1, 0.5))
    assert run.model.multipliers == (1, 2)
    assert all(type(count) is int for count in (run.train.images, *run.model.multipliers))


def test_an_empty_section_is_its_defaults():
    assert read("train:\nmodel:\n").run == Toy()


def test_of_a_flag_given_twice_the_last_counts():
    assert read("task: toy", "--train.images", "1", "--train.images", "2").run.train.images == 2


def test_the_dashes_of_a_launcher_are_no_flag():
    assert read("task: toy", "--", "--train.images", "2").run.train.images == 2


def test_the_switches_and_the_run_folder():
    assert (read("task: toy").folder, read("task: toy").fresh, read("task: toy").dry_run) == (
        Path("runs/some"),
        False,
        False,
    )
    parsed = read("task: toy", "--fresh", "--run", "other place/lr=1e-4", "--dry-run")
    assert (parsed.folder, parsed.fresh, parsed.dry_run) == (Path("other place/lr=1e-4"), True, True)
    assert (parsed.validate, read("task: toy", "--validate").validate) == (False, True)


def test_the_config_has_a_default():
    Path("mine.yaml").write_text("train: {images: 7}")
    parsed = parse(RUNS, [], default_config=Path("mine.yaml"))
    assert (parsed.run.train.images, parsed.folder) == (7, Path("runs/mine"))
    assert "mine.yaml" in parsed.notes[0]


def test_the_default_config_is_for_a_command_without_settings():
    Path("mine.yaml").write_text("{task: plain, goal: x}")
    for argv in (["--dry-run"], ["--fresh"], ["--run", "runs/new"]):
        assert parse(RUNS, argv, default_config=Path("mine.yaml")).run == Plain(goal="x")
    for argv in (["--task", "toy"], ["--train.images", "7"], ["--init", "wide"], ["--data.source=x"]):
        parsed = parse(RUNS, argv, default_config=Path("mine.yaml"))
        assert (parsed.task, parsed.folder) == ("toy", Path("runs/toy"))
        assert not any("mine" in note for note in parsed.notes)
    with pytest.raises(ValueError, match=r"^goal is missing; .* --goal VALUE") as error:
        parse(RUNS, ["--task", "plain"], default_config=Path("mine.yaml"))
    assert "mine" not in str(error.value)


def test_a_run_folder_alone_continues_its_run():
    record = Path("runs/old/config.yaml")
    record.parent.mkdir(parents=True)
    record.write_text(write_yaml({"format_version": FORMAT_VERSION} | read("train: {images: 3}").resolved))
    parsed = parse(RUNS, ["--run", "runs/old"], default_config=Path("mine.yaml"))
    assert (parsed.run.train.images, parsed.folder) == (3, record.parent)
    assert str(record) in parsed.notes[0]


def test_the_record_of_a_run_continues_it():
    record = Path("runs/old/config.yaml")
    record.parent.mkdir(parents=True)
    record.write_text(write_yaml({"format_version": FORMAT_VERSION} | read("train: {images: 3}").resolved))
    parsed = parse(RUNS, ["--config", str(record)])
    assert (parsed.run.train.images, parsed.folder) == (3, record.parent)
    assert parse(RUNS, ["--config", str(record), "--run", "runs/new"]).folder == Path("runs/new")
    record.write_text(record.read_text().replace(f"format_version: {FORMAT_VERSION}", "format_version: 1"))
    with pytest.raises(ValueError, match=rf"config\.yaml has format_version 1, .*{FORMAT_VERSION}"):
        parse(RUNS, ["--config", str(record)])


# --- the resolved config ---------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
INTEGERS = st.integers(1 - 2**64, 2**64 - 1)
TOYS = st.builds(
    Toy,
    data=st.builds(
        Data,
        source=TEXT | st.sampled_from(["1e5", "null", "yes", "0x1f", "#a", "2024-01-01", "1_0e3", "~"]),
        size=st.none() | st.integers(1, 99) | st.tuples(st.integers(1, 99), st.integers(1, 99)),
        cache=st.none() | st.just(Path("a b/c")),
        columns=st.lists(TEXT).map(tuple),
    ),
    model=st.builds(Model, channels=st.sampled_from([4, 40]), multipliers=st.lists(INTEGERS).map(tuple))
    | st.builds(Wide, width=INTEGERS),
    optimizer=st.sampled_from([AdamW(), SGD(nesterov=True)]),
    ema=st.just(EmaConfig()),
    train=st.builds(Train, rate=st.floats(-1e9, 1e9), clip=st.none() | st.floats(1e-9, 1e9)),
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(toy=TOYS)
def test_the_resolved_config_gives_the_same_run_again(toy: Toy):
    resolved = {"task": "toy", **plain(toy)}
    resolved["model"].pop("in_channels", None)
    again = read(write_yaml(resolved))
    assert again.run == toy
    assert again.resolved == resolved


def test_the_resolved_config_is_plain_and_leaves_out_what_is_derived():
    resolved = read("data: {size: [8, 9], cache: x}").resolved
    assert resolved["data"] == {"source": "digits", "size": [8, 9], "cache": "x", "flip": False, "columns": []}
    assert resolved["model"] == {"kind": "model", "channels": 128, "multipliers": [1, 2, 2], "heads": 1, "dropout": 0.0}
    assert list(resolved)[:3] == ["task", "init", "freeze"], "values before sections"
    assert resolved["task"] == "toy"


def test_lists_are_written_within_a_line():
    assert write_yaml({"a": {"b": [1, 2], "c": "1e5"}}) == "a:\n  b: [1, 2]\n  c: '1e5'\n"


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "parts"),  # of the message: what is wrong, and the way out
    [
        ("--train.imagse 3", ["--train.imagse", "--train.images?"]),
        ("--images 3", ["--images", "--train.images"]),
        ("--train.channels 3", ["--train.channels", "--model.channels"]),
        ("--trian.images 3", ["--trian.images", "--train.images"]),
        ("--dry-runs 3", ["--dry-runs", "--dry-run?"]),
        ("--qqq 3", ["--qqq", "--help"]),
        ("--train.zz 3", ["--train.zz", "images, rate, betas, clip, schedule"]),
        ("--train.image 3", ["--train.image ", "--train.images"]),  # no abbreviations
        ("--train.images many", ["--train.images=many", "INT", "1000"]),
        ("--train.images 2.5", ["--train.images=2.5", "INT", "1000"]),
        ("--train.images true", ["--train.images=true", "INT", "1000"]),
        ("--train.images null", ["--train.images=null", "INT", "1000"]),
        ("--train.rate true", ["--train.rate=true", "NUMBER", "0.001"]),
        ("--train.betas 0.9", ["--train.betas=0.9", "NUMBER,NUMBER", "0.9,0.999"]),
        ("--train.schedule cos", ["--train.schedule=cos", "constant|cosine"]),
        ("--data.flip 1", ["--data.flip=1", "true|false", "false"]),
        ("--data.size 1,2,3", ["--data.size=1,2,3", "INT,INT|INT|null"]),
        ("--model.heads x", ["--model.heads=x", "INT[,...]", "1"]),
        ("--model.multipliers 1,true", ["--model.multipliers=1,true", "INT,...", "1,2,2"]),
        ("--model.multipliers 1 2 2", ["'2'", "--model.multipliers 1,2"]),
        ("--model.multipliers.0 3", ["--model.multipliers.0", "--model.multipliers?"]),
        ("--model.multipliers+ 3", ["--model.multipliers+", "--model.multipliers?"]),
        ("--model.multipliers [1", ["--model.multipliers=[1", "INT,..."]),
        ("--model 3", ["--model=3", "section", "--model.kind"]),
        ("--model.in_channels 3", ["--model.in_channels", "it follows from the images; see data.source"]),
        ("--model.channels 6", ["model.channels=6", "give 128"]),
        ("--train.images 0", ["train.images=0", "at least 1"]),
        ("--model.kind wid", ["model.kind", "'wid'", "wide"]),
        ("--model.width 3", ["--model.width", "--model.kind=wide"]),
        ("--model.kind wide --model.channels 3", ["--model.channels", "--model.kind=model"]),
        ("--model.kind wide --model.preset small", ["model.kind=wide", "model.preset=small", "model"]),
        ("--model.kind wide --init small", ["model.kind=wide", "init=small", "model"]),
        ("--task to", ["task", "'to'", "toy"]),
        ("--task plain", ["goal", "some.yaml", "--goal"]),
        ("--task plain --goal x --model.preset small", ["--model.preset"]),
        ("--model.preset smal", ["model.preset", "'smal'", "small"]),
        ("--model.preset 9", ["model.preset", "'9'", "small, large"]),
        ("--train.images", ["--train.images", "--train.images VALUE"]),
        ("--train.images --fresh", ["--train.images", "--train.images VALUE"]),
        ("--fresh=no", ["--fresh", "=no"]),
        ("-fresh", ["'-fresh'", "--"]),
        ("fresh", ["'fresh'", "--"]),
        ("--data.flip true ", ["''", "--data.flip true,"]),
        ("--config b", ["--config", "(some.yaml, b)"]),
        ("--run a:b", ["'a:b'", "--run runs/a-b"]),
        ("--run ..", ["'..'", "--run runs/some"]),
        ("--run x.", ["'x.'", "--run runs/x"]),
        ("--data.source=", ["--data.source", "empty", "null"]),
        ("--run=", ["--run", "empty"]),
        ("--model.preset=", ["--model.preset", "empty"]),
        ("--model.preset=!!python/object/apply:os.getcwd", ["model.preset", "os.getcwd", "small"]),
        ("--model.preset=[a]", ["model.preset", "[a]", "small"]),
        ("--train.images=" + "9" * 5000, ["--train.images=9", "INT"]),
        ("--train.images=1e400", ["--train.images=1e400", "INT"]),
        ("--train.images=1e300", ["--train.images=1e300", "too large", "INT"]),
        ("--model.multipliers=1,18446744073709551616", ["--model.multipliers=1,18446744073709551616", "too large"]),
        ("--train.rate=1e400", ["--train.rate=1e400", "finite"]),
        ("--train.rate=.nan", ["--train.rate=.nan", "finite"]),
        ("--train.rate=1e39", ["--train.rate=1e39", "too large"]),
        ("--run=~nosuchuser/x", ["run '~nosuchuser/x'", "home"]),
        ("--train.clip=-.inf", ["--train.clip=-.inf", "finite"]),
        ("--train.betas=0.9,.inf", ["--train.betas=0.9,.inf", "finite"]),
        ("--train.rate=!!float", ["--train.rate=!!float", "NUMBER"]),
        ("--train.betas=&a,*a", ["--train.betas=&a,*a", "NUMBER,NUMBER"]),
        ("--model.multipliers=" + "[" * 5000, ["--model.multipliers=[[", "INT,..."]),
        ("--optimizer.learning_rate=.inf", ["--optimizer.learning_rate=.inf", "finite"]),
        ("--task=", ["--task", "empty"]),
        ("--task=[toy]", ["task", "'[toy]'", "toy"]),
        ("--=3", ["--", "--help"]),
        ("--x.=3", ["--x.", "unknown"]),
    ],
)  # fmt: skip
def test_a_bad_flag_is_one_line_with_the_way_out(flags: str, parts: list[str]):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))) as error:
        read("task: toy", *flags.split(" "))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty", "task: NAME"]),
        ("# only this\n", ["is empty", "task: NAME"]),
        ("3", ["3", "task: NAME"]),
        ("- a", ["['a']", "task: NAME"]),
        ("a: [1", [", line 1", "'<stream end>'"]),
        ("\tx: 3", [", line 1", "'\\t'"]),
        ("a: !x 3", [", line 1", "'!x'"]),
        ("a: 2024-13-01", ["a is unknown"]),  # a date is a text
        ("train: {images: 2024-12-01}", ["train.images=2024-12-01", "INT"]),
        ("task: toy\ntask: toy", [", line 2", "task", "line 1"]),
        ("train:\n  rate: 1\n  rate: 2", [", line 3", "rate", "line 2"]),
        ("train: 3", ["train=3", "section", "train.images"]),
        ("train.images: 3", ["train.images", "`images:`", "`train:`"]),
        ("train: {images: 3}\ntrain.images: 3", ["train.images", "`images:`", "`train:`"]),
        ("modle: {channels: 4}", ["modle.channels", "model.channels"]),
        ("chanels: 4", ["chanels", "model.channels"]),
        ("channels: 4", ["channels", "model.channels"]),
        ("model: {chanels: 4}", ["model.chanels", "model.channels"]),
        ("model: {in_channels: 4}", ["model.in_channels", "it follows from"]),
        ("model: {kind: wide, channels: 4}", ["model.channels", "model.kind=model"]),
        ("train: {images: 0777}", [", line 1", "0777"]),
        ("train:\n  images: 1:30", [", line 2", "1:30"]),
        ("a: " + "[" * 100_000, [", line 1", "16 deep"]),
        ("- " * 50_000, [", line 1", "16 deep"]),
        ("a: &x [1]\nb: [*x, *x]", [", line 1", "&x", "quote"]),
        ("a: &a [*a]", [", line 1", "&a"]),
        ("x: 1\n<<: *b", [", line 2", "*b"]),
        ("<<: {train: {images: 3}}", ["<<.train.images", "train.images"]),
        ("data: {source: *.png}", [", line 1", "'.'", "quote"]),
        ("train: {images: !!int ''}", [", line 1", "'!!int'"]),
        ("train: {rate: !!float x}", [", line 1", "'!!float'"]),
        ("data: {source: !!binary x}", [", line 1", "'!!binary'"]),
        ("data: {source: !!timestamp x}", [", line 1", "'!!timestamp'"]),
        ("data: {source: !!python/object/apply:os.getcwd []}", [", line 1", "'!!python/object/apply:os.getcwd'"]),
        ("a: !<x", [", line 1", "tag"]),
        ("a: !e!x 1", [", line 1", "'!e!'"]),
        ("train: {images: " + "9" * 5000 + "}", [", line 1", "5,000", "100"]),
        ("train: {images: 0x_}", [", line 1", "0x_"]),
        ("train: {rate: 1:30.5}", [", line 1", "1:30.5"]),
        ("train: {rate: 1e400}", ["train.rate=inf", "finite", "NUMBER"]),
        ("train: {rate: .nan}", ["train.rate=nan", "finite", "NUMBER"]),
        ("train: {betas: [0.9, -.inf]}", ["train.betas=[0.9, -inf]", "finite"]),
        ("train: {images: 1e400}", ["train.images=inf", "INT"]),
        (".nan: 1", [".nan is not a key"]),
        ("1: x", ["1 is unknown"]),
        ("null: x", ["null is unknown"]),
        ("[a]: x", [", line 1", "list", "`key: value`"]),
        ("{a: 1}: x", [", line 1", "section", "`key: value`"]),
        ("a: \0", ["#x0000", "position 3"]),
        ("task: toy\n---\ntask: toy", [", line 2", "another document"]),
        ("%YAML 3.0\n---\ntask: toy", [", line 1", "version"]),
        ("train:\n\timages: 3", [", line 2", "'\\t'", "indents"]),
        ("train: images: 3", [", line 1", "indents"]),
        ("data: {source: @x}", [", line 1", "'@'", "quote"]),
        ("data: {source: 'x}", [", line 1", "end of stream"]),
        ("train: {images: {}}", ["train.images={}", "INT"]),
        ("data: {columns: [{a: 1}]}", ["data.columns", "TEXT"]),
        ("# " + "x" * 200_000, ["131,072"]),
        ("model: {multipliers: 4}", ["model.multipliers=4", "INT,...", "[1, 2, 2]"]),
        ("train: {images: }", ["train.images=null", "INT", "1000"]),
        ("train: {images: true}", ["train.images=true", "INT", "1000"]),
        ("train: {images: {a: 1}}", ["train.images.a", "train.images"]),
        ("data: {source: 3}", ["data.source=3", "TEXT", "digits"]),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_with_the_way_out(text: str, parts: list[str]):
    began = time.perf_counter()
    with pytest.raises(ValueError, match="^some.yaml.*" + ".*".join(map(re.escape, parts))) as error:
        read(text)
    assert time.perf_counter() - began < 10
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("task: [toy]", ["task", "toy"]),
        ("model: {preset: [1]}", ["model.preset", "[1]", "small, large"]),
        ("model: {preset: 3}", ["model.preset", "3", "small, large"]),
        ("model: {kind: 3}", ["model.kind", "3", "model, wide"]),
    ],
)
def test_a_bad_choice_is_one_line_with_the_choices(text: str, parts: list[str]):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_those_there_are(folder: Path):
    with pytest.raises(ValueError, match=r"^config digits.yaml does not exist$"):
        parse(RUNS, ["--config", "digits.yaml"])
    (folder / "configs").mkdir()
    (folder / "configs" / "digits.yaml").touch()
    (folder / ".hooks.yaml").touch()
    for path in ("digits.yaml", "configs/digit.yaml"):
        with pytest.raises(ValueError, match=f"^config {path} does not exist; there is configs/digits.yaml$"):
            parse(RUNS, ["--config", path])
    with pytest.raises(ValueError, match=r"^no config is given; add --config FILE; there is configs/digits.yaml$"):
        parse(RUNS, [])


def test_a_file_that_is_no_text(folder: Path):
    (folder / "image.yaml").write_bytes(b"\xff\xd8")
    with pytest.raises(ValueError, match=r"^image.yaml .*UTF-8.*byte 0"):
        read_yaml(Path("image.yaml"))
    (folder / "image.yaml").write_bytes("task: toy".encode("utf-16"))
    with pytest.raises(ValueError, match=r"^image.yaml .*UTF-8.*byte 0"):
        read_yaml(Path("image.yaml"))


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbftask: toy", b"task: toy\r\ndata:\r\n  source: x\r\n", b"task: toy\rdata: {}"]
)
def test_a_byte_order_mark_and_the_line_ends_of_other_systems_are_read(data: bytes):
    Path("some.yaml").write_bytes(data)
    assert read_yaml(Path("some.yaml"))["task"] == "toy"


@pytest.mark.parametrize("kind", ["folder", "named pipe", "device", "large", "closed", "unreadable"])
def test_a_config_that_is_no_regular_file(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    path = {"device": Path("/dev/zero"), "unreadable": Path("/proc/self/mem")}.get(kind, folder / "c.yaml")
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(200 << 20)
    elif kind == "closed":
        path = folder / "file" / "c.yaml"
        (folder / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        command(lambda argv: parse(RUNS, argv))(["--config", str(path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    problems = {"large": "131,072", "closed": "Not a directory", "unreadable": "Input/output error"}
    assert problems.get(kind, kind) in line


# --- help ------------------------------------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *argv: str, runs: dict = RUNS) -> str:
    with pytest.raises(SystemExit) as end:
        parse(runs, argv, default_config=Path("never-read.yaml"))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    assert shown(capsys, "--version") == f"residual-diffusion {residual.__version__}\n"


def test_the_first_screen_of_help_names_existing_flags(capsys: pytest.CaptureFixture[str]):
    screen = shown(capsys, "--help").splitlines()[:40]
    first, last = (next(i for i, line in enumerate(screen) if word in line) for word in ("a recipe", "afterwards"))
    flags = {flag for line in screen[first:last] for flag in re.findall(r"--[a-z][\w.]*", line)}
    known = (Path(__file__).parents[1] / "golden" / "train_flags.txt").read_text()
    assert len(flags) >= 12
    assert all(re.search(rf"^  {re.escape(flag)}\b", known, re.MULTILINE) for flag in flags - {"--nproc_per_node"})


def test_help_escapes_control_characters(capsys: pytest.CaptureFixture[str]):
    assert "x\\x1b[2J" in shown(capsys, "--help", "--data.source", "x\x1b[2J")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_each_field_with_its_default_and_meaning(flag: str, capsys: pytest.CaptureFixture[str]):
    text = shown(capsys, flag)
    assert "--model.channels INT  (default: 128)\n      width, of which 100% is used\n" in text
    assert "data:\n  Where the images come from.\n\n  --data.source TEXT  (default: digits)" in text
    assert "--task toy|plain  (default: toy)" in text
    assert "--model.kind model|wide  (default: model)\n      which model" in text
    assert "wide: A model of another shape." in text
    assert "--model.preset small|large|wide|null  (default: null)" in text
    assert "--train.betas NUMBER,NUMBER  (default: 0.9,0.999)" in text
    assert "--train.clip NUMBER|null  (default: 1.0)" in text
    assert "in_channels" not in text
    assert "Train(" not in text  # the docstring that dataclass writes by itself


def test_help_follows_task_preset_and_config(capsys: pytest.CaptureFixture[str]):
    assert "--goal TEXT  (required)" in shown(capsys, "--help", "--task", "plain")
    assert "--model.channels INT  (default: 512)" in shown(capsys, "--model.preset", "large", "--help")
    assert "--model.width INT  (default: 2)" in shown(capsys, "--help", "--model.kind", "wide")
    Path("p.yaml").write_text("task: plain")
    assert "--goal" in shown(capsys, "--config", "p.yaml", "--help")


def test_help_shows_the_values_that_are_given(capsys: pytest.CaptureFixture[str]):
    Path("p.yaml").write_text("{train: {images: 7, clip: null}, data: {columns: [a, b]}, model: {kind: wide}}")
    text = shown(capsys, "--config", "p.yaml", "--help", "--train.rate", "5")
    assert "--train.images INT  (7; default: 1000)" in text
    assert "--train.rate NUMBER  (5; default: 0.001)" in text
    assert "--data.columns TEXT,...  (a,b; default: [])" in text
    assert "--model.kind model|wide  (default: wide)" in text
    assert "--model.width INT  (default: 9)" in shown(capsys, "--help", "--init", "wide")


def test_only_the_first_process_shows_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    assert shown(capsys, "--help") == ""


def test_types_in_words():
    choice = Literal["a", "b"]
    hints = [
        int | None,
        int | tuple[int, ...],
        choice | tuple[choice, ...],
        tuple[int | float, ...],
        tuple[int, int] | int,
    ]
    assert [words(hint) for hint in hints] == ["INT|null", "INT[,...]", "a|b[,...]", "NUMBER,...", "INT,INT|INT"]
    assert words(str | tuple[int, ...] | tuple[str, ...] | None) == "TEXT|[INT,...]|[TEXT,...]|null"
    assert [words(hint) for hint in (Path, bool, Literal[1, 3])] == ["PATH", "true|false", "1|3"]


def test_help_texts_are_inherited():
    assert field_texts(Grandchild) == {"source": "a folder or a name", "more": "something"}


@dataclass(frozen=True, kw_only=True)
class Grandchild(Data):
    more: int = 0
    """something"""


# --- scripts ---------------------------------------------------------------------------------------------------------


def failing(argv: list[str]) -> None:
    raise ValueError(" ".join(["bad", *argv]) + "\nvery")


def test_a_value_error_ends_a_script_with_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/some/train.py", "flag"])
    with pytest.raises(SystemExit) as end:
        command(failing)()
    assert (end.value.code, *capsys.readouterr()) == (2, "", "train.py: error: bad flag very\n")


def test_a_message_cannot_control_the_terminal_and_is_bounded(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        command(failing)(["\x1b[31mred", "\u202e", "\x07", "x" * 10**6, "way out"])
    text = capsys.readouterr().err
    assert "\\x1b[31mred \\u202e \\x07 xxx" in text
    assert text.endswith("way out very\n")
    assert len(text) < 3_000


def test_a_terminal_that_lacks_a_letter_is_no_error():
    code = r"from training.script import command; command(lambda argv: print('\u732b', '\udcff'))([])"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.split() == [rb"\u732b", rb"\udcff"]


def test_other_processes_wait_before_they_speak(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(script.time, "sleep", waited.append)
    with pytest.raises(SystemExit, match="2"):
        command(failing)(["x"])
    assert waited == [script.PATIENCE_S]
    assert capsys.readouterr().err.endswith(" (process 3): error: bad x very\n")


def test_a_file_in_the_way_is_one_line_too(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        command(lambda argv: (folder / "file" / "run").mkdir())([])
    assert capsys.readouterr().err.endswith(f": error: {folder / 'file' / 'run'}: Not a directory\n")


@pytest.mark.parametrize("error", [KeyError(0), OSError("the network is down")])
def test_other_errors_keep_their_trace(error: Exception):
    def fail(argv: Sequence[str]) -> None:
        raise error

    with pytest.raises(type(error)):
        command(fail)([])


def test_a_script_of_the_user_adds_its_task(capsys: pytest.CaptureFixture[str]):
    import train

    with pytest.raises(SystemExit, match="0"):
        train.main(["--help", "--task", "toy"], runs=RUNS)
    assert "--task toy|plain  (default: toy)" in capsys.readouterr().out


def run_script(*argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    arguments = [sys.executable, ROOT / "train.py", *argv]
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)


def test_train_script_dry_run(folder: Path):
    Path("tiny.yaml").write_text(
        "model: {base_channels: 8, channel_multipliers: [1], attention_levels: [], blocks_per_level: 1, groups: 4}"
    )
    done = run_script("--config", "tiny.yaml", "--dry-run", "--data.cache", "cache", "--train.trackers", "[]")
    assert (done.returncode, done.stderr) == (0, "")
    assert "model:\n  kind: unet\n  base_channels: 8\n" in done.stdout
    assert re.search(r"^parameters +[\d,]+$", done.stdout, re.MULTILINE)
    assert not (folder / "runs").exists()


# --- the real tasks --------------------------------------------------------------------------------------------------


def test_the_flags_of_the_real_tasks_are_pinned(capsys: pytest.CaptureFixture[str]):
    """On purpose: `python train.py --help | grep '^  -' > tests/golden/train_flags.txt`."""
    from tasks import RUNS as real

    lines = shown(capsys, "--help", runs=real).splitlines()
    golden = (ROOT / "tests" / "golden" / "train_flags.txt").read_text(encoding="utf-8")
    assert [line for line in lines if line.startswith("  -")] == golden.splitlines()


def test_every_field_of_the_real_tasks_has_a_help_text():
    from tasks import RUNS as real

    for cls in real.values():
        schemas = [
            Schema(cls, {}, {"optimizer.kind": kind, "schedule.kind": other})
            for kind in OPTIMIZERS
            for other in SCHEDULES
        ]
        assert [leaf.name for schema in schemas for leaf in schema.leaves.values() if not leaf.help] == []
        for name in cls.derived:
            section, _, last = name.rpartition(".")
            assert last in {field.name for field in fields(schemas[0].classes[section])}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_are_read_and_resolve_to_themselves(path: Path):
    from tasks import RUNS as real

    parsed = parse(real, ["--config", str(path)])
    Path("again.yaml").write_text(write_yaml(parsed.resolved), encoding="utf-8")
    again = parse(real, ["--config", "again.yaml"])
    assert (again.run, again.resolved) == (parsed.run, parsed.resolved)


@pytest.mark.parametrize("name", ["ddpm-cifar10", "ddpm-256"])
def test_the_presets_resolve_to_themselves(name: str):
    from tasks import RUNS as real

    parsed = parse(real, ["--config", str(_write("p.yaml", f"model: {{preset: {name}}}"))])
    again = parse(real, ["--config", str(_write("q.yaml", write_yaml(parsed.resolved)))])
    assert again.run == parsed.run


@pytest.mark.parametrize("given", ["--config configs/folder.yaml", "--config configs/digits.yaml", "--data.source x"])
def test_a_preset_is_the_published_network(given: str, monkeypatch: pytest.MonkeyPatch):
    from residual.count import parameters
    from tasks import RUNS as real

    monkeypatch.chdir(ROOT)
    parsed = parse(real, [*given.split(), "--model.preset", "ddpm-cifar10"])
    assert parameters(parsed.run.outline()) == 35_746_307
    assert "model.preset=ddpm-cifar10" in parsed.notes
    parsed = parse(real, [*given.split(), "--model.preset", "ddpm-cifar10", "--model.dropout", "0.3"])
    assert "model.preset=ddpm-cifar10 with model.dropout=0.3 instead of 0.1" in parsed.notes


def test_a_rate_that_is_not_finite_is_refused_by_the_dataclass_too():
    with pytest.raises(ValueError, match=r"learning_rate=inf"):
        AdamW(learning_rate=float("inf"))


def _write(name: str, text: str) -> Path:
    Path(name).write_text(text, encoding="utf-8")
    return Path(name)


def test_a_value_alone():
    assert read_value("[1e-4, 2e5, '2e5', -1E5, .5e3, 1.e3, 1e]") == [1e-4, 2e5, "2e5", -1e5, 500.0, 1000.0, "1e"]


def test_ctrl_c_ends_a_script_without_a_trace(capsys):
    @command
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 130
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"{Path(sys.argv[0]).name}: interrupted\n")
