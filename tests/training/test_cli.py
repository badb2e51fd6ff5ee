"""The command line: what it reads, what it refuses and in which words, and what `--help` shows."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training import cli
from training.cli import Command, command, parse
from training.fields import field_texts, kinds, plain, words
from training.schema import Schema
from training.yaml_file import read_value, read_yaml, write_yaml

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
class Train:
    images: int = 1000
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"train.images={self.images} is out of range; give at least 1")


@dataclass(frozen=True, kw_only=True)
class Toy:
    task: Literal["toy"] = "toy"
    data: Data = Data()
    model: Model = field(default_factory=lambda: Model(channels=64))
    train: Train = Train()
    derived: ClassVar[dict[str, str]] = {"model.in_channels": "it follows from the images; see data.source"}

    @staticmethod
    def presets(name: str) -> Model:
        return {"small": Model(channels=8, in_channels=1), "large": Model(channels=512, dropout=0.1)}[name]

    @staticmethod
    def preset_names() -> list[str]:
        return ["small", "large"]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A task without presets, with a setting that nobody can guess."""

    task: Literal["plain"] = "plain"
    goal: str


RUNS = {"toy": Toy, "plain": Plain}


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
    assert read("task: toy").run.model.channels == 64


def test_task_picks_the_dataclass():
    assert read("{task: plain, goal: x}").run == Plain(goal="x")
    assert read("goal: x", "--task=plain").run == Plain(goal="x")


@pytest.mark.parametrize("by_flag", [False, True])
def test_a_preset_gives_the_defaults_of_the_model_but_not_the_derived_fields(by_flag: bool):
    said = read("model: {channels: 16}", "--model.preset", "large") if by_flag else read("model: {preset: large}")
    assert said.run.model == Model(channels=16 if by_flag else 512, dropout=0.1)
    assert read("model: {preset: small}").run.model.in_channels == Model().in_channels
    assert "preset" not in said.resolved["model"]


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


def test_the_switches_and_the_run_folder():
    assert (read("task: toy").folder, read("task: toy").fresh, read("task: toy").dry_run) == (
        Path("runs/some"),
        False,
        False,
    )
    said = read("task: toy", "--fresh", "--run", "other place/lr=1e-4", "--dry-run")
    assert (said.folder, said.fresh, said.dry_run) == (Path("other place/lr=1e-4"), True, True)
    assert (said.validate, read("task: toy", "--validate").validate) == (False, True)


def test_the_config_has_a_default():
    Path("mine.yaml").write_text("train: {images: 7}")
    said = parse(RUNS, [], default_config=Path("mine.yaml"))
    assert (said.run.train.images, said.folder) == (7, Path("runs/mine"))


def test_the_record_of_a_run_continues_it():
    record = Path("runs/old/config.yaml")
    record.parent.mkdir(parents=True)
    record.write_text(write_yaml({"format_version": 1} | read("train: {images: 3}").resolved))
    said = parse(RUNS, ["--config", str(record)])
    assert (said.run.train.images, said.folder) == (3, record.parent)
    assert parse(RUNS, ["--config", str(record), "--run", "runs/new"]).folder == Path("runs/new")


