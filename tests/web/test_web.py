"""What the page does, without a browser."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import demo
import export
import sample
import storage.extra
import web.space
from pictures.files import read_image
from pipelines.diffusion_folder import load_model
from pipelines.kinds import loader
from pipelines.superresolution import EDSRUpscaler
from tests.test_arrows import ARROWS, imports
from tests.web.models import (
    save_classifier,
    save_diffusion_upscaler,
    save_drawing,
    save_pipeline,
    save_run,
    save_upscaler,
)
from web.draw import MAX_IMAGES, MAX_STEPS, Settings, archive, options, watch
from web.follow import follow
from web.inpaint import SHOWN_PX, fit, open_drawing, painted, shown, write_inputs
from web.messages import line, message, table
from web.models import (
    Described,
    describe,
    find_runs,
    require_folder,
    require_models,
    require_upscaler,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_drawing(tmp_path_factory.mktemp("page") / "drawing")


def drawn(folder: Path) -> torch.Tensor:
    """The pixels of all images in an output folder."""
    files = sorted((folder / "images").iterdir())
    return torch.stack([torch.from_numpy(read_image(path).copy()) for path in files])


def content(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_the_page_draws_the_images_of_sample(drawing: str, tmp_path: Path) -> None:
    settings = Settings("dpmpp_2m", steps=3, guidance=2, label="two", num=5, seed=7)
    frames = list(watch(options(drawing, tmp_path / "page", settings)))
    flags = ["--sampler", "dpmpp_2m", "--steps", "3", "--guidance", "2", "--label", "two", "--num", "5", "--seed", "7"]
    sample.main([drawing, *flags, "--out", str(tmp_path / "script")])
    assert_close(drawn(tmp_path / "page"), drawn(tmp_path / "script"), rtol=0, atol=0)
    with Image.open(tmp_path / "page" / "grid.png") as grid:
        assert_close(np.array(frames[-1].picture), np.array(grid))
    assert [(frame.step, frame.steps) for frame in frames] == [(step, 3) for step in range(4)]
    assert archive(tmp_path / "page").stat().st_size > 0


CHANGES = {"sampler": "heun", "steps": 4, "guidance": 3.0, "label": "one", "num": 3, "seed": 1}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_images(drawing: str, tmp_path: Path, name: str) -> None:
    usual = {"steps": 2, "guidance": 2.0, "label": "two", "num": 2}
    for out, given in (("a", usual), ("b", usual | {name: CHANGES[name]})):
        list(watch(options(drawing, tmp_path / out, Settings(**given))))
    assert not torch.equal(drawn(tmp_path / "a"), drawn(tmp_path / "b"))


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("steps", MAX_STEPS + 1), ("num", MAX_IMAGES + 1)])
def test_steps_and_images_are_bounded(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} "):
        Settings(**{name: value})


@pytest.mark.parametrize(
    ("given", "named"), [({"label": "-fish"}, "'-fish'"), ({"sampler": "foo"}, "'foo'"), ({"seed": -1}, "seed=-1")]
)
def test_wrong_settings_leave_nothing(drawing: str, tmp_path: Path, given: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        list(watch(options(drawing, tmp_path / "page", Settings(**given))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [save_upscaler, save_diffusion_upscaler])
def test_a_model_that_enlarges_draws_nothing(tmp_path: Path, save: Callable[[Path], str]) -> None:
    folder = save(tmp_path / "model")
    assert "2 times as high and wide" in describe(folder).about
    assert require_upscaler(folder) == folder
    with pytest.raises(ValueError, match="enlarges pictures and draws none"):
        options(folder, tmp_path / "page", Settings())
    with pytest.raises(ValueError, match="enlarges pictures and draws none"):
        open_drawing(folder)


def test_a_pipeline_of_diffusers_draws_the_images_of_sample(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "model")
    assert describe(folder) == Described("draws images of 16×16 px with 3 channels")
    assert open_drawing(folder).shape == (3, 16, 16)
    frames = list(watch(options(folder, tmp_path / "page", Settings(steps=2, num=2))))
    assert [frame.step for frame in frames] == [0, 1, 2]
    sample.main([folder, "--steps", "2", "--num", "2", "--out", str(tmp_path / "script")])
    assert_close(drawn(tmp_path / "page"), drawn(tmp_path / "script"), rtol=0, atol=0)
    with pytest.raises(ValueError, match="enlarges no pictures"):
        require_upscaler(folder)


def test_a_stopped_drawing_leaves_nothing(drawing: str, tmp_path: Path) -> None:
    frames = watch(options(drawing, tmp_path / "page", Settings()))
    next(frames)
    frames.close()
    assert list(tmp_path.iterdir()) == []


def test_models_are_described_by_their_kind(drawing: str, tmp_path: Path) -> None:
    found = describe(drawing)
    assert "draws images of 8×8 px with 1 channel" in found.about
    assert found.labels == ("all", *load_model(drawing).classes, "none")
    assert "classifies images of 32×32 px" in describe(save_classifier(tmp_path / "classifier")).about
    upscaler = save_upscaler(tmp_path / "upscaler")
    assert "2 times as high and wide" in describe(upscaler).about
    assert isinstance(loader(upscaler)(upscaler), EDSRUpscaler)


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    for folder, named in (
        (str(tmp_path / "none"), "none"),
        (str(tmp_path), str(tmp_path)),
        ("owner/name", "owner/name"),
    ):
        with pytest.raises(ValueError, match=re.escape(named)):
            require_models([run, folder])
    with pytest.raises(ValueError, match="no model is chosen"):
        require_folder(" ")
    with pytest.raises(ValueError, match="not saved a model yet"):
        describe(run)
    with pytest.raises(ValueError, match="not saved one yet"):
        list(watch(options(run, tmp_path / "out", Settings())))
    assert find_runs(tmp_path) == [run]
    assert find_runs(tmp_path / "none") == []


def test_a_painted_part_is_drawn_anew(drawing: str, tmp_path: Path) -> None:
    model = open_drawing(drawing)
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "photo.png")
    values, about = fit(model, tmp_path / "photo.png")
    assert values.shape == model.shape
    assert "30×40 px" in about
    layer = Image.new("RGBA", shown(values).size)
    layer.paste((255, 0, 0, 255), (0, 0, SHOWN_PX // 4, SHOWN_PX))  # two columns of eight
    mask = painted(layer, (8, 8))
    assert_close(mask, np.arange(8) < np.full((8, 1), 2))
    named = write_inputs(tmp_path, model, values, mask)
    list(watch(options(drawing, tmp_path / "out", Settings(steps=3, label="none", num=2), **named)))
    found = drawn(tmp_path / "out")
    assert_close(found[:, 0, ~mask], torch.from_numpy(values[:, ~mask]).expand(2, -1), rtol=0, atol=0)
    assert (found[:, 0, mask] != torch.from_numpy(values[:, mask])).any()


def test_a_picture_of_the_size_of_the_model_is_taken_as_it_is(drawing: str, tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    values, about = fit(open_drawing(drawing), tmp_path / "digit.png")
    assert_close(values[0], pixels)
    assert "8×8 px of the model" in about
    assert shown(values).size == (SHOWN_PX, SHOWN_PX)


@pytest.mark.parametrize("name", ["deep.tiff", "text.png", "empty.png"])
def test_files_that_are_no_pictures_are_refused(drawing: str, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "deep.tiff":
        Image.fromarray(np.zeros((8, 8), np.float32)).save(file)
    else:
        file.write_text("no picture" if name == "text.png" else "")
    with pytest.raises(ValueError, match=name):
        fit(open_drawing(drawing), file)


def test_a_run_is_followed_without_writing_to_it(tmp_path: Path) -> None:
    run = Path(save_run(tmp_path / "run"))
    (run / "samples").mkdir()
    for name in ("000000064.png", "000000128.png", "metrics.png"):
        Image.new("L", (4, 4), 9).save(run / "samples" / name)
    (run / "samples" / "000000192.png").write_bytes(b"\x89PNG broken")
    before = content(run)
    (tmp_path / "scratch").mkdir()
    found = follow(str(run), tmp_path / "scratch")
    assert content(run) == before
    assert "128 of 1,024 images seen" in found.about
    assert "00:09 left" in found.about  # 896 images at 96 per second
    assert set(found.curves) == {"loss", "images_per_second"}
    assert [text for _, text in found.grids] == ["drawn after 128 images", "drawn after 64 images"]
    assert found.metrics is not None
    assert found.figures == {"sample_mean": 0.25}


def test_a_run_that_has_logged_nothing_is_followed(tmp_path: Path) -> None:
    run = Path(save_run(tmp_path / "run"))
    (run / "log.jsonl").unlink()
    found = follow(str(run), tmp_path)
    assert "0 of 1,024 images" in found.about
    assert (found.curves, found.metrics, found.grids, found.figures) == ({}, None, [], {})


@pytest.mark.parametrize("speed", [5e-324, -1.0, 0.0])
def test_a_run_with_an_odd_speed_and_a_huge_picture_is_followed(
    tmp_path: Path, speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(save_run(tmp_path / "run"))
    row = {"images": 1, "time": "\ud800", "images_per_second": speed}
    (run / "log.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (run / "samples").mkdir()
    Image.new("L", (4, 4), 9).save(run / "samples" / "metrics.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    monkeypatch.setattr("web.follow.CURVES", {})
    found = follow(str(run), tmp_path)
    assert found.about == r"1 of 1,024 images seen (0%), last line \ud800"
    assert found.metrics is None


def test_a_log_without_times_is_followed(tmp_path: Path) -> None:
    run = Path(save_run(tmp_path / "run"))
    (run / "log.jsonl").write_text('{"images": 128, "loss": 0.5}\n{"images": 64, "loss": 0.5}\n')
    assert "128 of 1,024 images" in follow(str(run), tmp_path).about


def test_other_folders_are_not_followed(drawing: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(drawing)):
        follow(drawing, tmp_path)


def test_messages_are_one_harmlessline() -> None:
    error = ValueError("from '/tmp/page-a1b2/picture.png':\n <b>wrong</b>")
    assert message(error) == "from 'picture.png': <b>wrong</b>"
    assert "&lt;b&gt;wrong" in line(message(error), failed=True)
    assert "<td>&lt;b&gt;</td><td>0.3333</td>" in table({"<b>": 1 / 3})
    assert message(FileNotFoundError(2, "No such file", "/tmp/page-a1b2/x")) == "x: No such file"


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The only line of demo.py, which ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        demo.main(argv)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_command_line_refuses_in_oneline(drawing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'nowhere'" in refused(capsys, "nowhere")
    assert "port=0 " in refused(capsys, "--port", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port={port} " in refused(capsys, drawing, "--port", str(port))


def test_a_missing_extra_is_oneline(
    drawing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.extra, "find_spec", lambda name: None)
    assert '".[demo]"' in refused(capsys, drawing)


def test_a_space_has_everything_that_its_page_imports(drawing: str, tmp_path: Path) -> None:
    export.main([drawing, "--to", "space", "--out", str(tmp_path / "space")])
    names = {path.name for path in (tmp_path / "space").iterdir()}
    assert names == {"export.json", *web.space.NAMES}
    assert not list((tmp_path / "space").rglob("__pycache__"))
    ours = {
        name for package in web.space.PACKAGES for file in (ROOT / package).rglob("*.py") for name, _ in imports(file)
    }
    assert ours & set(ARROWS) <= set(web.space.PACKAGES)
    model = load_model(tmp_path / "space" / "model")
    assert_close(model.net.state_dict(), load_model(drawing).net.state_dict())
    (listed,) = [
        line for line in (tmp_path / "space" / "requirements.txt").read_text().splitlines() if "torch>" in line
    ]
    assert listed in (ROOT / "pyproject.toml").read_text()
    front = (tmp_path / "space" / "README.md").read_text().split("---")[1]
    assert {"sdk: gradio", "app_file: app.py"} <= set(front.splitlines())


@pytest.mark.parametrize("flags", [["--push", "a/b"], ["--out", "x", "--label", "one"], ["--out", "x", "--private"]])
def test_a_space_refuses_other_options(drawing: str, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        export.main([drawing, "--to", "space", *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert any(flag.removeprefix("--") in line for flag in flags if flag.startswith("--") and flag != "--out")


@pytest.mark.parametrize("save", [save_classifier, save_upscaler])
def test_spaces_of_other_models(tmp_path: Path, save) -> None:
    folder = save(tmp_path / "model")
    export.main([folder, "--to", "space", "--out", str(tmp_path / "space")])
    assert describe(str(tmp_path / "space" / "model")) == describe(folder)
