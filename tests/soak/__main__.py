"""`python -m tests.soak --minutes 60`: two processes under random faults that must leave no trace; with a table."""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.soak.faults import BETWEEN, ENDING, SURVIVED
from tests.soak.watch import MIN_BLOCKS, Slopes, Watch, processes_in, shared_memory
from tests.torture import signals
from tests.torture.runs import QUIET_S, Broken, Run, Started, require, send
from training import checkpoint
from training.lock import RunLock

REFERENCE_SHARE = 0.25
"""of the time, for the run without faults; the others are as long, so that memory can be watched once it has settled"""
LARGEST_REFERENCE_S = 1200.0
FAULTS_IN_A_LIFE = (0, 0, 1, 2, 4, 30)
"""that the processes survive before one ends them"""
RESTARTS = ("--standalone", "--max-restarts", "2")
CLOCK = {"time", "images_per_second", "data_wait"}
"""fields of the log that differ between equal runs"""
OF_TORCH = ("torchelastic_", "torchinductor_")
"""temporary folders that torchrun and PyTorch leave after every command"""
HOURS = 3600.0


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    p.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="of faults, after a reference that takes a quarter; the last run is then finished",
    )
    p.add_argument("--seed", type=int, default=int(time.time()), help="of the faults and their moments")
    p.add_argument("--out", type=Path, help="folder for the runs; a temporary one by default")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).resolve()
        temporaries = out / "temporary"
        temporaries.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(temporaries)
        sys.exit(Soak(out, args.minutes * 60, args.seed).run())


