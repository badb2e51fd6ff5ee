"""Classifiers as a user trains and evaluates them: the digits, on one process and on two."""

import re
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

import evaluating.command
import residual
from evaluate import main
from evaluating.command import read_run
from evaluating.options import read
from pipelines.classification import load_classifier
from pipelines.diffusion_folder import load_model
from tests.test_end_to_end import RECIPE, ROOT, evaluated, train_here
from training.data.open import divided

PAGE = (ROOT / "docs" / "classification.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The recipe, trained as it stands."""
    flags = ["--config", RECIPE, "--run", "runs/resnet8-digits", "--data.cache", "cache", "--train.trackers", "[]"]
    train_here(folder, *flags)
    return folder / "runs" / "resnet8-digits"


def test_the_recipe_reads_97_of_100_held_out_digits(run: Path) -> None:
    found = evaluated(run)
    assert found["images"] == 20_032
    assert found["top1"] >= 0.97


def test_evaluate_prints_the_same_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--data.cache", str(run.parent.parent / "cache"), "--classification.validation_batch", "100"])
    printed, found = capsys.readouterr().out, evaluated(run)
    right = round(found["top1"] * 359)
    assert f"model: {run} at 20,032 images seen\nimages: 359 grey images of 8 x 8 px" in printed
    assert f"top1: {right / 359:.4f} ({right} of 359)\ntop5: " in printed
    assert float(printed.split()[-1]) == pytest.approx(found["validation_loss"], abs=1e-3)


def test_evaluate_shows_help_with_the_values_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["-h"], [str(run), "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(argv)
        text = capsys.readouterr().out
        assert "usage: evaluate.py RUN" in text
        assert ("--data.validation TEXT|NUMBER|null  (0.2; default: null)" in text) == (str(run) in argv)
    with pytest.raises(SystemExit, match="0"):
        main([str(run), "--help", "--classification.validation_batch", "7"])
    text = capsys.readouterr().out
    assert "--classification.validation_batch INT  (7; default: 500)" in text
    assert "--train." not in text
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"residual-diffusion {residual.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["--data.source", "x"], ["nowhere", "--help"], ["nowhere"]])
def test_evaluate_without_a_run_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert "usage: evaluate.py RUN" in line


def test_a_figure_that_is_not_finite_is_an_error(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, wrong = evaluating.command.accuracy, {"validation_loss": float("nan")}
    monkeypatch.setattr("evaluating.command.accuracy", lambda *args, **options: measure(*args, **options) | wrong)
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--data.cache", str(run.parent.parent / "cache")])
    printed = capsys.readouterr()
    assert "validation_loss: nan" in printed.out
    assert re.search(r"validation_loss is nan", printed.err)


def test_a_trained_classifier_names_pictures(run: Path) -> None:
    """Given the data set's own pixels, as anyone would have them, of digits that it has not seen."""
    table, numbers = load_digits(), divided(1797, 0.2)[1]
    named = load_classifier(run).predict([(table.images[i] * (255 / 16)).round().astype("uint8") for i in numbers])
    right = sum(name == str(table.target[i]) for i, (name, _) in zip(numbers, named, strict=True))
    assert right == round(evaluated(run)["top1"] * 359)
    assert all(0.1 <= probability <= 1 for _, probability in named)


def test_the_python_of_the_page_runs(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.chdir(run.parent.parent)
    table, numbers = load_digits(), divided(1797, 0.2)[1]
    Image.fromarray((table.images[numbers[0]] * (255 / 16)).round().astype("uint8")).save("digit.png")
    exec(code, {})
    assert re.fullmatch(rf"{table.target[numbers[0]]}: \d+\.\d%\n", capsys.readouterr().out)


def test_the_page_names_every_recipe_of_a_classifier() -> None:
    recipes = [path.stem for path in RECIPE.parent.glob("*.yaml") if "task: classification" in path.read_text()]
    assert len(recipes) == 7
    assert all(f"`{name}`" in PAGE for name in recipes)


def test_a_classifier_is_not_sampled(run: Path) -> None:
    with pytest.raises(ValueError, match=r"no diffusion\.json"):
        load_model(run)


def test_what_cannot_be_evaluated(run: Path) -> None:
    with pytest.raises(ValueError, match=r"'nothing'.*config\.yaml"):
        read_run("nothing", [])
    with pytest.raises(ValueError, match=r"'--train\.images'.*evaluate\.py RUN"):
        read([str(run), "--train.images", "5"], "help")
    assert read_run(str(run), ["--data.split=test", "--data.validation", "0.3"]).data.validation == 0.3


@pytest.mark.parametrize(
    ("flags", "validation"),
    [
        ([], 0.2),
        (["--data.source", "digits"], 0.2),
        (["--data.cache", "elsewhere"], 0.2),
        (["--data.source", "other"], "train"),
        (["--data.source", "other", "--data.split", "test"], "test"),
        (["--data.split", "test"], "test"),
        (["--data.source", "other", "--data.validation", "0.5"], 0.5),
        (["--data.source", "other", "--data.validation", "null"], None),
    ],
)
def test_the_validation_part_of_a_run_belongs_to_its_own_source(run: Path, flags, validation) -> None:
    assert read_run(str(run), flags).data.validation == validation


def test_the_label_file_of_a_run_belongs_to_its_own_source(run: Path, tmp_path: Path) -> None:
    text = (run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("label_file: null", "label_file: labels.csv"))
    assert read_run(str(tmp_path), []).data.label_file == Path("labels.csv")
    assert read_run(str(tmp_path), ["--data.source", "other"]).data.label_file is None


def test_evaluate_counts_all_images_of_another_folder(run: Path, tmp_path: Path, capsys) -> None:
    for number, (pixels, label) in enumerate(zip(load_digits().images[:40], load_digits().target[:40], strict=True)):
        file = tmp_path / "other" / str(label) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(file)
    main([str(run), "--data.source", str(tmp_path / "other"), "--data.cache", str(tmp_path / "cache")])
    assert "images: 40 grey images" in capsys.readouterr().out


def test_errors_of_evaluate_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(run), "--data.validation", "null", "--data.cache", str(run.parent.parent / "cache")])
    assert "data.validation" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "usage: evaluate.py RUN" in capsys.readouterr().out
