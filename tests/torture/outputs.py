"""SIGKILL at random moments of sample.py and export.py over an earlier output: the old output stays, or the new one."""

import hashlib
import random
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from storage.write import staging_folder
from tests.torture.runs import ROOT, RUNS_PER_TIME, Run, Started, require, send


@dataclass(frozen=True)
class Script:
    """A script that replaces the folder `out` of its working folder, with two sets of arguments."""

    name: str
    old: tuple[str, ...]
    new: tuple[str, ...]


SCRIPTS = [
    Script("sample.py", ("--num", "8", "--steps", "2"), ("--num", "200", "--steps", "20", "--batch", "4", "--npz")),
    Script("export.py", ("--label", "3"), ("--label", "7")),
]


def kill_until(folder: Path, quiet: Run, script: Script, kills: int, dice: random.Random) -> dict[str, int]:
    """Kills `script`, drawing from or exporting the model of `quiet`, `kills` times over an earlier output.

    After each kill the folder must be the old or the new one, file by file, at the latest after the next command, which
    must end with the bits of an undisturbed one. Returns counts. Raises Broken if not.
    """
    count = {"kills": 0, "old": 0, "new": 0, "between two renames": 0}
    name = script.name.partition(".")[0]
    run = replace(quiet, folder=folder / f"{name}-output")
    old, new = (contents(finish(run, quiet, script, arguments)) for arguments in (script.old, script.new))
    seconds = 0.5
    for _ in range(RUNS_PER_TIME * kills):
        if count["kills"] == kills:
            break
        finish(run, quiet, script, script.old)
        require(contents(run.folder) == old, f"{script.name} does not write the same again")
        started = start(run, quiet, script, script.new)
        if not wait_for_staging(started, run.folder):
            started.wait()
            continue
        since = time.monotonic()
        time.sleep(dice.uniform(0, seconds))
        below = started.below()
        send(started.process, signal.SIGKILL)
        if started.wait(below) == 0:  # it was faster
            seconds = max(0.01, min(seconds, time.monotonic() - since))
            continue
        count["kills"] += 1
        found = contents(run.folder)
        require(found in (old, new, {}), f"{script.name}: a kill has left a mixture: {sorted(found)}")
        count["old" if found == old else "new" if found == new else "between two renames"] += 1
        finish(run, quiet, script, script.new)
        require(contents(run.folder) == new, f"{script.name} does not finish what a kill has interrupted")
        left = [path.name for path in run.folder.parent.glob(f"tmp-*{run.folder.name}")]
        require(not left, f"{script.name}: {left} remain")
    require(count["kills"] == kills, f"only {count['kills']} of {RUNS_PER_TIME * kills} commands were killed")
    return count


def start(run: Run, quiet: Run, script: Script, arguments: tuple[str, ...]) -> Started:
    python = quiet.command[0]
    return run.start([python, str(ROOT / script.name), str(quiet.folder), "--out", str(run.folder), *arguments])


def finish(run: Run, quiet: Run, script: Script, arguments: tuple[str, ...]) -> Path:
    started = start(run, quiet, script, arguments)
    code = started.wait()
    require(code == 0, f"{script.name} ends with exit code {code}: {started.printed()[-2000:]}")
    return run.folder


def wait_for_staging(started: Started, folder: Path) -> bool:
    """Waits until the command writes; False if it ends before."""
    while started.process.poll() is None:
        if staging_folder(folder).is_dir():
            return True
        time.sleep(0.0005)
    return False


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
