"""Known vulnerabilities of installed packages, without a network: `python .ci/advisories.py DATABASE SBOM`.

DATABASE is OSV's database of PyPI, `all.zip` or a folder with its JSON files; SBOM is a bill of materials, CycloneDX as
JSON. Prints one line for each advisory that applies. Exit code 0: none applies, 1: some do, 2: a file is unusable.
Source: the evaluation of versions in the OSV schema, https://ossf.github.io/osv-schema.
"""

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

BILL = "a bill of materials of CycloneDX, as JSON"
OSV = "OSV's all.zip of PyPI, or a folder with its files"
START = "0"
"""the version in an event that stands before all others"""


def main(database: str, sbom: str) -> int:
    """Prints what applies and how much was compared; returns the exit code."""
    compared, found = 0, list[str]()
    try:
        with readable(sbom, BILL):
            packages = read_packages(Path(sbom))
        if not packages:
            raise ValueError(f"{sbom} lists no package of PyPI with a version; give {BILL}")
        with readable(database, OSV):
            for advisory in read_advisories(Path(database)):
                compared += 1
                found += [line for name, version in packages.items() if (line := report(advisory, name, version))]
        if not compared:
            raise ValueError(f"{database} has no advisory; give {OSV}")
    except ValueError as error:
        print(f"advisories.py: error: {error}", file=sys.stderr)
        return 2
    print(*sorted(found), f"packages: {len(packages)}, advisories: {compared:,}, findings: {len(found)}", sep="\n")
    return 1 if found else 0


@contextmanager
def readable(path: str, kind: str) -> Iterator[None]:
    """Turns errors of the block, which reads a file of this kind, into a ValueError of one line that names the file."""
    try:
        yield
    except Exception as error:  # zlib and zipfile have errors of their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} cannot be read ({reason}); give {kind}") from None


def read_packages(sbom: Path) -> dict[str, str]:
    """The version of each package of PyPI, by its normalised name."""
    components = json.loads(sbom.read_text(encoding="utf-8")).get("components", [])
    return {
        normalised(each["name"]): each["version"]
        for each in components
        if each.get("purl", "").startswith("pkg:pypi/") and "version" in each
    }


def read_advisories(database: Path) -> Iterator[dict[str, Any]]:
    """The advisories that were not withdrawn."""
    if database.is_dir():
        texts = (path.read_text(encoding="utf-8") for path in sorted(database.glob("*.json")))
        yield from (each for each in map(json.loads, texts) if "withdrawn" not in each)
        return
    with zipfile.ZipFile(database) as archive:
        for name in archive.namelist():
            if name.endswith(".json") and "withdrawn" not in (advisory := json.loads(archive.read(name))):
                yield advisory


def report(advisory: dict[str, Any], name: str, version: str) -> str | None:
    """A line about an advisory that applies to a version of a package; None if it does not."""
    affected = [
        each
        for each in advisory.get("affected", [])
        if each.get("package", {}).get("ecosystem") == "PyPI" and normalised(each["package"]["name"]) == name
    ]
    if not any(is_affected(each, version) for each in affected):
        return None
    fixed = [event["fixed"] for each in affected for events in spans(each) for event in events if "fixed" in event]
    names = ", ".join([advisory["id"], *advisory.get("aliases", [])])
    way_out = f"; fixed in {', '.join(fixed)}" if fixed else ""
    return f"{name} {version}: {names}: {advisory.get('summary', 'no summary')!r}{way_out}"


def is_affected(affected: dict[str, Any], version: str) -> bool:
    """Whether a version is listed, or in one of the ranges. Parts such as +cpu are ignored. True also if a version
    cannot be compared."""
    try:
        public = Version(Version(version).public)
        listed = map(Version, affected.get("versions", []))
        return any(in_range(events, public) for events in spans(affected)) or public in listed
    except InvalidVersion:
        return True


def spans(affected: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The events of each range of versions. Ranges of another type are commits."""
    return [span["events"] for span in affected.get("ranges", []) if span["type"] == "ECOSYSTEM"]


def in_range(events: list[dict[str, str]], version: Version) -> bool:
    """Whether a version is at or behind an `introduced`, without a `fixed` or `last_affected` that ends it."""
    inside = False
    for event in sorted(events, key=lambda event: Version(next(iter(event.values())))):
        ((kind, text),) = event.items()
        bound = Version(text)
        if kind == "introduced" and (text == START or version >= bound):
            inside = True
        elif (kind == "fixed" and version >= bound) or (kind == "last_affected" and version > bound):
            inside = False
    return inside


def normalised(name: str) -> str:
    """The name of a package as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python .ci/advisories.py DATABASE SBOM")
    raise SystemExit(main(*sys.argv[1:]))
