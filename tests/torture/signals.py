"""Signals at random moments: every process saves and exits, and the next command repeats no update."""

import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.torture.runs import ROOT, RUNS_PER_TIME, Broken, Run, Started, require, send
from training import checkpoint
from training.stop import EXIT_CODE

MAX_SECONDS = 30.0
MAX_TRIES = 10


@dataclass(frozen=True)
class Way:
    """A way to stop a run, and the exit codes of the command that are accepted."""

    name: str
    processes: int
    ask: Callable[[Started, random.Random], None]
    codes: tuple[int, ...]
    quick: bool = False
    """whether it is part of --quick"""


def to_command(number: int) -> Callable[[Started, random.Random], None]:
    return lambda started, dice: send(started.process, number)


def to_one_rank(number: int) -> Callable[[Started, random.Random], None]:
    def ask(started: Started, dice: random.Random) -> None:
        if ranks := started.ranks():
            send(dice.choice(ranks), number)

    return ask


WAYS = [
    Way("SIGTERM to the process", 1, to_command(signal.SIGTERM), (EXIT_CODE,)),
    Way("SIGINT to the process", 1, to_command(signal.SIGINT), (EXIT_CODE,)),
    Way("SIGUSR1 to the process", 1, to_command(signal.SIGUSR1), (EXIT_CODE,)),
    Way("SIGHUP to the process", 1, to_command(signal.SIGHUP), (EXIT_CODE,)),
    Way("SIGTERM to torchrun", 2, to_command(signal.SIGTERM), (1,), quick=True),
    Way("SIGINT to torchrun", 2, to_command(signal.SIGINT), (1,)),
    Way("SIGTERM to one rank", 2, to_one_rank(signal.SIGTERM), (1,)),
    Way("SIGUSR1 to one rank", 2, to_one_rank(signal.SIGUSR1), (1,)),
    Way("SIGKILL to torchrun", 2, to_command(signal.SIGKILL), (-signal.SIGKILL,)),
]


def stop_until(folder: Path, quiet: Run, way: Way, times: int, dice: random.Random) -> dict[str, float]:
    """Stops runs like `quiet`, `times` times in total; returns the count and the longest time until all had ended.

    Each time all updates must be saved within `MAX_SECONDS`, and the next command must resume after the last update;
    the runs must end with the bits and the log of `quiet`. Raises Broken if not.
    """
    asked, slowest, number = 0, 0.0, 0
    while asked < times:
        number += 1
        require(number <= RUNS_PER_TIME * times, f"only {asked} of {number - 1} runs were stopped")
        run = replace(quiet, folder=folder / f"{way.name.replace(' ', '-')}-{number}")
        left = None
        while True:
            started = run.start()
            if left is not None:
                started.resumes_from(left)
            if asked == times or not trains(started, dice):
                code = started.wait()
                require(code == 0, f"{run.folder.name} ends with exit code {code}: {started.printed()[-2000:]}")
                break
            saved, seconds = stop(started, way, dice)
            slowest = max(slowest, seconds)
            if saved == run.images:
                run.finish()  # it was about to end
                break
            asked += 1
            left = saved
        run.check_same(quiet)
    return {"times": asked, "slowest_s": slowest}


def stop(started: Started, way: Way, dice: random.Random, limit: float = MAX_SECONDS) -> tuple[int, float]:
    """Stops a run in this way; returns the images of the newest checkpoint, and the seconds until all had ended.

    Raises Broken unless all updates were saved within `limit` seconds.
    """
    run, below, since = started.run, started.below(), time.monotonic()
    way.ask(started, dice)
    code = started.wait(below)
    seconds = time.monotonic() - since
    require(seconds < limit, f"{run.folder.name} took {seconds:.1f} s to stop")
    newest, damaged = checkpoint.newest(run.checkpoints)
    require(newest is not None and not damaged, f"{run.folder.name}: {damaged}")
    assert newest is not None
    if newest.images < run.images:
        require(code in way.codes, f"{run.folder.name} exits with {code}: {started.printed()[-2000:]}")
        require(
            f"after {newest.images:,} images, saved in" in started.printed(),
            f"{run.folder.name} does not print what it saved: {started.printed()[-2000:]}",
        )
    return newest.images, seconds


def trains(started: Started, dice: random.Random) -> bool:
    """Waits for a random moment after the first update; False if the run ends before."""
    log = started.run.folder / "log.jsonl"
    size = log.stat().st_size if log.exists() else 0
    end = 0.0
    while started.process.poll() is None:
        if not end and log.exists() and log.stat().st_size > size:
            end = time.monotonic() + dice.uniform(0, 1)
        if end and time.monotonic() > end:
            return True
        time.sleep(0.002)
    return False


def second_ctrl_c(folder: Path, quiet: Run, dice: random.Random) -> None:
    """A second Ctrl-C ends the process at once and loses no checkpoint. Raises Broken if not."""
    for number in range(MAX_TRIES):
        run = replace(quiet, folder=folder / f"ctrl-c-{number}")
        started = run.start()
        require(trains(started, dice), "the run ended too early")
        send(started.process, signal.SIGINT)
        started.wait_for("stopping after this update")
        send(started.process, signal.SIGINT)
        code = started.wait()
        require(code in (-signal.SIGINT, EXIT_CODE), f"a second Ctrl-C: exit code {code}: {started.printed()[-2000:]}")
        run.finish()
        run.check_same(quiet)
        if code == -signal.SIGINT:
            return  # otherwise the first Ctrl-C had already ended it
    raise Broken(f"none of {MAX_TRIES} second Ctrl-Cs ended the run")


def launcher_dies(folder: Path, quiet: Run, dice: random.Random) -> None:
    """`accelerate launch` does not forward SIGTERM: the process detects the end of its launcher, saves and exits."""
    run = replace(quiet, folder=folder / "accelerate")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    started = run.start([*launch, str(ROOT / "train.py"), *run.arguments])
    require(trains(started, dice), "the run ended too early")
    below = started.below()
    send(started.process, signal.SIGTERM)
    started.wait(below)
    require("stopped by the end of its launcher after" in started.printed(), started.printed()[-2000:])
    run.finish()
    run.check_same(quiet)


def restarts(folder: Path, quiet: Run, dice: random.Random) -> None:
    """`torchrun --max-restarts` resumes the run by itself when a process is killed."""
    run = replace(quiet, folder=folder / "restarts", launcher=("--standalone", "--max-restarts", "2"))
    started = run.start()
    for attempt in range(2):
        require(attempt == 0 or started.wait_for("resuming "), f"it did not restart: {started.printed()[-2000:]}")
        require(trains(started, dice), f"the run ended too early: {started.printed()[-2000:]}")
        send(dice.choice(started.ranks()), signal.SIGKILL)
    code = started.wait()
    require(code == 0, f"{run.folder.name} ends with exit code {code}: {started.printed()[-2000:]}")
    require("resuming" in started.printed(), "the run was not resumed")
    run.check_same(quiet)
