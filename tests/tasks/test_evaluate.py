"""evaluate.py on runs, model folders and drawn images: the same figures, floors, and input that cannot be used."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import evaluate
import sample
from metrics import frechet_distance, kernel_distance
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from tasks.diffusion import DiffusionRun
from tests.tasks.small import SMALL, shaken
from training.data import DataConfig, Images, open_images, open_validation

ROOT = Path(__file__).parents[2]


class Corner(nn.Module):
    """Four means of the image as features."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, (2, 2)).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, images that it has drawn, and a judge of TorchScript."""
    out = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        patch.setenv("ACCELERATE_USE_CPU", "1")
        torch.manual_seed(0)
        images = open_images(DataConfig(cache=Path("cache")))
        shaken(DiffusionRun(model=SMALL).build(images)).diffusion.save(Path("model"))
        torch.jit.script(Corner()).save("judge.pt")
        sample.main(["model", "--num", "40", "--steps", "2", "--npz", "--out", "drawn", "--no-grid"])
    return out


SETTINGS = {
    "data.source": "digits",
    "data.cache": "cache",
    "data.validation": "0.5",
    "quality.judge": "judge.pt",
    "quality.judge_input": "unit",
    "quality.steps": "2",
    "quality.num": "60",
}


def run(given: str, capsys: pytest.CaptureFixture[str], **changes: str | None) -> dict[str, str]:
    """What evaluate.py prints, by the name of the line."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    flags = [word for name, value in (SETTINGS | named).items() if value is not None for word in (f"--{name}", value)]
    capsys.readouterr()
    evaluate.main([given, *flags])
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def refused(given: str, capsys: pytest.CaptureFixture[str], **changes: str | None) -> str:
    """The line of an error; one of progress may be before it."""
    with pytest.raises(SystemExit, match="2"):
        run(given, capsys, **changes)
    *_, line = capsys.readouterr().err.splitlines()
    return line


def value(printed: dict[str, str], name: str) -> float:
    return float(printed[name].split()[0])


def features(images: Images) -> Tensor:
    unit = images.pixel_format.to_unit(torch.from_numpy(images.read(np.arange(len(images)))))
    return Corner()((unit + 1) / 2)


def test_a_model_folder_is_compared_with_the_images_that_are_given(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    printed = run("model", capsys, quality__num="101")
    assert re.search(r"101 images of each set, seed 1, by judge\.pt \(4 features\)", printed["compared"])
    assert re.search(r"n 101, seed 1", printed["frechet_distance"])
    assert re.match(r"inception_score, class_accuracy, because the judge", printed["left out"])
    model = load_model("model")
    assert isinstance(model, DiffusionModel)


def test_drawn_images_have_the_figures_of_their_features(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    printed = run("drawn", capsys, data__labels="false")
    assert re.search(r"drawn, 40 grey images", printed["drawn"])
    data = DataConfig(cache=Path("cache"), validation=0.5, labels=False)
    held_out, drawn = open_validation(data), open_images(DataConfig(source="drawn/images", cache=Path("cache")))
    assert isinstance(held_out, Images)
    assert isinstance(drawn, Images)
    chosen = np.random.default_rng(1)
    real = held_out.part(chosen.permutation(len(held_out))[:40])
    assert value(printed, "frechet_distance") == pytest.approx(
        frechet_distance(features(real), features(drawn)), rel=1e-3, abs=1e-4
    )
    assert value(printed, "kernel_distance") == pytest.approx(
        kernel_distance(features(real), features(drawn))[0], rel=1e-2, abs=1e-4
    )


def test_the_npz_file_has_the_figures_of_the_folder(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    names = ("frechet_distance", "recall", "memorised")
    of_folder, of_file = (run(each, capsys) for each in ("drawn", "drawn/samples.npz"))
    assert [of_folder[name] for name in names] == [of_file[name] for name in names]
    assert re.search(r"n 40, seed 1", of_folder["recall"])


def test_classes_of_drawn_images_count(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Real images as drawn ones: those of one class only are compared with real ones of that class."""
    monkeypatch.chdir(folder)
    images = open_images(DataConfig(cache=Path("cache")))
    assert isinstance(images, Images)
    assert images.labels is not None
    threes = np.flatnonzero(images.labels == 3)[:60]
    pixels = images.read(threes).transpose(0, 2, 3, 1).repeat(3, axis=3)
    np.savez(tmp_path / "labelled.npz", arr_0=pixels, arr_1=np.full(60, 3))
    np.savez(tmp_path / "bare.npz", arr_0=pixels)
    labelled, bare = (run(str(tmp_path / f"{name}.npz"), capsys) for name in ("labelled", "bare"))
    assert value(labelled, "frechet_distance") < 0.5 * value(bare, "frechet_distance")
    (tmp_path / "folder" / "3").mkdir(parents=True)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture[..., 0]).save(tmp_path / "folder" / "3" / f"{number}.png")
    assert run(str(tmp_path / "folder"), capsys, data__labels="false").keys() >= {"recall"}


