"""The page in a browser without a window: what visitors click, see and download."""

import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import export
import sample
from benchmarks.page_pictures import PATIENCE_MS, WIDTHS, PageVisitor, browser, find_browser, free_port, served
from pictures.files import read_image
from tests.web.models import (
    save_classifier,
    save_diffusion_upscaler,
    save_drawing,
    save_pipeline,
    save_run,
    save_upscaler,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="neither Chromium nor Chrome is installed"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    kinds = {
        "drawing": save_drawing,
        "classifier": save_classifier,
        "upscaler": save_upscaler,
        "run": save_run,
        "pipeline": save_pipeline,
        "diffusion_upscaler": save_diffusion_upscaler,
    }
    return {name: save(folder / name) for name, save in kinds.items()}


@pytest.fixture(scope="module")
def opened(models: dict[str, str]) -> Iterator[tuple[Any, str]]:
    with served(*models.values()) as address, browser() as found:
        yield found, address


@pytest.fixture(params=WIDTHS)
def visitor(opened: tuple[Any, str], request: pytest.FixtureRequest) -> Iterator[PageVisitor]:
    """A visitor of the page, whose browser requests nothing of other hosts."""
    found, address = opened
    visitor = PageVisitor(found, address, request.param)
    asked, errors = list[str](), list[str]()
    visitor.page.on("request", lambda sent: asked.append(sent.url))
    visitor.page.on("pageerror", lambda error: errors.append(str(error)))
    visitor.page.reload()
    visitor.wait_for_model("This model")
    yield visitor
    local = (address, address.replace("127.0.0.1", "localhost"), "data:", "blob:")
    assert asked
    assert [url for url in asked if not url.startswith(local)] == []
    assert errors == []
    assert visitor.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    visitor.page.close()


def downloaded(visitor: PageVisitor, selector: str) -> bytes:
    """The file behind a link or button."""
    with visitor.page.expect_download() as waiting:
        visitor.page.locator(selector).click()
    return Path(waiting.value.path()).read_bytes()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A colour picture that has the size of no model."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_draw_two_settings_and_download(visitor: PageVisitor, models: dict[str, str], tmp_path: Path) -> None:
    visitor.page.get_by_label("number input for Images").first.fill("3")
    visitor.page.get_by_label("number input for Steps", exact=True).first.fill("4")
    visitor.page.get_by_text("Compare with a second setting").click()
    visitor.page.locator("#compare input").check()
    visitor.page.get_by_label("number input for Steps 2").fill("2")
    visitor.click("Draw", "draw-status", "finished")
    visitor.page.locator("#drawn img").wait_for()
    visitor.page.locator("#drawn-2 img").wait_for()
    grid = np.asarray(Image.open(BytesIO(downloaded(visitor, "#drawn [data-testid=download-link]"))))
    for button, steps in (("#zip", "4"), ("#zip-2", "2")):
        out = tmp_path / steps
        sample.main([models["drawing"], "--num", "3", "--steps", steps, "--label", "all", "--out", str(out)])
        with zipfile.ZipFile(BytesIO(downloaded(visitor, button))) as files:
            assert {"samples.json", "labels.csv", "grid.png"} <= set(files.namelist())
            for name in ("images/000000.png", "images/000002.png"):
                with Image.open(files.open(name)) as image:
                    np.testing.assert_array_equal(np.asarray(image), read_image(out / name)[0])
        if steps == "4":
            np.testing.assert_array_equal(grid, np.asarray(Image.open(out / "grid.png").convert("RGB"))[..., 0])


def test_drawing_is_watched_and_stopped(visitor: PageVisitor) -> None:
    visitor.page.get_by_label("number input for Steps", exact=True).first.fill("250")
    visitor.click("Draw", "draw-status", "step ")
    visitor.page.locator("#drawn img").wait_for()
    assert visitor.click("Stop", "draw-status", "stopped") == "stopped"


def test_a_label_that_is_not_there(visitor: PageVisitor) -> None:
    box = visitor.page.locator("#label input")
    box.fill("elephant")
    box.press("Enter")
    assert "'elephant'" in visitor.click("Draw", "draw-status", "elephant")


def test_inpaint(visitor: PageVisitor, picture: Path) -> None:
    visitor.open("Inpaint")
    assert "no picture" in visitor.click("Inpaint", "inpaint-status", "there is no picture")
    visitor.upload(picture)
    visitor.page.locator("#inpaint-status").get_by_text("20×30 px was scaled").wait_for()
    assert "nothing is painted" in visitor.click("Inpaint", "inpaint-status", "nothing is painted")
    visitor.click("Draw one to start from", "inpaint-status", "paint a part")
    visitor.paint()
    visitor.click("Inpaint", "inpaint-status", "finished")
    visitor.page.locator("#inpainted img").wait_for()
    assert zipfile.is_zipfile(BytesIO(downloaded(visitor, "#inpaint-zip")))


@pytest.mark.parametrize("visitor", WIDTHS[:1], indirect=True)
def test_a_pipeline_of_diffusers_draws(visitor: PageVisitor, models: dict[str, str], tmp_path: Path) -> None:
    visitor.choose(models["pipeline"], "draws images of 16×16 px with 3 channels")
    visitor.page.get_by_label("number input for Images").first.fill("2")
    visitor.page.get_by_label("number input for Steps", exact=True).first.fill("2")
    visitor.click("Draw", "draw-status", "finished")
    visitor.page.locator("#drawn img").wait_for()
    sample.main([models["pipeline"], "--num", "2", "--steps", "2", "--out", str(tmp_path / "out")])
    with zipfile.ZipFile(BytesIO(downloaded(visitor, "#zip"))) as files, files.open("images/000001.png") as file:
        expected = read_image(tmp_path / "out/images/000001.png")
        np.testing.assert_array_equal(np.asarray(Image.open(file)).transpose(2, 0, 1), expected)
    visitor.open("Enlarge")
    visitor.upload(tmp_path / "out/images/000000.png")
    visitor.click("Enlarge", "enlarge-status", "enlarges no pictures")
    visitor.choose(models["diffusion_upscaler"], "times as high")
    visitor.open("Draw")
    visitor.click("Draw", "draw-status", "use the tab Enlarge")


@pytest.mark.parametrize("kind", ["upscaler", "diffusion_upscaler"])
def test_enlarge(visitor: PageVisitor, models: dict[str, str], picture: Path, kind: str) -> None:
    visitor.choose(models[kind], "times as high")
    visitor.open("Enlarge")
    visitor.click("Enlarge", "enlarge-status", "no picture is given")
    visitor.upload(picture)
    visitor.page.get_by_label("number input for Steps of a diffusion model").fill("2")
    visitor.click("Enlarge", "enlarge-status", "enlarged in")
    data = downloaded(visitor, "#enlarged [data-testid=download-link]")
    assert Image.open(BytesIO(data)).size == (60, 40)


def test_enlarging_is_stopped(visitor: PageVisitor, models: dict[str, str], tmp_path: Path) -> None:
    """It ends, so that the next picture is enlarged."""
    for name, size in (("large.png", (30, 30)), ("small.png", (6, 6))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    visitor.choose(models["diffusion_upscaler"], "times as high")
    visitor.open("Enlarge")
    visitor.page.get_by_label("number input for Steps of a diffusion model").fill("250")
    visitor.upload(tmp_path / "large.png")
    visitor.click("Enlarge", "enlarge-status", "%")
    with visitor.page.expect_response(lambda response: response.url.endswith("/cancel")):
        assert visitor.click("Stop", "enlarge-status", "stopped") == "stopped"
    clear = visitor.page.get_by_role("button", name="Clear", exact=True).filter(visible=True)
    clear.first.click()  # of the upload, the first of the tab
    visitor.upload(tmp_path / "small.png")
    visitor.page.get_by_label("number input for Steps of a diffusion model").fill("1")
    visitor.click("Enlarge", "enlarge-status", "small.png, 6×6 px, enlarged in")


def test_classify(visitor: PageVisitor, models: dict[str, str], picture: Path) -> None:
    visitor.choose(models["classifier"], "classifies")
    visitor.open("Classify")
    visitor.upload(picture)
    shown = visitor.click("Classify", "classify-status", "%")
    assert re.fullmatch(r"\w+, \d+\.\d%", shown)
    visitor.page.locator("#classes").get_by_text(shown.split(",")[0]).first.wait_for()
    visitor.page.locator("#classified img").wait_for()


@pytest.mark.parametrize("visitor", WIDTHS[:1], indirect=True)
def test_files_that_are_no_pictures_are_named(visitor: PageVisitor, models: dict[str, str], tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for model, about, tab, status in (
        ("classifier", "classifies", "Classify", "classify-status"),
        ("upscaler", "times as high", "Enlarge", "enlarge-status"),
    ):
        visitor.choose(models[model], about)
        visitor.open(tab)
        visitor.upload(text)
        assert "cannot be read" in visitor.click(tab, status, "text.png")


@pytest.mark.parametrize("visitor", WIDTHS[:1], indirect=True)
def test_folders_without_the_model_that_a_tab_needs(
    visitor: PageVisitor, models: dict[str, str], tmp_path: Path
) -> None:
    visitor.choose(str(tmp_path / "nowhere"), "there is no folder")
    visitor.choose(str(tmp_path), "no model in")
    visitor.choose(models["run"], "has not saved a model yet")
    assert "not saved one yet" in visitor.click("Draw", "draw-status", "no model in")
    visitor.open("Follow a run")
    visitor.click("Show", "follow-status", "128 of 1,024 images seen")
    visitor.page.locator("#figures").get_by_text("sample_mean").wait_for()
    visitor.choose(models["classifier"], "classifies")
    visitor.click("Show", "follow-status", "not the folder of a run")
    visitor.open("Draw")
    visitor.click("Draw", "draw-status", "neither config.yaml nor diffusion.json")


def wait_for_port(port: int) -> None:
    """Returns as soon as a process listens there."""
    for _ in range(PATIENCE_MS // 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(port)


def test_a_space_starts_from_its_own_folder(models: dict[str, str], opened: tuple[Any, str], tmp_path: Path) -> None:
    """As on the hub: only with the files of the folder, at the address that the environment gives."""
    export.main([models["drawing"], "--to", "space", "--out", str(tmp_path / "space")])
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path / "space", env=environment) as process:
        try:
            wait_for_port(port)
            visitor = PageVisitor(opened[0], f"http://127.0.0.1:{port}", WIDTHS[0])
            visitor.click("Draw", "draw-status", "finished")
            visitor.page.locator("#drawn img").wait_for()
            assert not visitor.page.get_by_role("tab", name="Follow a run").is_visible()
            visitor.page.close()
        finally:
            process.terminate()
