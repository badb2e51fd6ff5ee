"""Rewrites the table of docs/zoo.md from the registered models.

python -m benchmarks.zoo_table
"""

import re
from pathlib import Path

import resnet

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table() -> str:
    """One row per model, sorted by source and name."""
    names = sorted(resnet.list_models(), key=lambda name: (resnet.model_info(name).source, *_natural(name)))
    rows = ["| name | parameters | 10⁹ multiply-adds | side | published | source |", "|---|---|---|---|---|---|"]
    for name in names:
        info = resnet.model_info(name)
        numbers = f"{info.parameters:,} | {info.giga_multiply_adds:.3f} | {info.size_px}"
        rows.append(f"| `{name}` | {numbers} | {info.result} | {info.source} |")
    return "\n".join(rows) + "\n"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts resnet20 before resnet110."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
