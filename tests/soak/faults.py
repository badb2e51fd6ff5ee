"""Faults of a run: those that its processes survive, those that end them, and damage between two commands."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.soak.slow_disk_train import SLOW
from tests.torture import damage, kills, signals
from tests.torture.disk import REFUSED
from tests.torture.runs import QUIET_S, Started, require, send
from training import checkpoint

PAUSE_S = (0.5, 3.0)
SLOW_S = (0.02, 0.3)
"""seconds that each flush and each renaming takes longer on a slow disk"""
SLOW_FOR_S = (2.0, 8.0)
SPARE_BYTES = 64 * 2**10
"""that the log and the output of a run may grow while the disk is full for everything larger"""


def pause(started: Started, dice: random.Random) -> str | None:
    """Stops one process or both for some seconds, as a busy machine does."""
    ranks = started.ranks()
    chosen = dice.choice([ranks, ranks[:1], ranks[-1:]])
    seconds = dice.uniform(*PAUSE_S)
    for process in chosen:
        send(process, signal.SIGSTOP)
    time.sleep(seconds)
    for process in chosen:
        send(process, signal.SIGCONT)
    return f"{len(chosen)} of {len(ranks)} processes for {seconds:.1f} s" if chosen else None


def slow_disk(started: Started, dice: random.Random) -> str | None:
    """Makes flushes and renamings slow for a while."""
    slow, seconds, end = started.run.folder.with_name(SLOW.name), dice.uniform(*SLOW_S), dice.uniform(*SLOW_FOR_S)
    slow.write_text(str(seconds))
    try:
        time.sleep(end)
    finally:
        slow.unlink()
    return f"{1000 * seconds:.0f} ms each flush, for {end:.0f} s"


def full_disk(started: Started, dice: random.Random) -> str | None:
    """Refuses writes as a full disk does (EFBIG by RLIMIT_FSIZE) until a checkpoint is not saved; None if the run ends.

    The limit lets the log grow, as lines that a full disk refuses would be lost.
    """
    run, ranks = started.run, started.ranks()
    growing = [file.stat().st_size for file in (run.folder / "log.jsonl", started.output) if file.exists()]
    before = started.printed().count(REFUSED)
    limits = [(process, limit) for process in ranks if (limit := limit_files(process, max(growing) + SPARE_BYTES))]
    try:
        while started.printed().count(REFUSED) == before:
            if started.process.poll() is not None:
                return None
            time.sleep(0.01)
        newest, damaged = checkpoint.newest(run.checkpoints)
        require(newest is not None and not damaged, f"{run.folder.name}: a full disk has damaged {damaged}")
        left = [path.name for path in run.checkpoints.glob("tmp-*")]
        require(not left, f"{run.folder.name}: {left} remain after a full disk")
    finally:
        for process, limit in limits:
            limit_files(process, *limit)
    return "a checkpoint was refused, the one before is intact"


def limit_files(process: psutil.Process, size: int, most: int | None = None) -> tuple[int, int] | None:
    """Limits the size in bytes of the files that a process writes; returns the limits before, None without it."""
    try:
        before = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (size, before[1] if most is None else most))
    except psutil.NoSuchProcess:
        return None
    return before


SURVIVED: dict[str, Callable[[Started, random.Random], str | None]] = {
    "SIGSTOP, later SIGCONT": pause,
    "slow disk": slow_disk,
    "full disk": full_disk,
}
"""faults during which the processes go on; each returns what happened, or None if the run ended before"""


def killed(started: Started, dice: random.Random) -> str | None:
    """SIGKILL at a random moment, half of the times inside a save."""
    in_save = dice.random() < 0.5
    if not kills.wait_for_moment(started, in_save, dice):
        return None
    return f"to {kills.strike(started, dice)}{', inside a save' if in_save else ''}"


def asked_to_stop(started: Started, dice: random.Random) -> str | None:
    """A signal that is handled: all updates are saved."""
    way = dice.choice([way for way in signals.WAYS if way.processes == 2])
    _, seconds = signals.stop(started, way, dice, QUIET_S)
    return f"{way.name}: saved within {seconds:.1f} s"


ENDING: dict[str, Callable[[Started, random.Random], str | None]] = {"SIGKILL": killed, "signal": asked_to_stop}
"""faults that end all processes; each returns what happened, or None if the run ended before"""


def damaged_checkpoint(folder: Path, dice: random.Random) -> tuple[str, str] | None:
    """Damages the newest checkpoint, if there is an older one."""
    found = checkpoint.list_folders(folder / "checkpoints")
    if len(found) < 2:
        return None
    file = dice.choice(sorted(found[0].iterdir()))
    name, way = dice.choice([*damage.WAYS.items(), ("a pickle planted beside", damage.add_pickle)])
    way(file, dice)
    planted = "optimizer.bin" if way is damage.add_pickle else file.name
    return f"{name} {file.name}", f"checkpoint {found[0].name} is damaged: {planted}"


def damaged_cache(folder: Path, dice: random.Random) -> tuple[str, str] | None:
    """Damages a file of the cache of images."""
    file = dice.choice([file for file in sorted(folder.with_name("cache").rglob("*")) if file.is_file()])
    if not file.stat().st_size:
        return None
    name, way = dice.choice(list(damage.WAYS.items()))
    way(file, dice)
    return f"{name} {file.name}", ""


def half_a_line(folder: Path, dice: random.Random) -> tuple[str, str] | None:
    """Appends the first part of a line to the log, as a process that dies while it writes."""
    with (folder / "log.jsonl").open("rb+") as log:
        lines = log.read().splitlines()
        if not lines:
            return None
        part = lines[-1][: dice.randrange(1, len(lines[-1]))]
        log.write(part)
    return f"{len(part)} of {len(lines[-1])} bytes of a line", "damaged lines were removed: "


BETWEEN: dict[str, Callable[[Path, random.Random], tuple[str, str] | None]] = {
    "damaged checkpoint": damaged_checkpoint,
    "damaged cache": damaged_cache,
    "half a line in the log": half_a_line,
}
"""faults between two commands; each returns what happened, and what the next command must print, or None"""
