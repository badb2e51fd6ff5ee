"""The site of the documentation: every page is in its navigation, it builds, and nothing in it leads nowhere."""

import functools
import http.server
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDE = "index.html", "recipes.html", "benchmarks.html", "tutorial.html", "repository/index.html", "reference/unet.html"
"""pages that are opened in a browser: with the widest tables, code and pictures"""


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"([\w-]+\.md)$", navigation, re.MULTILINE)
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in listed, f"{page.name} is missing in mkdocs.yml"


def test_the_reference_has_the_names_of_the_packages() -> None:
    spec = importlib.util.spec_from_file_location("documentation", ROOT / ".ci" / "documentation.py")
    assert spec is not None
    assert spec.loader is not None
    documentation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(documentation)
    for module in documentation.REFERENCE:
        names = documentation.public_names(module)
        assert names
        assert all(hasattr(importlib.import_module(module), name) for name in names)


class Page(HTMLParser):
    """The anchors of a page, the addresses that it links to, and those that it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loads = {""}, list[str](), list[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given.get("id", ""), given.get("name", "")}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loads.append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as in strict mode: a warning is an error."""
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_links_lead_to_pages_and_anchors_and_nothing_is_loaded_from_the_network(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    for path, page in pages.items():
        for link in page.loads:
            assert not link.startswith(("http:", "https:", "//")), (path, link)
        for link in [*page.links, *page.loads]:
            if link.startswith(("http:", "https:", "mailto:", "data:")):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), (path, link)
            assert target not in pages or anchor in pages[target].anchors, (path, link)


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of sockets that the browser leaves open
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_pages_fit_the_window_and_load_nothing_from_the_network(address: str, width: int) -> None:
    """Wide tables and code scroll within the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        for name in WIDE:
            response = page.goto(f"{address}/{name}")
            assert response is not None
            assert response.ok, name
            assert page.evaluate("document.documentElement.scrollWidth") == width, name
        browser.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in requests), requests
