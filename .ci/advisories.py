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
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

START = "0"
"""the version in an event that stands before all others"""


def main(database: str, sbom: str) -> int:
    """Prints what applies and how much was compared; returns the exit code."""
    try:
        packages, compared, found = read_packages(Path(sbom)), 0, list[str]()
        for advisory in read_advisories(Path(database)):
            compared += 1
            found += [line for name, version in packages.items() if (line := report(advisory, name, version))]
        if not compared:
            raise ValueError(f"{database} has no advisory; give OSV's all.zip of PyPI, or a folder with its files")
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        print(f"advisories.py: error: {error}", file=sys.stderr)
        return 2
    print(*sorted(found), f"packages: {len(packages)}, advisories: {compared:,}, findings: {len(found)}", sep="\n")
    return 1 if found else 0


def read_packages(sbom: Path) -> dict[str, str]:
    """The version of each package of PyPI, by its normalised name. Raises ValueError if there is none."""
    components = json.loads(sbom.read_text(encoding="utf-8")).get("components", [])
    found = {
        normalised(each["name"]): each["version"]
        for each in components
        if each.get("purl", "").startswith("pkg:pypi/") and "version" in each
    }
    if not found:
        raise ValueError(f"{sbom} lists no package of PyPI with a version; give a bill of materials of CycloneDX")
    return found


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
    events = [event for each in affected for span in each.get("ranges", []) for event in span["events"]]
    fixed = [event["fixed"] for event in events if "fixed" in event]
    names = ", ".join([advisory["id"], *advisory.get("aliases", [])])
    way_out = f"; fixed in {', '.join(fixed)}" if fixed else ""
    return f"{name} {version}: {names}: {advisory.get('summary', 'no summary')!r}{way_out}"


def is_affected(affected: dict[str, Any], version: str) -> bool:
    """Whether a version is listed, or in one of the ranges. Parts such as +cpu are ignored. True also if a version
    cannot be compared."""
    spans = [span["events"] for span in affected.get("ranges", []) if span["type"] == "ECOSYSTEM"]
    try:
        public = Version(Version(version).public)
        return any(in_range(events, public) for events in spans) or public in map(Version, affected.get("versions", []))
    except InvalidVersion:
        return True


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