class Soak:
    """Runs under faults in `folder`, for so many seconds after the reference."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.folder, self.seconds, self.seed, self.dice = folder, seconds, seed, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.watch = Watch()
        self.begun = time.monotonic()
        self.console = Console(width=110)

    def run(self) -> int:
        """Trains the reference, then runs under faults until the time is over; returns 1 if a trace is left."""
        shared, problems, runs, quiet = shared_memory(), 0, 0, None
        try:
            quiet = self.reference()
            self.begun = time.monotonic()
            while not self.is_over():
                run = replace(quiet, folder=self.folder / f"run-{runs + problems + 1}")
                try:
                    self.disturb(run, is_one_life=not runs + problems)
                    check_no_trace(run, quiet, self.counts["damaged checkpoint"])
                    runs += 1
                    self.report(run, "finished: the bits, the log and the files of the reference")
                except Broken as error:  # the next run may find another problem
                    problems += 1
                    self.console.print(f"BROKEN: {error}", markup=False)
        finally:
            self.watch.close()
            self.watch.write(self.folder / "samples.csv")
        left = self.left() | {"shared memory": sorted(shared_memory() - shared)}
        flat = self.table(quiet, runs, problems, left)
        return int(bool(problems) or not flat or any(left.values()))

    def is_over(self) -> bool:
        return time.monotonic() - self.begun > self.seconds

    def report(self, run: Run, what: str) -> None:
        """Prints a line with the time and the images of the newest checkpoint."""
        names = [folder.name for folder in checkpoint.list_folders(run.checkpoints)]
        images = int(names[0]) if names else 0
        print(f"{time.strftime('%H:%M:%S')} {run.folder.name}, {images:7,} images saved: {what}", flush=True)

    def reference(self) -> Run:
        """A run without faults, whose length is what it trains in its share of the time."""
        flags = ("--ema.snapshot_every_images", "3200", "--train.eval_every_images", "3200")
        flags += ("--train.log_every_images", "1600")
        script = Path(__file__).with_name("slow_disk_train.py")
        endless = Run(self.folder / "reference", 10**6, 10, 2, flags=flags, script=script)
        started = endless.start()
        try:
            require(started.wait_for("images: loss"), f"the reference does not train: {started.printed()[-2000:]}")
            self.watch.follow(started)
            time.sleep(min(LARGEST_REFERENCE_S, REFERENCE_SHARE * self.seconds))
            way = next(way for way in signals.WAYS if way.name == "SIGUSR1 to one rank")
            signals.stop(started, way, self.dice, QUIET_S)
        finally:
            self.watch.follow(None)
            started.kill()
        newest, _ = checkpoint.newest(endless.checkpoints)
        assert newest is not None, "it has been saved"
        quiet = replace(endless, updates=newest.update + 1)  # it ends by itself
        quiet.finish()
        print(f"seed {self.seed}; the reference has {quiet.updates} updates", flush=True)
        return quiet

    def disturb(self, run: Run, is_one_life: bool) -> None:
        """Trains a run to its end under faults, if `is_one_life` under those that its processes survive.

        Raises Broken if a guarantee does not hold.
        """
        saved, expected = None, ""
        while True:
            restarts = not is_one_life and self.dice.random() < 0.25
            faults = None if is_one_life else self.dice.choice(FAULTS_IN_A_LIFE)
            started = (replace(run, launcher=RESTARTS) if restarts else run).start()
            try:
                code = self.live(started, saved, expected, restarts, faults)
            finally:
                self.watch.follow(None)
                started.kill()
            if code == 0:
                return
            require(not (left := processes_in(self.folder)), f"processes remain: {left}")
            newest, damaged = checkpoint.newest(run.checkpoints)
            require(not damaged, f"{run.folder.name}: damaged: {damaged}")
            saved, expected = newest.images if newest else None, ""
            if newest and self.dice.random() < 0.5:
                name = self.dice.choice(list(BETWEEN))
                if found := BETWEEN[name](run.folder, self.dice):
                    what, expected = found
                    self.counts[name] += 1
                    self.report(run, f"{name}: {what}")
                    if name == "damaged checkpoint":
                        saved = int(checkpoint.list_folders(run.checkpoints)[1].name)

    def live(self, started: Started, saved: int | None, expected: str, restarts: bool, faults: int | None) -> int:
        """Faults of one command: so many that it survives, and one that ends it; None for no such end.

        Returns 0 if the run is finished.
        """
        run = started.run
        if saved is not None:
            started.resumes_from(saved)
            require(expected in started.printed(), f"not reported: {expected!r}: {started.printed()[-2000:]}")
        if not signals.trains(started, self.dice):
            return self.finish(started)
        self.watch.follow(started)
        if self.is_over():
            return self.finish(started)
        if restarts and not self.restart(started):
            return self.finish(started)
        for _ in itertools.count() if faults is None else range(faults):
            time.sleep(self.dice.uniform(0, 20 * self.seconds / HOURS))
            if self.is_over() or not self.strike(started, SURVIVED):
                return self.finish(started)
        if restarts:  # a signal to a process would restart them
            below = started.below()
            started.kill()
            started.wait(below)
            self.counts["SIGKILL"] += 1
            self.report(run, "SIGKILL: to all processes")
            return 1
        return 1 if self.strike(started, ENDING) else self.finish(started)

    def strike(self, started: Started, faults: dict[str, Any]) -> bool:
        """One of the faults; False if the run ended before."""
        name = self.dice.choice(list(faults))
        if started.process.poll() is not None or (what := faults[name](started, self.dice)) is None:
            return False
        self.counts[name] += 1
        self.report(started.run, f"{name}: {what}")
        return True

    def restart(self, started: Started) -> bool:
        """SIGKILL to one process, after which torchrun restarts both; False if the run ended before."""
        self.watch.follow(None)
        before, ranks = started.printed().count("data: "), started.ranks()
        if not ranks:
            return False
        send(self.dice.choice(ranks), 9)
        end = time.monotonic() + QUIET_S
        while started.printed().count("data: ") == before:
            if started.process.poll() is not None:
                return False
            require(time.monotonic() < end, f"torchrun does not restart: {started.printed()[-2000:]}")
            time.sleep(0.05)
        if not signals.trains(started, self.dice):
            return False
        self.counts["restart"] += 1
        self.report(started.run, "restart: SIGKILL to one rank, both restarted by torchrun")
        self.watch.follow(started)
        return True

    def finish(self, started: Started) -> int:
        """Waits for the end of a command; returns 0 if the run is finished, another code if the disk was full then."""
        code = started.wait()
        printed = started.printed()
        full = code in (1, 2) and "the last updates are not saved" in printed  # 1 is the code of torchrun
        require(code == 0 or full, f"{started.run.folder.name} ends with exit code {code}: {printed[-2000:]}")
        return code

    def left(self) -> dict[str, list[str]]:
        """Processes, temporary files and this process's own files that remain, by kind."""
        temporaries = [path.name for path in (self.folder / "temporary").iterdir()]
        ours = [name for name in temporaries if not name.startswith(OF_TORCH)]
        self.counts["of torch"] = len(temporaries) - len(ours)
        return {"processes": processes_in(self.folder), "temporary files": ours}

    def table(self, quiet: Run | None, runs: int, problems: int, left: dict[str, list[str]]) -> bool:
        """Prints the table; returns whether memory, files and threads are flat."""
        minutes = (time.monotonic() - self.begun) / 60
        table = Table(title=f"soak, seed {self.seed}, {minutes:.0f} minutes", title_justify="left")
        table.add_column("what")
        table.add_column("result")
        for name in (*SURVIVED, *ENDING, "restart", *BETWEEN):
            table.add_row(name, str(self.counts[name]))
        updates = f", {quiet.updates} updates each" if quiet else ""
        table.add_row("runs that ended as the reference", f"{runs} of {runs + problems}{updates}")
        flat = True
        for rank in (0, 1):
            series = [each for each in self.watch.series if each.rank == rank]
            for name, unit, scale in (("bytes", "MB", 1e6), ("files", "", 1), ("threads", "", 1)):
                slopes = Slopes.of(series, name)
                if slopes is None:
                    table.add_row(f"{name} of rank {rank}", f"fewer than {MIN_BLOCKS} minutes after warm-up")
                    continue
                flat = flat and slopes.is_flat
                table.add_row(
                    f"{name} of rank {rank}",
                    f"{slopes.mean / scale:+.2f} ± {slopes.error / scale:.2f} {unit} per hour, at"
                    f" {slopes.level / scale:.0f}; {slopes.processes} processes, {slopes.blocks} minutes",
                )
        for name, found in left.items():
            table.add_row(f"{name} left", ", ".join(found) or "none")
        table.add_row("temporary folders of PyTorch left", str(self.counts["of torch"]))
        self.console.print(table)
        return flat


