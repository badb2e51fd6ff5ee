"""`python -m tests.fuzz --minutes 30`: random inputs of every kind, each kind in a process of its own; with a table."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import data, models
from tests.fuzz import settings as command_line
from tests.fuzz.boundary import Case, Kind, try_case

MEMORY = 2 << 30
"""bytes of data that a process may take beyond those after its start"""
ROUND = 200
"""inputs of a round, which one seed reproduces"""
MAX_FAILURES = 5
"""rounds of a kind that fail before it is left"""


def kinds() -> dict[str, Callable[[], Kind]]:
    """Makes all kinds of inputs, by name."""
    return data.kinds() | command_line.kinds() | models.kinds()


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    p.add_argument("--minutes", type=float, default=30.0, help="for all kinds together")
    p.add_argument("--only", choices=kinds(), help="one kind")
    p.add_argument("--seed", type=int, default=int(time.time()), help="of the first round of each kind")
    p.add_argument("--rounds", type=int, help=f"{ROUND} inputs each, instead of --minutes: 1 repeats a failure")
    p.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.here:
        rounds(args.only, args.seed, args.minutes * 60, args.rounds)
        return
    names = [args.only] if args.only else list(kinds())
    sys.exit(fuzz(names, args.seed, args.minutes * 60 / len(names), args.rounds))


def fuzz(names: list[str], first_seed: int, seconds: float, count: int | None) -> int:
    """Runs every kind in a process; returns 1 if an input had another end than a valid value or one line."""
    columns = ("inputs", "distinct", "accepted", "refused")
    print(f"seed {first_seed}\n{'kind':22}", *(f"{name:>9}" for name in (*columns, "failures")), flush=True)
    broken = 0
    for name in names:
        words = [sys.executable, "-m", "tests.fuzz", "--here", "--only", name, "--seed", str(first_seed)]
        words += ["--minutes", str(seconds / 60)] if count is None else ["--rounds", str(count)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        last = {"seed": first_seed, "inputs": 0, "distinct": 0, "accepted": 0, "refused": 0, "failures": []}
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                last = json.loads(line)
        if process.wait():
            last["failures"].append([last["seed"], f"the process ended with {process.returncode}"])
        print(f"{name:22}", *(f"{last[column]:9,}" for column in columns), f"{len(last['failures']):9}", flush=True)
        for number, text in last["failures"]:
            broken = 1
            print(f"python -m tests.fuzz --only '{name}' --rounds 1 --seed {number}\n{text}", flush=True)
    return broken


def rounds(name: str, first_seed: int, seconds: float, count: int | None) -> None:
    """Runs rounds of one kind until the time is over; prints one JSON line after each."""
    torch.set_num_threads(1)
    kind, end = kinds()[name](), time.monotonic() + seconds
    counts: dict[str, int] = {"inputs": 0, "accepted": 0, "refused": 0}
    seen: set[bytes] = set()
    failures: list[tuple[int, str]] = []
    limit_memory()
    with tempfile.TemporaryDirectory() as folder:
        number = first_seed
        while len(failures) < MAX_FAILURES and (number < first_seed + count if count else time.monotonic() < end):
            state = {"seed": number, **counts, "distinct": len(seen), "failures": failures}
            print(json.dumps(state), flush=True)
            try:
                play(kind, number, Path(folder) / "trial", counts, seen)
            except Exception as error:
                failures.append((number, describe(error)))
            number += 1
    print(json.dumps({"seed": number, **counts, "distinct": len(seen), "failures": failures}), flush=True)


def play(kind: Kind, number: int, root: Path, counts: dict[str, int], seen: set[bytes]) -> None:
    """One round: the inputs of one seed. Raises for one that fails, reduced to a small one."""

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.cases)
    def holds(case: Case) -> None:
        counts["inputs"] += 1
        seen.add(case.digest)
        counts["accepted" if try_case(kind, case, root) is None else "refused"] += 1

    holds()


def describe(error: BaseException) -> str:
    """The failure, where it was raised, and the input."""
    if isinstance(error, ExceptionGroup):
        return "\n".join(map(describe, error.exceptions))
    cause = error.__cause__ or error
    frames = "".join(traceback.format_tb(cause.__traceback__)[-5:])
    return f"{frames}{type(error).__name__}: {str(error)[:500]}\n" + "\n".join(getattr(error, "__notes__", ()))[:3000]


def limit_memory() -> None:
    """Limits the data of this process, so that memory beyond it is an error."""
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
