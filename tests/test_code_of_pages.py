"""The code of the README and of docs/: Python is executed, and commands are read by the parsers of their scripts."""

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from diffusion import DDPM
from drawing.options import check_together
from evaluating.options import split_averages, split_likelihood
from pictures.pixel_format import BYTES
from pictures.preprocessing import Preprocessing
from pipelines.classification import ImageClassifier
from pipelines.diffusion import DiffusionModel
from resnet import EDSR, EDSRConfig, create_model
from tasks import RUNS
from tests.tasks.small import SMALL
from training.cli import Schema
from training.flags import read_flags
from training.yaml_file import read_settings
from unet import UNet

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(<!-- not executed: .+ -->\n)?^```(\w*)(?: title=\S+)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TESTED = {
    "README.md": "test_readme.py",
    "adapters.md": "residual/test_adapters.py",
    "adding.md": "test_adding_page.py",
    "averages.md": "tasks/test_averages.py",
    "blocks.md": "test_blocks_page.py",
    "classification.md": "test_classification_runs.py",
    "conditioning.md": "test_conditioning_page.py",
    "data.md": "test_data_page.py",
    "experiments.md": "experiments/test_experiments.py",
    "export.md": "test_export_page.py",
    "finetune.md": "test_finetune_page.py",
    "latents.md": "tasks/test_latents.py",
    "ode.md": "test_ode_page.py",
    "probes.md": "residual/test_probes.py",
    "published.md": "test_readme.py",
    "zoo.md": "test_zoo_page.py",
}
"""pages whose Python has a test of its own"""
FOREIGN = {"evaluator.py", "pytorch_fid", "fidelity", "pre-commit", "venv"}
"""programs and modules of others"""
VARIABLES = {"$seed": "0", "$residual": "true"}
"""values of a loop"""


def blocks(page: Path, *languages: str) -> list[tuple[str, bool]]:
    """The code blocks in some languages, and whether each is executed."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(code, not mark) for mark, language, code in found if language in languages]


def commands() -> Iterator[tuple[str, str]]:
    """Page and command for each command in a block of a shell; of a loop its body, without variables before it.

    The page about adding things is left out: a test of its own runs its commands.
    """
    for page in PAGES:
        for code, executed in blocks(page, "bash", "console"):
            for line in code.replace("\\\n", " ").splitlines() if executed and page.name != "adding.md" else ():
                for text in re.split(r" && |; ?", re.split(r"(?:^| )#", line)[0]):
                    text = re.sub(r"^\s*(do\b|(\w+=\S* )*)", "", text).strip()
                    for name, value in VARIABLES.items():
                        text = text.replace(name, value)
                    if text and not text.startswith(("for ", "done")):
                        yield page.name, text


class Parsed(Exception):
    """Ends a script after its command line was read."""


def parsed(script: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a script of argparse reads from its command line, without any work. Raises what its parser raises."""
    original = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *words: Any) -> argparse.Namespace:
        raise Parsed(original(parser, *words))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    is_module = script[0] == "-m"
    monkeypatch.setattr(sys, "argv", script[1:] if is_module else script)
    if is_module:
        monkeypatch.delitem(sys.modules, script[1], raising=False)  # another test may have imported it
    run = partial(runpy.run_module, script[1]) if is_module else partial(runpy.run_path, str(ROOT / script[0]))
    with pytest.raises(Parsed) as ended:
        run(run_name="__main__")
    return ended.value.args[0]


def check_settings(words: list[str], tasks: list[str]) -> None:
    """Raises ValueError unless the flags are settings of one of the tasks, with values of the right types."""
    own, flags = read_flags(words)
    file: dict = {}
    if "config" in own and (ROOT / own["config"]).is_file():
        file = read_settings(ROOT / own["config"])[0]
        tasks = [file.pop("task")]
    tasks = [flags.pop("task")] if "task" in flags else tasks
    if flags.pop("init", None):  # it would be opened, and gives the network
        file.pop("model", None)
    errors = []
    for task in tasks:
        try:
            assert set(Schema(RUNS[task], file, flags).values()) >= set(flags)
            return
        except ValueError as error:
            errors.append(str(error))
    raise ValueError("; ".join(errors))


def check_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises an error unless a script reads these words."""
    name = words[1] if words[0] == "-m" else words[0]
    if name in FOREIGN:
        return
    if name == "pytest":
        assert all((ROOT / word.split("::")[0]).exists() for word in words if word.startswith("tests/"))
    elif name == "train.py":
        check_settings(words[1:], ["diffusion"])
    elif name == "evaluate.py":
        flags = split_averages(split_likelihood(words[2:])[1])[1]
        check_settings(flags, list(RUNS))
    else:
        found = parsed(words, monkeypatch)
        if name == "sample.py" and found.upscale is None:
            check_together(found)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), commands())
def test_the_commands_are_read(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    program = words[0].removeprefix(".venv/bin/")
    if program in ("python", "python3"):
        check_python(words[1:], monkeypatch)
    elif program in ("torchrun", "accelerate"):
        (script,) = [i for i, word in enumerate(words) if word == "-m" or word.endswith(".py")]
        check_python(words[script:], monkeypatch)
    elif program in ("bash", "sbatch"):
        assert (ROOT / words[1]).is_file()
        check_settings([word for word in words[2:] if word != "--fresh"], ["diffusion"])
    elif program == "make":
        targets = re.findall(r"^([\w.%/]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {re.sub(r"^\.venv/.*", ".venv/%", word) for word in words[1:] if "=" not in word} <= set(targets)
    elif program == "pytest":
        check_python(["pytest", *words[1:]], monkeypatch)
    else:
        assert program in {"source", "pip", ".ci/run", "mkdocs", *FOREIGN}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_yaml_are_read(page: Path) -> None:
    for code, executed in blocks(page, "yaml"):
        assert not executed or isinstance(yaml.safe_load(code), dict)


@pytest.mark.parametrize(("page", "test"), TESTED.items())
def test_python_with_a_test_of_its_own_is_executed_there(page: str, test: str) -> None:
    text = (ROOT / "tests" / test).read_text(encoding="utf-8")
    assert page in text
    assert "exec(" in text or page in ("adding.md", "experiments.md")


def write_models(folder: Path) -> None:
    """What the Python of the pages opens: small models, pictures and weights."""
    digits, classes = replace(SMALL, in_channels=1, out_channels=1, classes=10, null_label=True), tuple("0123456789")
    DiffusionModel(UNet(digits), DDPM(), classes, null_label=True).save(folder / "runs/digits")
    noisy = create_model("resnet20", num_classes=10, in_channels=1, norm="group", noise=True).eval()
    ImageClassifier(noisy, classes, Preprocessing(size=(8, 8), channels=1), BYTES, formulation=DDPM()).save(
        folder / "runs/classifier-digits-noisy"
    )
    EDSR(EDSRConfig(blocks=1, channels=8)).save_pretrained(folder / "runs/superresolution-photographs")
    save_file(create_model("edsr_baseline_x2").export_weights(), folder / "edsr_baseline_x2.safetensors")
    Image.new("RGB", (12, 8), "red").save(folder / "picture.png")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of matplotlib and of short lines that leave files open
@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in TESTED], ids=lambda page: page.name)
def test_python_is_executed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = [code for code, executed in blocks(page, "python") if executed]
    if not code:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    write_models(tmp_path)
    names: dict = {"real": torch.randn(8, 4), "drawn": torch.randn(8, 4)}
    for block in code:
        exec(block.replace("range(1000)", "range(2)"), names)