def check_no_trace(run: Run, quiet: Run, damaged: int) -> None:
    """Raises Broken unless tensors, log, model, images and the names of files equal those of the undisturbed run.

    Snapshots may be missing, as a full disk refuses them; `damaged` checkpoints may lie beside the others.
    """
    name = run.folder.name
    require(len(run.hashes) == 4, f"{name} has no checkpoint of its last update")
    require(run.hashes == quiet.hashes, f"{name}: other bits than the reference")
    others = run.snapshots.items() - quiet.snapshots.items()
    require(not others, f"{name}: other snapshots than the reference: {sorted(others)}")
    require(numbers(run) == numbers(quiet), f"{name}: another log than the reference")
    for part in ("model", "samples"):
        for file in sorted((quiet.folder / part).iterdir()):
            other = run.folder / part / file.name
            equal = other.exists() and (file.name == "metrics.png" or other.read_bytes() == file.read_bytes())
            require(equal, f"{name}: {part}/{file.name} differs")
    names = {path.name for path in quiet.folder.iterdir()} ^ {path.name for path in run.folder.iterdir()}
    require(not names, f"{name}: other files than the reference: {sorted(names)}")
    strange = [path.name for path in run.checkpoints.iterdir() if not checkpoint.is_name(path.name)]
    aside = [each for each in strange if each.startswith("damaged-")]
    require(len(aside) <= damaged and aside == strange, f"{name}: {strange} remain in checkpoints")
    lock = RunLock(run.folder / "lock")
    lock.acquire()  # raises ValueError if it is held
    lock.release()


def numbers(run: Run) -> list[dict[str, Any]]:
    """The lines of the log with losses and evaluations, without the fields of the clock."""
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    kept: Sequence[dict[str, Any]] = [line for line in lines if "loss" in line or "evaluated" in line]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in kept]


if __name__ == "__main__":
    main()
