"""A full disk before or during a save: reported, nothing lost, training continues."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tests.torture.runs import RUNS_PER_TIME, Run, Started, require
from training import checkpoint

SIZE_BYTES = 160 * 2**20
REFUSED = "NOT SAVED"


class NotPossible(Exception):
    """A small disk cannot be mounted on this machine."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of `SIZE_BYTES` in memory, mounted at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotPossible(f"no small disk can be mounted here ({error})") from None
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_until(folder: Path, quiet: Run, times: int, dice: random.Random) -> dict[str, int]:
    """Fills the disk of runs like `quiet`, `times` times in total, every other time during a save; returns counts.

    Each time the previous checkpoint must stay intact, and no part of the new one may remain. When there is disk space
    again, the run saves, and ends with the bits of `quiet`. Raises Broken if not, NotPossible without a small disk.
    """
    count = {"times": 0, "during a save": 0, "runs": 0}
    with small_disk(folder / "disk") as disk:
        while count["times"] < times:
            count["runs"] += 1
            require(
                count["runs"] <= RUNS_PER_TIME * times,
                f"only {count['times']} of {count['runs'] - 1} disks were filled",
            )
            run = replace(quiet, folder=disk / f"full-{count['runs']}")
            started = run.start()
            try:
                while count["times"] < times and fill(started, count, dice):
                    count["times"] += 1
                code = started.wait()
            finally:
                started.kill()
            if code == 2:  # no disk space for the last checkpoint
                require("the last updates are not saved" in started.printed(), started.printed()[-2000:])
                run.finish()
            else:
                require(code == 0, f"{run.folder.name} ends with exit code {code}: {started.printed()[-2000:]}")
            require(run.hashes == quiet.hashes, f"{run.folder.name}: other bits than the undisturbed run")
            others = run.snapshots.items() - quiet.snapshots.items()
            require(not others, f"{run.folder.name}: other snapshots than the undisturbed run: {sorted(others)}")
            require(set(run.losses) <= set(quiet.losses), f"{run.folder.name}: another log than the undisturbed run")
    return count


def fill(started: Started, count: dict[str, int], dice: random.Random) -> bool:
    """Fills the disk until a save fails, checks, and frees the disk again; False if the run ends before."""
    run, during = started.run, count["times"] % 2 == 1
    refused, end = started.printed().count(REFUSED), time.monotonic() + dice.uniform(0, 0.5)
    if not started.wait_for("checkpoints: "):
        return False
    while time.monotonic() < end or (during and not any(run.checkpoints.glob("tmp-*"))):
        if started.process.poll() is not None:
            return False
    ballast = run.folder.parent / "ballast"
    try:
        occupy(ballast, leave=0 if during else dice.randrange(2**20))
        while started.printed().count(REFUSED) == refused:
            if started.process.poll() is not None:
                return False
            time.sleep(0.002)
        newest, damaged = checkpoint.newest(run.checkpoints)
        require(newest is not None and not damaged, f"{run.folder.name}: a full disk has damaged {damaged}")
        left = [path.name for path in run.checkpoints.glob("tmp-*")]
        require(not left, f"{run.folder.name}: {left} remain after a full disk")
        count["during a save"] += during
    finally:
        ballast.unlink(missing_ok=True)
    return True


def occupy(ballast: Path, leave: int) -> None:
    """Enlarges `ballast` until at most `leave` bytes of its disk are free, while other processes write to it."""
    with ballast.open("wb") as file:
        while (more := os.statvfs(ballast).f_bavail * os.statvfs(ballast).f_frsize - leave) > 0:
            with suppress(OSError):  # another process was faster
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)
