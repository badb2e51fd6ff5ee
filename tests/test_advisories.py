"""The check of advisories: which versions they affect, by OSV's rules, and that an unusable file is no clean result."""

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parent.parent / ".ci" / "advisories.py"
SPEC = importlib.util.spec_from_file_location("advisories", FILE)
assert SPEC is not None
assert SPEC.loader is not None
advisories = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(advisories)


def advisory(package: str = "Pillow", ecosystem: str = "PyPI", **affected: Any) -> dict[str, Any]:
    return {
        "id": "PYSEC-1",
        "aliases": ["CVE-1"],
        "summary": "a picture\nwrites beyond its buffer",
        "affected": [{"package": {"name": package, "ecosystem": ecosystem}, **affected}],
    }


def span(*events: tuple[str, str], kind: str = "ECOSYSTEM") -> dict[str, Any]:
    return {"ranges": [{"type": kind, "events": [dict([event]) for event in events]}]}


@pytest.fixture
def sbom(tmp_path: Path) -> Path:
    """Two packages of PyPI, and one of another kind with the name of the first."""
    packages = [("pillow", "12.3.0", "pypi"), ("ruamel_yaml", "0.9", "pypi"), ("pillow", "1.0", "npm")]
    components = [{"name": name, "version": v, "purl": f"pkg:{kind}/{name}@{v}"} for name, v, kind in packages]
    path = tmp_path / "sbom.cdx.json"
    path.write_text(json.dumps({"bomFormat": "CycloneDX", "components": components}))
    return path


def database(folder: Path, *found: dict[str, Any]) -> Path:
    folder.mkdir()
    for number, each in enumerate(found):
        (folder / f"{number}.json").write_text(json.dumps(each))
    return folder


@pytest.mark.parametrize(
    ("affected", "applies"),
    [
        ({"versions": ["12.3.0"]}, True),
        ({"versions": ["12.3"]}, True),
        ({"versions": ["12.2.9", "12.3.1"]}, False),
        ({"versions": ["12.3.0-what"]}, True),
        (span(("introduced", "0"), ("fixed", "12.3.1")), True),
        (span(("introduced", "0"), ("fixed", "12.3")), False),
        (span(("introduced", "0"), ("last_affected", "12.3.0")), True),
        (span(("introduced", "0"), ("last_affected", "12.2.9")), False),
        (span(("introduced", "12.4")), False),
        (span(("fixed", "13"), ("introduced", "12"), ("fixed", "9"), ("introduced", "0")), True),
        (span(("introduced", "0"), ("fixed", "9"), ("introduced", "12.10")), False),
        (span(("introduced", "0"), kind="GIT"), False),
        ({}, False),
    ],
)
def test_which_versions_an_advisory_affects(affected: dict[str, Any], applies: bool) -> None:
    for version in ("12.3.0", "12.3.0+cpu"):
        assert (advisories.report(advisory(**affected), "pillow", version) is not None) == applies


def test_what_applies_is_a_line_with_the_version_that_mends_it(tmp_path: Path, sbom: Path, capsys: Any) -> None:
    every = span(("introduced", "0"), ("fixed", "12.3.1"))
    every["ranges"] += span(("introduced", "0"), ("fixed", "0f1e2d"), kind="GIT")["ranges"]
    found = database(tmp_path / "db", advisory(**every), advisory("Ruamel.YAML", **every), advisory("other", **every))
    assert advisories.main(str(found), str(sbom)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pillow 12.3.0: PYSEC-1, CVE-1: ")
    assert lines[0].endswith("; fixed in 12.3.1")
    assert lines[1].startswith("ruamel-yaml 0.9: ")
    assert lines[2:] == ["packages: 2, advisories: 3, findings: 2"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in found.iterdir():
            archive.write(path, path.name)
    assert advisories.main(str(tmp_path / "all.zip"), str(sbom)) == 1
    assert capsys.readouterr().out.splitlines() == lines


def test_nothing_applies(tmp_path: Path, sbom: Path, capsys: Any) -> None:
    every = span(("introduced", "0"))
    withdrawn = advisory(**every) | {"withdrawn": "2026-01-01T00:00:00Z"}
    found = database(tmp_path / "db", withdrawn, advisory(ecosystem="npm", **every), advisory("other", **every))
    assert advisories.main(str(found), str(sbom)) == 0
    assert capsys.readouterr().out == "packages: 2, advisories: 2, findings: 0\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("db", None),
        ("db/0.json", None),
        ("db/0.json", "{"),
        ("db/0.json", "[]"),
        ("db/0.json", '{"affected": [{"package": {"name": "pillow", "ecosystem": "PyPI"}, "ranges": [{}]}]}'),
        ("all.zip", "PK"),
        ("sbom.cdx.json", None),
        ("sbom.cdx.json", "{"),
        ("sbom.cdx.json", "{}"),
        ("sbom.cdx.json", "[]"),
    ],
)
def test_an_unusable_file_is_no_clean_result(
    file: str, content: str | None, tmp_path: Path, sbom: Path, capsys: Any
) -> None:
    """One line names the file, or the folder of the database. None: it is absent."""
    found = database(tmp_path / "db", advisory(**span(("introduced", "0"))))
    if content is not None:
        (tmp_path / file).write_text(content)
    elif file == "db":
        found.rename(tmp_path / "other")
    else:
        (tmp_path / file).unlink()
    if file == "all.zip":
        found = tmp_path / file
    assert advisories.main(str(found), str(sbom)) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert str(sbom if file == sbom.name else found) in error


def test_a_damaged_archive_is_no_clean_result(tmp_path: Path, sbom: Path, capsys: Any) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.json", json.dumps(advisory(**span(("introduced", "0")))))
    content = bytearray(path.read_bytes())
    content[40:60] = b"\xff" * 20
    path.write_bytes(content)
    assert advisories.main(str(path), str(sbom)) == 2
    assert str(path) in capsys.readouterr().err
