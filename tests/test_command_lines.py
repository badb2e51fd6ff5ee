"""Help, shell completion, and the next command of the scripts."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import demo
import drawing.command
import evaluate
import evaluating.command
import export
import exporting.command
import sample
import train
from diffusion.options import SAMPLER_NAMES
from evaluating.options import OWN
from exporting.options import TARGETS
from pipelines.diffusion import DiffusionModel
from tasks import RUNS
from training.cli import all_settings
from training.completion import SHELLS
from training.data import DataConfig
from training.script import ScriptParser, command, show_next

ROOT = Path(__file__).parent.parent
SCRIPTS = {"sample": sample, "evaluate": evaluate, "export": export, "demo": demo, "train": train}
OF_LAUNCHERS = {"--nproc_per_node"}
MODEL = object.__new__(DiffusionModel)  # only its class matters
FIRST = ["--num", "--label", "--guidance", "--steps", "--sampler", "--seed", "--size", "--out", "--batch", "--ema"]


def shown(capsys: pytest.CaptureFixture[str], main: Callable[..., None], *argv: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    assert end.value.code == code
    printed = capsys.readouterr()
    return printed.err if code else printed.out


@pytest.fixture(scope="module")
def settings() -> set[str]:
    """The settings of all tasks, as flags."""
    return {f"--{name}" for name in all_settings(RUNS)}


@pytest.mark.parametrize("script", ["sample", "evaluate", "export", "demo"])
def test_the_first_screen_of_help_names_existing_flags(
    script: str, capsys: pytest.CaptureFixture[str], settings: set[str]
) -> None:
    screen = "\n".join(shown(capsys, SCRIPTS[script].main, "--help").splitlines()[:40])
    asked = screen.partition("what people ask first:\n")[2].partition("\n\n")[0].splitlines()
    assert len(asked) >= 6
    others = [f"{name}.py" for name in SCRIPTS if name != script]
    own = "\n".join(line for line in asked if not any(other in line for other in others))
    flags = set(re.findall(r"(?<!\S)--[a-z][\w.-]*\w", own)) - OF_LAUNCHERS
    if script == "evaluate":
        known = {f"--{name}" for name in OWN} | settings | {"--help"}
    else:
        known = {flag for action in SCRIPTS[script].parser()._actions for flag in action.option_strings}
    assert flags <= known
    assert all(len(line) <= 120 for line in asked)


def test_the_ten_options_that_people_change_first_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, sample.main, "--help")
    first = re.findall(r"^  (--\w+)", text.partition("what people change first:")[2].partition("\n\n")[0], re.MULTILINE)
    assert first == FIRST
    assert text.rindex("\noptions:\n") > text.rindex("\nmachine:\n")


@pytest.mark.parametrize(
    ("script", "parts"),
    [
        ("sample", ["--guidance-rescale", " ".join(SAMPLER_NAMES), "auto bf16 float32"]),
        ("evaluate", ["--ema", "--quality.judge", "--data.validation"]),
        ("export", ["--license", " ".join(TARGETS)]),
        ("demo", ["--port"]),
        ("train", ["--dry-run", "--model.channel_multipliers", "ddpm edm flow", "unet edm2", *RUNS]),
    ],
)
def test_bash_reads_the_completion(script: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = shown(capsys, SCRIPTS[script].main, "--print-completion", "bash")
    assert [part for part in parts if part not in code] == []
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)


def test_bash_completes_options_and_values_behind_python(capsys: pytest.CaptureFixture[str]) -> None:
    code = shown(capsys, sample.main, "--print-completion", "bash")
    code += """
complete_words() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
  _python_script python "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
  echo "${COMPREPLY[@]}"
}
complete_words python sample.py run --guidance-
complete_words python ./sample.py run --sampler dpm
complete_words python other.py --gui
"""
    done = subprocess.run(["bash"], input=code, text=True, capture_output=True, check=True)
    assert done.stdout == "--guidance-interval --guidance-rescale\ndpmpp_2m dpmpp_2m_sde\n\n"


def test_every_shell_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert "precision" in shown(capsys, sample.main, "--print-completion", shell)
    assert "print-completion=fsh " in shown(capsys, sample.main, "--print-completion", "fsh", code=2)


def drawn(out: Path, *words: str) -> str | None:
    """What comes after drawing into `out` with these options."""
    return drawing.command.next_command(sample.parser().parse_args(["some model", "--out", str(out), *words]))


def test_the_next_command_after_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("my run", "drawn")
    assert drawn(out) == "python evaluate.py 'my run/drawn' --data.source IMAGES --quality.judge CLASSIFIER"
    out.parent.mkdir()
    (out.parent / "config.yaml").touch()
    assert drawn(out) == "python evaluate.py 'my run/drawn' --quality.judge CLASSIFIER"
    assert drawn(out, "--condition", "x", "--members", "4") == "python evaluate.py 'my run/drawn' --ensemble.members 4"
    assert drawn(out, "--sweep", "steps") is None
    Path("some model").mkdir()
    assert drawn(out, "--sweep", "steps") == "python demo.py 'some model'"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "my folder"], "python sample.py 'my folder' --num 64"),
        (["--out", "x", "--to", "space"], "hf upload OWNER/NAME x --repo-type space"),
        (["--out", "x", "--to", "onnx"], None),
        (["--push", "me/digits"], "python sample.py me/digits --num 64"),
    ],
)
def test_the_next_command_after_an_export(words: list[str], expected: str | None) -> None:
    args = export.parser().parse_args(["run", *words])
    assert exporting.command.next_command(args, MODEL) == expected


def test_the_next_command_after_an_evaluation(tmp_path: Path) -> None:
    ending = {"diffusion": "--num 64", "superresolution": "--upscale IMAGES", "classification": "", "regression": ""}
    for task, words in ending.items():
        script = "sample.py" if words else "demo.py"
        expected = f"python {script} {tmp_path} {words}".strip()
        assert evaluating.command.next_command(RUNS[task](), tmp_path) == expected
    pairs = RUNS["diffusion"](data=DataConfig(source="a.npy", condition="b.npy"))
    assert evaluating.command.next_command(pairs, tmp_path) == f"python sample.py {tmp_path} --condition FILES"
    assert evaluating.command.next_command(RUNS["diffusion"](), tmp_path / "hub" / "name") is None


def test_the_next_command_is_no_part_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    show_next("python demo.py 'a\x1b'")
    show_next(None)
    assert capsys.readouterr() == ("", "next: python demo.py 'a\\x1b'\n")


def test_a_wrong_choice_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(argv: list[str]) -> None:
        parser = ScriptParser(prog="some.py")
        parser.add_argument("--size", choices=("small", "large"))
        parser.parse_args(argv)

    assert "--size 'smal'; did you mean small?" in shown(capsys, main, "--size", "smal", code=2)
