"""SIGKILL at random moments, half of them inside a save: to the run, to its launcher, to one of its processes."""

import contextlib
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

from tests.torture.runs import RUNS_PER_TIME, Run, Started, require, send
from tests.torture.signals import trains
from training import checkpoint

SHARE_AFTER_AN_UPDATE = 0.7
"""of the kills, so that runs come to their end however slow the machine is; the others come after the data are open"""
SECONDS_OF_A_START = 1.5
SECONDS_OF_A_SAVE = 0.02


def kill_until(folder: Path, quiet: Run, kills: int, dice: random.Random) -> dict[str, int]:
    """Trains runs like `quiet` and kills them `kills` times in total; returns counts of kills, kills in a save, runs.

    After each kill the newest checkpoint must verify and the next command resume from it; every run must end with the
    bits and the log of `quiet`. Raises Broken if not.
    """
    count = {"kills": 0, "inside a save": 0, "runs": 0}
    while count["kills"] < kills:
        count["runs"] += 1
        require(
            count["runs"] <= RUNS_PER_TIME * kills, f"only {count['kills']} of {count['runs'] - 1} runs were killed"
        )
        run = replace(quiet, folder=folder / f"killed{quiet.processes}-{count['runs']}")
        left = None  # images of the newest checkpoint after the last kill
        while True:
            started = run.start()
            if left is not None:
                started.resumes_from(left)
            in_save = count["inside a save"] * 2 <= count["kills"]
            if count["kills"] == kills or not wait_for_moment(started, in_save, dice):
                code = started.wait()
                require(code == 0, f"{run.folder.name} ends with exit code {code}: {started.printed()[-2000:]}")
                break
            strike(started, dice)
            count["kills"] += 1
            count["inside a save"] += saves(started)
            newest, damaged = checkpoint.newest(run.checkpoints)
            require(not damaged, f"{run.folder.name}: a kill has damaged {damaged}")
            left = newest.images if newest else None
        run.check_same(quiet)
    return count


def wait_for_moment(started: Started, in_save: bool, dice: random.Random) -> bool:
    """Waits for a random moment, mostly after an update of its own, inside a save of its own if `in_save`.

    False if the command ends before.
    """
    if dice.random() < SHARE_AFTER_AN_UPDATE:
        if not trains(started, dice):
            return False
    elif started.wait_for("data: "):
        time.sleep(dice.uniform(0, SECONDS_OF_A_START))
    while started.process.poll() is None:
        if not in_save:
            return True
        if saves(started):
            time.sleep(dice.uniform(0, SECONDS_OF_A_SAVE))
            return started.process.poll() is None
        time.sleep(0.0005)
    return False


def saves(started: Started) -> bool:
    """Whether the command writes or removes a checkpoint, or died of a kill while it did."""
    for path in started.run.checkpoints.glob("tmp-*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > started.date:
                return True
    return False


def strike(started: Started, dice: random.Random) -> str:
    """SIGKILL to all processes, to the launcher alone, or to one rank; then waits until all are gone. Returns which."""
    below = started.below()
    victims = {"all processes": [started.process, *below]}
    if below:
        victims |= {"the launcher": [started.process], "the first rank": below[:1], "the last rank": below[-1:]}
    name = dice.choice(list(victims))
    for process in victims[name]:
        send(process, signal.SIGKILL)
    started.wait(below)
    return name
