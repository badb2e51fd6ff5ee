"""`python -m tests.torture [--quick]`: kills, damage, signals, full disks; with a table at the end."""

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.torture import damage, disk, kills, outputs, signals
from tests.torture.runs import Broken, Run


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    p.add_argument("--quick", action="store_true", help="some of each, in a few minutes")
    p.add_argument("--kills", type=int, default=200, help="SIGKILLs, half of them with two processes")
    p.add_argument("--signals", type=int, default=20, help="times that a run is stopped in each way")
    p.add_argument("--only", help="only the rows whose name contains this")
    p.add_argument("--seed", type=int, default=int(time.time()), help="of the random moments")
    p.add_argument("--out", type=Path, help="folder for the runs; a temporary one by default")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        sys.exit(torture(out, args))


def torture(out: Path, args: argparse.Namespace) -> int:
    """Runs every trial; returns 1 if a guarantee does not hold."""
    console, dice = Console(width=110), random.Random(args.seed)
    table = Table(title=f"torture, seed {args.seed}", title_justify="left")
    for column in ("what", "result", "seconds"):
        table.add_column(column)
    broken = 0
    for name, trial in trials(out, args, dice).items():
        if args.only and args.only not in name:
            continue
        console.print(f"{name} …")
        since = time.monotonic()
        try:
            result = trial()
        except Exception as error:  # the other trials run also after an unexpected error
            broken, result = 1, "[bold]broken[/bold], see above"
            console.print(str(error) if isinstance(error, Broken) else traceback.format_exc(), markup=False)
        table.add_row(name, result, f"{time.monotonic() - since:.0f}")
        console.print(f"  {result}")
    console.print(table)
    return broken


def trials(out: Path, args: argparse.Namespace, dice: random.Random) -> dict[str, Callable[[], str]]:
    """The trials by name; each returns its result as text."""
    updates = 60 if args.quick else 150
    quiet = {processes: Run(out / f"quiet{processes}", updates, 3, processes) for processes in (1, 2)}
    finished: set[int] = set()

    def undisturbed(processes: int) -> Run:
        if processes not in finished:
            quiet[processes].finish()
            finished.add(processes)
        return quiet[processes]

    def killed(processes: int, count: int) -> str:
        found = kills.kill_until(out, undisturbed(processes), count, dice)
        return (
            f"{found['kills']} of {count} resumed from a verified checkpoint, {found['inside a save']} killed inside a "
            f"save; {found['runs']} runs ended with the bits and log of the undisturbed one"
        )

    def stopped(way: signals.Way, count: int) -> str:
        found = signals.stop_until(out, undisturbed(way.processes), way, count, dice)
        return f"{found['times']} of {count} saved and exited, the slowest in {found['slowest_s']:.1f} s, none repeated"

    def damaged(most: int | None) -> str:
        count = damage.damage_all(out, undisturbed(1), dice, most)
        return f"{count} of {count} reported, the previous checkpoint used, the bits of the undisturbed run"

    def full(times: int) -> str:
        try:
            found = disk.fill_until(out, undisturbed(1), times, dice)
        except disk.NotPossible as error:
            return f"not tried: {error}"
        return (
            f"{found['times']} of {times} reported, {found['during a save']} of them during a save; "
            "the previous checkpoint intact, no partial files left, the bits of the undisturbed run"
        )

    def output(script: outputs.Script, count: int) -> str:
        found = outputs.kill_until(out, undisturbed(1), script, count, dice)
        return (
            f"{found['kills']} kills: {found['old']} left the old folder, {found['new']} the new one, "
            f"{found['between two renames']} between two renames; the next command ended with the bits of an "
            "undisturbed one"
        )

    def holds(trial: Callable[[Path, Run, random.Random], None], processes: int) -> str:
        trial(out, undisturbed(processes), dice)
        return "as documented"

    def row(count: int, way: signals.Way) -> Callable[[], str]:
        return lambda: stopped(way, count)

    def killed_output(script: outputs.Script, count: int) -> Callable[[], str]:
        return lambda: output(script, count)

    quick = args.quick
    rows = {
        "SIGKILL, 1 process": lambda: killed(1, 3 if quick else args.kills // 2),
        "SIGKILL, 2 processes": lambda: killed(2, 1 if quick else args.kills - args.kills // 2),
        **{way.name: row(1 if quick else args.signals, way) for way in signals.WAYS if not quick or way.quick},
        "newest checkpoint damaged": lambda: damaged(2 if quick else None),
        "disk full": lambda: full(2 if quick else 20),
        **{
            f"SIGKILL to {script.name} over an earlier output": killed_output(script, 1 if quick else 20)
            for script in outputs.SCRIPTS
        },
    }
    if quick:
        return rows
    return rows | {
        "second Ctrl-C": lambda: holds(signals.second_ctrl_c, 1),
        "SIGTERM to accelerate launch": lambda: holds(signals.launcher_dies, 1),
        "torchrun --max-restarts 2, two SIGKILLs": lambda: holds(signals.restarts, 2),
    }


if __name__ == "__main__":
    main()
