"""Writes docs/claims.md from what experiments measured, and their results and pictures to docs/experiments.

python -m experiments.claims [runs/experiments]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.figure import draw
from experiments.finding import Finding
from experiments.run import Settings
from storage.read import read_json, read_text
from storage.write import write_text
from training.script import ScriptParser, command

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "experiments" / "claims.yaml"
PAGE = ROOT / "docs" / "claims.md"
RESULTS = ROOT / "docs" / "experiments"
HEAD = """\
# Claims about residual networks

What papers and tutorials say of residual networks, and what our experiments measured. The page is written by
`python -m experiments.claims` from the results in `docs/experiments`; [experiments.md](experiments.md) shows how to run
them. Trained networks are small, and their images are the 8×8 digits: where seeds differ in sign, the verdict is
"too small to tell". Values per seed are given as median and range. Verdicts follow from the numbers by rules in the
code.
"""


def page(results: Mapping[str, Mapping[str, Any]], items: Mapping[int, Mapping[str, str]]) -> str:
    """The page of `results`, by experiment, and of the items of `claims.yaml`."""
    found = {item: list[tuple[str, Mapping[str, Any]]]() for item in items}
    for name, result in results.items():
        for claim in result["claims"]:
            if claim["item"] not in found:
                raise ValueError(f"{name}: item {claim['item']} is not in {TABLE.name}: add its claim")
            found[claim["item"]].append((name, claim))
    measured = {item: claims for item, claims in found.items() if claims}
    verdicts = [claim["verdict"] for claims in measured.values() for _, claim in claims]
    counts = ", ".join(f"{verdicts.count(verdict)} × {verdict}" for verdict in sorted(set(verdicts)))
    lines = [HEAD, f"{len(measured)} of {len(items)} items are measured; verdicts: {counts}.", ""]
    lines += ["| | claim | source | verdict | measured | experiment |", "|---|---|---|---|---|---|"]
    for item, claims in measured.items():
        for name, claim in claims:
            link = f"[{name}](experiments/{name}.png)"
            row = items[item]["claim"], items[item].get("paper", ""), claim["verdict"], claim["measured"], link
            lines.append(f"| {item} | " + " | ".join(_cell(text) for text in row) + " |")
    lines += ["", "## Corrections", "", "Where the common form of a claim is wrong or loose:", ""]
    for item, each in items.items():
        if "correction" in each:
            source = f" ({each['paper']})" if "paper" in each else ""
            lines.append(f"- {item}. {each['claim']} **Correction**{source}: {' '.join(each['correction'].split())}")
    unmeasured = {item: each for item, each in items.items() if item not in measured}
    lines += ["", "## Not measured", ""]
    lines += [
        f"- {item}. {each['claim']} ({each.get('note', 'not yet measured')})" for item, each in unmeasured.items()
    ]
    return "\n".join(lines) + "\n"


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder, by experiment. Raises ValueError if there are none, and for one in short form."""
    found = {file.stem: read_json(file) for file in sorted(folder.glob("*.json"))}
    if not found:
        raise ValueError(f"{folder} has no results: run python -m experiments --out {folder}")
    for name, result in found.items():
        if result["short"]:
            raise ValueError(f"{folder / name}.json is of the short form, which shows nothing: run it without --short")
    return found


def read_items() -> dict[int, dict[str, str]]:
    """The items of `claims.yaml`, by number."""
    return dict(sorted(yaml.safe_load(read_text(TABLE)).items()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@command
def main(argv: Sequence[str]) -> None:
    """Writes the page."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Settings.out, help="folder of the results")
    folder = parser.parse_args(argv).folder
    results = read_results(folder)
    text = page(results, read_items())
    RESULTS.mkdir(exist_ok=True)
    for name, result in results.items():
        draw(Finding.read(result), RESULTS / f"{name}.png")
        write_text(RESULTS / f"{name}.json", json.dumps(result, ensure_ascii=False) + "\n")
    write_text(PAGE, text)
    print(f"{PAGE}: {len(results)} experiments")


if __name__ == "__main__":
    main()