def test_the_folder_of_a_run_gives_the_settings(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    home = tmp_path / "run"
    shutil.copytree(folder / "model", home / "model")
    shutil.copytree(folder / "drawn", home / "drawn")
    document: dict = {"task": "diffusion", "data": {}, "quality": {}}
    for name, text in SETTINGS.items():
        section, key = name.split(".")
        document[section][key] = json.loads(text) if text[0].isdigit() else text
    (home / "config.yaml").write_text(json.dumps(document))
    unset = dict.fromkeys((name.replace(".", "__") for name in SETTINGS), None)
    for given in ("drawn", "model"):
        whole, short = run(str(folder / given), capsys), run(str(home / given), capsys, **unset)
        assert whole["frechet_distance"] == short["frechet_distance"]
    assert re.search(r"data\.validation=0\.2.*0\.5", refused(str(home), capsys, **{**unset, "data__validation": "0.2"}))


@pytest.mark.slow
@pytest.mark.parametrize("given", ["model", "drawn"])
def test_two_processes_print_the_figures_of_one(given: str, folder: Path, monkeypatch, capsys) -> None:
    """An odd number of images, of which the last batches differ in size."""
    monkeypatch.chdir(folder)
    changes = {"quality.batch": "8", "quality.num": "37", "quality.reference": f"{given}.safetensors"}
    one = run(given, capsys, **{name.replace(".", "__"): value for name, value in changes.items()})
    Path(f"{given}.safetensors").unlink()
    flags = [word for name, text in (SETTINGS | changes).items() for word in (f"--{name}", text)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [*command, str(ROOT / "evaluate.py"), given, *flags]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    two = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert two.keys() == one.keys()
    for name in ("frechet_distance", "kernel_distance", "recall", "coverage", "memorised"):
        assert value(two, name) == pytest.approx(value(one, name), abs=2e-4)
        assert re.search(r"n 37, seed 1", two[name])
    assert Path(f"{given}.safetensors").is_file()


@pytest.mark.parametrize(
    ("given", "changes", "match"),
    [
        ("model", {"data__source": None}, r"model belongs to no run.*--data\.source"),
        ("model", {"data__validation": None}, r"data\.validation is null"),
        ("model", {"quality__judge": None, "quality__judge_input": None}, r"quality\.judge is null"),
        ("drawn", {"quality__judge": None, "quality__judge_input": None}, r"quality\.judge is null.*drawn"),
        ("model", {"quality__num": "4"}, r"4 images.*4 features.*least 10"),
        ("model", {"data__size": "4"}, r"model draws \(1, 8, 8\).*\(1, 4, 4\)"),
        ("drawn", {"data__size": "4"}, r"drawn images are \(1, 8, 8\).*\(1, 4, 4\)"),
        ("model", {"quality__steps": "1001"}, r"quality: steps=1001"),
        ("model", {"quality__sampler": "unipc2"}, r"unipc2"),
        ("model", {"quality__judge": "drawn/samples.npz"}, r"samples\.npz is not a TorchScript file"),
        ("nothing", {}, r"'nothing' is neither a run folder.*model folder.*images"),
        ("empty", {}, r"'empty' is neither"),
        ("text", {}, r"'text' is neither"),
        ("judge.pt", {}, r"'judge\.pt' is neither"),
        ("keys.npz", {}, r"keys\.npz.*arr_0.*(x|other)"),
        ("short.npz", {}, r"short\.npz.*arr_1.*\(19,\).*20 images"),
        ("classes.npz", {}, r"classes\.npz.*up to 12.*10 classes"),
        ("sizes", {}, r"sizes.*8"),
        ("cut", {}, r"cut.*1 image cannot be read.*b\.png"),
        ("colour.npz", {}, r"colour\.npz.*colours"),
        ("names", {}, r"names.*lack: cat, dog"),
        ("not.npz", {}, r"not\.npz"),
        ("floats.npz", {}, r"floats\.npz.*float32.*uint8"),
        ("model", {"data__validation": "train"}, r"data\.validation are the training images"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    given: str, changes: dict, match: str, folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(folder)
    pixels = np.zeros((20, 8, 8, 3), np.uint8)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))
    match_of = {
        "empty": lambda path: path.mkdir(exist_ok=True),
        "text": lambda path: (path.mkdir(exist_ok=True), (path / "a.txt").write_text("a")),
        "keys.npz": lambda path: np.savez(path, x=pixels, other=pixels),
        "short.npz": lambda path: np.savez(path, arr_0=pixels, arr_1=np.arange(19) % 3),
        "classes.npz": lambda path: np.savez(path, arr_0=pixels, arr_1=np.arange(20) % 13),
        "colour.npz": lambda path: np.savez(path, arr_0=pixels + np.arange(3, dtype=np.uint8)),
        "floats.npz": lambda path: np.savez(path, arr_0=pixels.astype(np.float32)),
        "not.npz": lambda path: path.write_bytes(b"PK\x03\x04 and so on"),
    }
    if given in match_of:
        match_of[given](Path(given))
    elif given in ("sizes", "cut", "names"):
        for name in ("cat/a.png", "dog/b.png") if given == "names" else ("a.png", "b.png"):
            Path(given, name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(Path(given, name))
        if given == "sizes":
            picture.resize((9, 8)).save("sizes/b.png")
        if given == "cut":
            Path("cut/b.png").write_bytes(Path("cut/b.png").read_bytes()[:80])
    assert re.search(match, refused(given, capsys, **changes))