# --- the resolved config ---------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
TOYS = st.builds(
    Toy,
    data=st.builds(
        Data,
        source=TEXT | st.sampled_from(["1e5", "null", "yes", "0x1f", "#a", "2024-01-01", "1_0e3", "~"]),
        size=st.none() | st.integers(1, 99) | st.tuples(st.integers(1, 99), st.integers(1, 99)),
        cache=st.none() | st.just(Path("a b/c")),
        columns=st.lists(TEXT).map(tuple),
    ),
    model=st.builds(Model, channels=st.sampled_from([4, 40]), multipliers=st.lists(st.integers()).map(tuple)),
    train=st.builds(Train, rate=st.floats(allow_nan=False), clip=st.none() | st.floats(1e-9, 1e9)),
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(toy=TOYS)
def test_the_resolved_config_gives_the_same_run_again(toy: Toy):
    resolved = plain(toy)
    del resolved["model"]["in_channels"]
    again = read(write_yaml(resolved))
    assert again.run == toy
    assert again.resolved == resolved


def test_the_resolved_config_is_plain_and_leaves_out_what_is_derived():
    assert read("data: {size: [8, 9], cache: x}").resolved == {
        "task": "toy",
        "data": {"source": "digits", "size": [8, 9], "cache": "x", "flip": False, "columns": []},
        "model": {"channels": 64, "multipliers": [1, 2, 2], "heads": 1, "dropout": 0.0},
        "train": {"images": 1000, "rate": 0.001, "betas": [0.9, 0.999], "clip": 1.0, "schedule": "constant"},
    }


def test_lists_are_written_within_a_line():
    assert write_yaml({"a": {"b": [1, 2], "c": "1e5"}}) == "a:\n  b: [1, 2]\n  c: '1e5'\n"


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train.imagse 3", "--train.imagse is unknown; did you mean --train.images?"),
        ("--images 3", "--images is unknown; did you mean --train.images?"),
        ("--train.channels 3", "--train.channels is unknown; did you mean --model.channels?"),
        ("--trian.images 3", "--trian.images is unknown; did you mean --train.images?"),
        ("--dry-runs 3", "--dry-runs is unknown; did you mean --dry-run?"),
        ("--qqq 3", "--qqq is unknown; see train.py --help"),
        ("--train.zz 3", "--train.zz is unknown; the section train has images, rate, betas, clip, schedule"),
        ("--train.image 3", "--train.image is unknown; did you mean --train.images?"),  # no abbreviations
        ("--train.images many", "--train.images=many does not fit; give INT, such as 1000"),
        ("--train.images 2.5", "--train.images=2.5 does not fit; give INT, such as 1000"),
        ("--train.images true", "--train.images=true does not fit; give INT, such as 1000"),
        ("--train.images null", "--train.images=null does not fit; give INT, such as 1000"),
        ("--train.rate true", "--train.rate=true does not fit; give NUMBER, such as 0.001"),
        ("--train.betas 0.9", "--train.betas=0.9 does not fit; give NUMBER,NUMBER, such as 0.9,0.999"),
        ("--train.schedule cos", "--train.schedule=cos does not fit; give constant|cosine, such as constant"),
        ("--data.flip 1", "--data.flip=1 does not fit; give true|false, such as false"),
        ("--data.size 1,2,3", "--data.size=1,2,3 does not fit; give INT,INT|INT|null"),
        ("--model.heads x", "--model.heads=x does not fit; give INT[,...], such as 1"),
        ("--model.multipliers 1,true", "--model.multipliers=1,true does not fit; give INT,..., such as 1,2,2"),
        ("--model.multipliers 1 2 2", "'2' stands alone; write a list as one value: --model.multipliers 1,2"),
        ("--model.multipliers.0 3", "--model.multipliers.0 is unknown; did you mean --model.multipliers?"),
        ("--model.multipliers+ 3", "--model.multipliers+ is unknown; did you mean --model.multipliers?"),
        ("--model.multipliers [1", "'[1' is not a value; put texts with special characters in quotes"),
        ("--model 3", "--model is a section; set its keys one by one, such as --model.preset"),
        ("--model.in_channels 3", "--model.in_channels may not be set: it follows from the images; see data.source"),
        ("--model.channels 6", "model: channels=6 is not a multiple of 4; give 128"),
        ("--train.images 0", "train.images=0 is out of range; give at least 1"),
        ("--task to", "task='to' is unknown; did you mean toy?"),
        ("--task plain", "goal is missing; give it in some.yaml or as --goal"),
        ("--task plain --goal x --model.preset small", "--model.preset is unknown; there is task, goal, .*"),
        ("--model.preset smal", "model.preset='smal' is unknown; did you mean small?"),
        ("--model.preset 9", "model.preset='9' is unknown; there is small, large"),
        ("--train.images", "--train.images has no value; write --train.images VALUE"),
        ("--train.images --fresh", "--train.images has no value; write --train.images VALUE"),
        ("--fresh=no", "--fresh takes no value; leave =no out"),
        ("-fresh", "'-fresh' stands alone; every flag starts with --"),
        ("fresh", "'fresh' stands alone; every flag starts with --"),
        ("--data.flip true ", "'' stands alone; write a list as one value: --data.flip true,"),
        ("--config b", "--config is given twice (some.yaml, b); give one file and change it by flags"),
        ("--run a:b", "run folder 'a:b' has a name that not every system can hold; use .* such as --run runs/a-b"),
        ("--run ..", "run folder '..' has .* such as --run runs/some"),
        ("--run x.", "run folder 'x.' has .* such as --run runs/x"),
    ],
)  # fmt: skip
def test_a_bad_flag_is_one_line_with_the_way_out(flags: str, message: str):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=f"^{pattern}$") as error:
        read("task: toy", *flags.split(" "))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "some.yaml is empty; write at least one setting, such as `task: NAME`"),
        ("# only this\n", "some.yaml is empty; write at least one setting, such as `task: NAME`"),
        ("3", "some.yaml holds 3, not `key: value` lines; write settings such as `task: NAME`"),
        ("- a", "some.yaml holds ['a'], not `key: value` lines; write settings such as `task: NAME`"),
        ("a: [1", "some.yaml, line 1: expected ',' or ']', but got '<stream end>'"),
        ("\tx: 3", "some.yaml, line 1: found character '\\t' that cannot start any token"),
        ("a: !x 3", "some.yaml, line 1: could not determine a constructor for the tag '!x'"),
        ("a: 2024-13-01", "some.yaml cannot be read as YAML: month must be in 1..12"),
        ("task: toy\ntask: toy", "some.yaml, line 2: task was already given in line 1; keep one of the two"),
        ("train:\n  rate: 1\n  rate: 2", "some.yaml, line 3: rate was already given in line 2; keep one of the two"),
        ("train: 3", "some.yaml: train=3 is not a section; write its keys indented below `train:`"),
        ("train.images: 3", "some.yaml: train.images is not a key; write `images:` indented below `train:`"),
        ("task: [toy]", "task=['toy'] is unknown; did you mean toy?"),
        ("modle: {channels: 4}", "some.yaml: modle is unknown; did you mean model?"),
        ("chanels: 4", "some.yaml: chanels is unknown; did you mean model.channels?"),
        ("channels: 4", "some.yaml: channels is unknown; did you mean model.channels?"),
        ("model: {chanels: 4}", "some.yaml: model.chanels is unknown; did you mean model.channels?"),
        ("model: {in_channels: 4}", "some.yaml: model.in_channels may not be set: it follows from .*"),
        ("model: {preset: [1]}", "model.preset=[1] is unknown; there is small, large"),
        ("train: {images: 0777}", "some.yaml, line 1: 0777 is not decimal to YAML 1.1 (017 is 15, .*"),
        ("train:\n  images: 1:30", "some.yaml, line 2: 1:30 is not decimal to YAML 1.1 .*"),
        ("a: " + "[" * 5000, "some.yaml cannot be read as YAML: maximum recursion depth exceeded.*"),
        ("model: {preset: 3}", "model.preset=3 is unknown; there is small, large"),
        ("model: {multipliers: 4}", "some.yaml: model.multipliers=4 does not fit; give INT,..., such as [1, 2, 2]"),
        ("train: {images: }", "some.yaml: train.images=null does not fit; give INT, such as 1000"),
        ("train: {images: true}", "some.yaml: train.images=true does not fit; give INT, such as 1000"),
        ("train: {images: {a: 1}}", "some.yaml: train.images={'a': 1} does not fit; give INT, such as 1000"),
        ("data: {source: 3}", "some.yaml: data.source=3 does not fit; give TEXT, such as digits"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_with_the_way_out(text: str, message: str):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        read(text)


def test_a_missing_file_names_those_there_are(folder: Path):
    with pytest.raises(ValueError, match=r"^config digits.yaml does not exist$"):
        parse(RUNS, ["--config", "digits.yaml"])
    (folder / "configs").mkdir()
    (folder / "configs" / "digits.yaml").touch()
    for path in ("digits.yaml", "configs/digit.yaml"):
        with pytest.raises(ValueError, match=f"^config {path} does not exist; there is configs/digits.yaml$"):
            parse(RUNS, ["--config", path])
    with pytest.raises(ValueError, match=r"^no config is given; add --config FILE; there is configs/digits.yaml$"):
        parse(RUNS, [])


def test_a_file_that_is_no_text(folder: Path):
    (folder / "image.yaml").write_bytes(b"\xff\xd8")
    with pytest.raises(ValueError, match=r"^image.yaml cannot be read as YAML: 'utf-8' codec can't decode"):
        read_yaml(Path("image.yaml"))


# --- help ------------------------------------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *argv: str, runs: dict = RUNS) -> str:
    with pytest.raises(SystemExit) as end:
        parse(runs, argv, default_config=Path("never-read.yaml"))
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_each_field_with_its_default_and_meaning(flag: str, capsys: pytest.CaptureFixture[str]):
    text = shown(capsys, flag)
    assert "--model.channels INT  (default: 64)\n      width, of which 100% is used\n" in text
    assert "data:\n  Where the images come from.\n\n  --data.source TEXT  (default: digits)" in text
    assert "--model.preset small|large|null  (default: null)" in text
    assert "--train.betas NUMBER,NUMBER  (default: 0.9,0.999)" in text
    assert "--train.clip NUMBER|null  (default: 1.0)" in text
    assert "in_channels" not in text
    assert "Train(" not in text  # the docstring that dataclass writes by itself


def test_help_follows_task_preset_and_config(capsys: pytest.CaptureFixture[str]):
    assert "--goal TEXT  (required)" in shown(capsys, "--help", "--task", "plain")
    assert "--model.channels INT  (default: 512)" in shown(capsys, "--model.preset", "large", "--help")
    Path("p.yaml").write_text("task: plain")
    assert "--goal" in shown(capsys, "--config", "p.yaml", "--help")


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
    assert [words(hint) for hint in (Path, bool, Literal[1, 3])] == ["PATH", "true|false", "1|3"]
    assert kinds(tuple[int, ...] | choice | None) == {int, str, type(None)}  # type: ignore[valid-type]


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


def test_a_terminal_that_lacks_a_letter_is_no_error():
    code = r"from training.cli import command; command(lambda argv: print('\u732b', '\udcff'))([])"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.split() == [rb"\u732b", rb"\udcff"]


def test_other_processes_wait_before_they_speak(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    with pytest.raises(SystemExit, match="2"):
        command(failing)(["x"])
    assert waited == [cli.PATIENCE_S]
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


def run_script(*argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    arguments = [sys.executable, ROOT / "train.py", *argv]
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)


def test_train_script_refuses_in_one_line():
    Path("tiny.yaml").write_text("task: diffusion")
    done = run_script("--config", "tiny.yaml", "--train.image", "3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(r"^train.py: error: --train\.image .*--train\.images", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_train_script_dry_run(folder: Path):
    Path("tiny.yaml").write_text(
        "model: {base_channels: 8, channel_multipliers: [1], attention_levels: [], blocks_per_level: 1, groups: 4}"
    )
    done = run_script("--config", "tiny.yaml", "--dry-run", "--data.cache", "cache", "--train.trackers", "[]")
    assert (done.returncode, done.stderr) == (0, "")
    assert "model:\n  base_channels: 8\n" in done.stdout
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
        assert [leaf.name for leaf in Schema(cls).leaves.values() if not leaf.help] == []
        for name in cls.derived:
            section, _, last = name.rpartition(".")
            assert last in {field.name for field in fields(Schema(cls).sections[section])}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_are_read_and_resolve_to_themselves(path: Path):
    from tasks import RUNS as real

    said = parse(real, ["--config", str(path)])
    Path("again.yaml").write_text(write_yaml(said.resolved), encoding="utf-8")
    again = parse(real, ["--config", "again.yaml"])
    assert (again.run, again.resolved) == (said.run, said.resolved)


@pytest.mark.parametrize("name", ["ddpm-cifar10", "ddpm-256"])
def test_the_presets_resolve_to_themselves(name: str):
    from tasks import RUNS as real

    said = parse(real, ["--config", str(_write("p.yaml", f"model: {{preset: {name}}}"))])
    again = parse(real, ["--config", str(_write("q.yaml", write_yaml(said.resolved)))])
    assert again.run == said.run


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
