"""Refuses files that are too large for the repository: `python .ci/large_files.py FILE ...`."""

import sys
from pathlib import Path

MAX_KB = 200


def main(names: list[str]) -> int:
    """Prints one line per file that is too large; returns the exit code."""
    sizes = {name: Path(name).stat().st_size for name in names if Path(name).is_file()}
    large = {name: size for name, size in sizes.items() if size > MAX_KB * 1000}
    for name, size in large.items():
        print(f"{name} has {size / 1000:.0f} kB, at most {MAX_KB} kB are allowed; publish it elsewhere, or shrink it")
    return 1 if large else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
