"""Pictures of the web page for docs/web.md, from a browser without a window.

python -m benchmarks.page_pictures runs/digits runs/resnet8-digits runs/superresolution-photographs --out docs/page

The runs are those of the recipes of these names. Needs Chromium, and playwright of the extra [dev].
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

ROOT = Path(__file__).parent.parent
WIDTHS = (1280, 400)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STARTED = "page: "
"""how the line begins by which demo.py names its address"""
PATIENCE_MS = 240_000
"""until the page shows what is waited for, also on a busy machine"""
COLOURS = 64
"""of a palette, which keeps the files small"""


def find_browser() -> str | None:
    """The path of Chromium or Chrome; None if neither is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def free_port() -> int:
    """A port that no process uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(*models: str) -> Iterator[str]:
    """The address of the page of these folders, as long as the block lasts."""
    command = [sys.executable, "demo.py", *models, "--port", str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(STARTED), line
            yield line.removeprefix(STARTED).split()[0]
        finally:
            process.terminate()


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


class PageVisitor:
    """What a visitor does on the page."""

    def __init__(self, opened: Any, address: str, width: int) -> None:
        self.page = opened.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.goto(address)
        self.wait_for_model("This model")

    def wait_for_model(self, text: str) -> None:
        """Waits until the page describes the chosen model by this text."""
        self.page.locator("#about").get_by_text(text).wait_for()

    def choose(self, model: str, text: str) -> None:
        """Chooses a folder, whether it is offered or not, and waits until the page describes it by this text."""
        box = self.page.locator("#model input")
        box.fill(model)
        box.press("Enter")
        box.blur()
        self.wait_for_model(text)

    def open(self, tab: str) -> None:
        """Opens a tab, which is in a menu where the page is narrow."""
        button = self.page.get_by_role("tab", name=tab, exact=True)
        if not button.is_visible():
            self.page.locator(".overflow-menu > button").click()
            button = self.page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
        button.click()

    def upload(self, file: Path) -> None:
        """Uploads a file in the open tab."""
        chooser = self.page.get_by_role("tabpanel").filter(visible=True).locator("input[type=file]").first
        with self.page.expect_response(lambda response: "/upload?" in response.url):
            chooser.set_input_files(file)
        self.page.get_by_text(file.stem, exact=True).filter(visible=True).first.wait_for()

    def click(self, button: str, status: str, text: str) -> str:
        """Clicks a button, and waits for a text in a line of status. Returns the line."""
        self.page.get_by_role("button", name=button, exact=True).filter(visible=True).click()
        line = self.page.locator(f"#{status}").get_by_text(text)
        line.wait_for()
        return line.inner_text()

    def paint(self) -> None:
        """Paints over the middle of the picture in the editor."""
        canvas = self.page.locator("#editor canvas").first
        canvas.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        box, mouse = canvas.bounding_box(), self.page.mouse
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse.move(x - 40, y + 10)
        mouse.down()
        mouse.move(x + 40, y + 10, steps=10)
        mouse.up()
        self.page.wait_for_timeout(500)

    def save(self, path: Path) -> None:
        """Writes a picture of the whole page, with few colours."""
        self.page.wait_for_timeout(700)
        with Image.open(BytesIO(self.page.screenshot(full_page=True))) as picture:
            picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def visit(opened: Any, address: str, width: int, models: Sequence[str], files: Sequence[Path], out: Path) -> None:
    """Uses every tab, and writes a picture of each."""
    _, classifier, upscaler = models
    digit, photograph = files
    visitor = PageVisitor(opened, address, width)
    save = lambda name: visitor.save(out / f"{name}-{width}.png")  # noqa: E731
    visitor.page.get_by_text("Compare with a second setting").click()
    visitor.page.locator("#compare input").check()
    visitor.page.get_by_label("number input for Steps 2").fill("3")
    visitor.click("Draw", "draw-status", "finished")
    save("draw")
    visitor.open("Inpaint")
    visitor.click("Draw one to start from", "inpaint-status", "paint a part")
    visitor.paint()
    visitor.click("Inpaint", "inpaint-status", "finished")
    save("inpaint")
    visitor.open("Follow a run")
    visitor.click("Show", "follow-status", "images seen")
    save("follow")
    visitor.choose(upscaler, "times as high")
    visitor.open("Enlarge")
    visitor.upload(photograph)
    visitor.click("Enlarge", "enlarge-status", "enlarged in")
    save("enlarge")
    visitor.choose(classifier, "classifies")
    visitor.open("Classify")
    visitor.upload(digit)
    visitor.click("Classify", "classify-status", "%")
    save("classify")
    visitor.page.close()


def main() -> None:
    """Reads the command line, and writes the pictures."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("models", nargs=3, metavar="MODEL")
    p.add_argument("--out", type=Path, default=Path("docs/page"))
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch, served(*args.models) as address, browser() as opened:
        files = Path(scratch, "digit.png"), Path(scratch, "flower.png")
        Image.fromarray(np.round(load_digits().images[4] * 255 / 16).astype(np.uint8)).save(files[0])
        Image.fromarray(load_sample_images().images[1][100:260, 240:440]).save(files[1])
        for width in WIDTHS:
            visit(opened, address, width, args.models, files, args.out)


if __name__ == "__main__":
    main()
