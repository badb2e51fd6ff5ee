"""--ema of sample.py, evaluate.py and export.py, and docs/averages.md."""

import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

import evaluate
import evaluating.command
import export
import sample
import train
from evaluating.command import read_run
from evaluating.options import split_averages
from pipelines.classification import load_classifier
from pipelines.diffusion_folder import load_model
from tasks.accuracy import accuracy
from training.averages import RunAverages, load_average
from training.data import open_validation
from training.output_folder import weights_sha256
from training.processes import on_main

PAGE = (Path(__file__).parents[2] / "docs" / "averages.md").read_text(encoding="utf-8")
SHARED = {
    "data": {"source": "digits", "cache": "cache", "validation": 0.3},
    "ema": {"halflife_images": 100, "more_halflife_images": [50], "power_widths": [0.05, 0.1]},
    "train": {"images": 512, "batch": 64, "precision": "float32", "trackers": [], "log_every_images": 512},
}
CLASSIFIER = {
    "task": "classification",
    "model": {"blocks_per_stage": [1, 1], "widths": [8, 16], "stem": "conv3", "stem_channels": 8},
}
DIFFUSION = {
    "model": {"base_channels": 16, "channel_multipliers": [1, 2], "blocks_per_level": 1, "groups": 8},
    "sample": {"num": 0},
    "quality": {"judge": "runs/judge", "steps": 2, "num": 60},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a classifier, and one of a diffusion model that it judges."""
    home = tmp_path_factory.mktemp("averages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("ACCELERATE_USE_CPU", "1")
        for name, run in (("judge", CLASSIFIER), ("digits", DIFFUSION)):
            settings = {**SHARED, **run, "ema": SHARED["ema"] | {"snapshot_every_images": 64}}
            Path("run.yaml").write_text(json.dumps(settings))
            train.main(["--config", "run.yaml", "--run", f"runs/{name}"])
    return home


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    return folder


def refused(script, arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        script.main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_samples_are_drawn_with_the_chosen_average(here: Path, capsys) -> None:
    drawn = {}
    for value, file in (("0.1", "ema-0.1"), ("50", "ema-50"), ("0.07", None)):
        sample.main(["runs/digits", "--ema", value, "--num", "2", "--steps", "2", "--device", "cpu"])
        record = json.loads((here / "runs/digits/drawn/samples.json").read_text())
        assert (record["ema"], record["images_seen"]) == (float(value), 512)
        drawn[value] = record["weights_sha256"]
        if file is not None:
            tracked = load_file(here / f"runs/digits/checkpoints/000000512/{file}.safetensors")
            chosen = load_average(load_model, "runs/digits", RunAverages("runs/digits").choose(float(value)))
            assert drawn[value] == weights_sha256(chosen.net)
            assert_close(dict(chosen.net.state_dict()), tracked, rtol=1e-4, atol=1e-6)
    assert len(set(drawn.values())) == 3
    assert re.search(r"512 images seen, average of width 0\.07, reconstructed .* error of \d", capsys.readouterr().out)


def test_a_model_is_exported_with_the_chosen_average(here: Path) -> None:
    export.main(["runs/digits", "--ema", "0.07", "--to", "diffusers", "--out", "exported"])
    record = json.loads((here / "exported/export.json").read_text())
    chosen = load_average(load_model, "runs/digits", RunAverages("runs/digits").choose(0.07))
    assert (record["ema"], record["weights_sha256"]) == (0.07, weights_sha256(chosen.net))


@pytest.mark.parametrize(("name", "figure", "sign"), [("judge", "top1", -1), ("digits", "frechet_distance", 1)])
def test_several_averages_are_compared_and_the_best_is_marked(here: Path, capsys, name, figure, sign) -> None:
    capsys.readouterr()
    evaluate.main([f"runs/{name}", "--ema", "0.05", "100"])
    *_, head, first, second = capsys.readouterr().out.splitlines()
    rows = [first, second]
    column = head.split().index(figure) - 1  # "images seen" is two words
    values = [sign * float(row.split()[column]) for row in rows]
    assert [row.endswith("best") for row in rows] == [values[0] <= values[1], values[0] > values[1]]
    assert [row.split()[:3] for row in rows] == [["0.05", "512", "0.00%"], ["100", "512", "0.00%"]]
    evaluate.main([f"runs/{name}"])
    main = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert sign * float(main[figure].split()[0]) == values[1], "its half-life is that of the main average"


def test_one_average_is_named(here: Path, capsys) -> None:
    evaluate.main(["runs/judge", "--ema=50"])
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["ema"] == "average with a half-life of 50 images"
    model = load_average(load_classifier, "runs/judge", RunAverages("runs/judge").choose(50))
    held_out = open_validation(read_run("runs/judge", []).data, on_main=on_main)
    assert held_out is not None
    found = accuracy(model, held_out, 500)
    assert found is not None
    assert float(printed["top1"].split()[0]) == pytest.approx(found["top1"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--ema", "0.05", "0.001"], r"ema=0\.001 .*error.*half-lives: 100, 50; widths: 0\.0"),
        (["--ema", "51"], r"ema=51 .*half-lives: 100, 50"),
        (["--ema", "wide"], r"ema=wide is not a number"),
        (["--ema"], r"ema has no value"),
        (["--ema", "--quality.steps", "2"], r"ema has no value"),
        (["--ema="], r"ema has no value"),
        (["0.05"], r"'0\.05' is not a flag"),
    ],
)
def test_bad_averages_are_one_line_before_any_work(here: Path, capsys, monkeypatch, words, match) -> None:
    monkeypatch.setattr(evaluating.command, "open_images", lambda *arguments, **options: pytest.fail("begun"))
    assert re.search(match, refused(evaluate, ["runs/digits", *words], capsys))


def test_only_runs_have_averages(here: Path, capsys) -> None:
    for script, more in ((sample, []), (export, ["--out", "x"])):
        assert re.search(r"ema=0\.3 .*widths: 0\.0", refused(script, ["runs/digits", "--ema", "0.3", *more], capsys))
        assert re.search(r"run folder.*nowhere", refused(script, ["nowhere", "--ema", "0.1", *more], capsys))


def test_a_list_may_be_words_or_commas() -> None:
    split = split_averages
    assert split(["--ema", "0.1", "0.2", "--data.source", "x"]) == ([0.1, 0.2], ["--data.source", "x"])
    assert split(["--data.source", "x", "--ema=0.1,5e4"]) == ([0.1, 50000], ["--data.source", "x"])
    assert split(["--ema", "0.1", "--ema", "0.2"]) == ([0.2], [])
    assert split(["--data.source", "x"]) == ([], ["--data.source", "x"])


def test_the_page_runs(here: Path, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict = {}
    exec(code.replace("0.03", "0.07"), found)
    assert found["model"].images_seen == 512
    (commands,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in commands.splitlines():
        _, script, *words = shlex.split(line, comments=True)
        if script in ("sample.py", "export.py"):
            {"sample.py": sample, "export.py": export}[script].parser().parse_args(words)
