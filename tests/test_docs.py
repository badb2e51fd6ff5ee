"""The pages for users and contributors: their links exist, and what they repeat equals its source."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import residual

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("docs/*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def links(page: Path) -> list[str]:
    """The targets of a page's links to files, without anchors and addresses."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [link for link in found if not link.startswith(("http:", "https:", "mailto:"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        assert (page.parent / link).resolve().exists(), link
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), (target, anchor)


def test_the_index_has_one_line_for_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    lines = [line for line in index.read_text().splitlines() if line.startswith("- [")]
    assert all(re.fullmatch(r"- \[[^\]]+\]\([^)]+\): .+\.", line) for line in lines)
    linked = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", index.read_text(), re.MULTILINE)
    assert len(linked) == len(set(linked))
    assert {page.name for page in PAGES} - {"index.md"} == {name for name in linked if not name.startswith("../")}
    assert "docs/index.md" in links(ROOT / "README.md")


def test_continuous_integration_runs_the_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    versions = [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert [f">={version}" for version in versions] == [requires]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_pre_commit_runs_the_commands_of_make_check() -> None:
    recipe = re.search(r"^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    *checks, large = repository["hooks"]
    assert [hook["entry"] for hook in checks] == commands
    assert not any(hook["pass_filenames"] for hook in checks)
    assert large["entry"] == ".venv/bin/python .ci/large_files.py"


def test_large_files_are_refused(tmp_path: Path) -> None:
    def check(*files: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / ".ci" / "large_files.py"), *map(str, files)]
        return subprocess.run(command, capture_output=True, text=True)

    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(200_000))
    large.write_bytes(bytes(200_001))
    assert check(small, tmp_path / "deleted").returncode == 0
    refused = check(small, large)
    assert refused.returncode == 1
    assert str(large) in refused.stdout
    assert str(small) not in refused.stdout


def test_no_file_of_the_repository_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    names = [name for name in listed.stdout.split("\0") if name]
    done = subprocess.run(
        [sys.executable, ".ci/large_files.py", *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "residual.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", residual.__version__)
    assert residual.__version__ in (ROOT / "CHANGELOG.md").read_text()
