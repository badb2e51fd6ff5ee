"""Runs of train.py in separate processes, and the contents of their run folders."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from training import checkpoint

ROOT = Path(__file__).parents[2]
BATCH = 32
QUIET_S = 600.0
"""seconds without output after which a command hangs; other programs may leave it little of the processor"""
RUNS_PER_TIME = 5
"""at most; a run may end before the moment at which it is to be disturbed"""
CONFIG = """
data: {source: digits, cache: cache}
augment: {flip: true}
model: {base_channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, attention_levels: [1], groups: 4,
        dropout: 0.1}
objective: {schedule: cosine, prediction: v}
sample: {num: 4, steps: 2}
train: {batch: 32, micro_batch: 8, log_every_images: 32, eval_every_images: 3200,
        trackers: [], precision: float32}
optimizer: {learning_rate: 1e-3}
ema: {power_widths: [0.1], snapshot_every_images: 320}
schedule: {warmup_images: 0}
"""


class Broken(Exception):
    """A guarantee does not hold."""


def require(holds: bool, message: str) -> None:
    """Raises Broken unless the guarantee holds."""
    if not holds:
        raise Broken(message)


@dataclass(frozen=True)
class Run:
    """A run folder and the command that trains it, on one process or by torchrun on two."""

    folder: Path
    updates: int
    saves_every: int
    processes: int = 1
    launcher: tuple[str, ...] = ()
    """further arguments of torchrun"""
    flags: tuple[str, ...] = ()
    """further arguments of train.py"""
    script: Path = ROOT / "train.py"
    """or another one that runs it"""

    @property
    def command(self) -> list[str]:
        (self.folder.parent / "torture.yaml").write_text(CONFIG)
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(self.processes)]
        torchrun += [*(self.launcher or ["--standalone"]), "--"]
        alone = self.processes == 1 and not self.launcher
        return [sys.executable, *([] if alone else torchrun), str(self.script), *self.arguments]

    @property
    def arguments(self) -> list[str]:
        flags = {"config": "torture.yaml", "run": self.folder.name, "train.images": self.images}
        flags["train.checkpoint_every_images"] = self.saves_every * BATCH
        return [*(word for name, value in flags.items() for word in (f"--{name}", str(value))), *self.flags]

    def start(self, command: Sequence[str] = ()) -> "Started":
        """Starts the command."""
        return Started(self, list(command) or self.command)

    def finish(self) -> str:
        """Runs the command to its end; returns its output. Raises Broken if it fails."""
        started = self.start()
        code = started.wait()
        require(code == 0, f"{self.folder.name} ends with exit code {code}: {started.printed()[-2000:]}")
        return started.printed()

    @property
    def images(self) -> int:
        """of the whole run"""
        return self.updates * BATCH

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file of tensors after the last update."""
        last = self.checkpoints / f"{self.images:09d}"
        return {file.name: checkpoint.sha256(file) for file in sorted(last.glob("*.safetensors"))}

    @property
    def snapshots(self) -> dict[str, str]:
        """SHA-256 of each file in the folder of snapshots."""
        return {file.name: checkpoint.sha256(file) for file in sorted((self.folder / "snapshots").iterdir())}

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Images seen and loss, line by line of the log."""
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        return [(line["images"], line["loss"]) for line in lines if "loss" in line]

    def check_same(self, quiet: "Run") -> None:
        """Raises Broken unless tensors and log equal those of the undisturbed run."""
        require(len(self.hashes) == 4, f"{self.folder.name} has no checkpoint of its last update")
        require(self.hashes == quiet.hashes, f"{self.folder.name}: other bits than the undisturbed run")
        require(self.snapshots == quiet.snapshots, f"{self.folder.name}: other snapshots than the undisturbed run")
        require(self.losses == quiet.losses, f"{self.folder.name}: another log than the undisturbed run")


class Started:
    """A running command with all its child processes; its output goes to a file."""

    def __init__(self, run: Run, command: list[str]) -> None:
        self.run = run
        self.output = run.folder.with_name(f"{run.folder.name}.out")
        environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.date = time.time()
        """when it was started, comparable with the times of files"""
        with self.output.open("w") as out:
            self.process = psutil.Popen(
                command, cwd=run.folder.parent, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def printed(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, *what: str, seconds: float = QUIET_S) -> bool:
        """Whether one of the texts appears before the command ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            if any(text in self.printed() for text in what):
                return True
            if ended:
                return False
            time.sleep(0.005)
        raise Broken(f"{self.run.folder.name}: {what!r} did not appear in {seconds:.0f} s: {self.printed()[-2000:]}")

    def resumes_from(self, images: int) -> None:
        """Raises Broken unless the command resumes from that checkpoint, or finds the run finished by it."""
        on, done = f"from {images:,} images", f"finished: {self.run.folder.name} has seen {images:,} images"
        found = self.wait_for(on, done) if images == self.run.images else self.wait_for(on)
        require(found, f"{self.run.folder.name} does not resume from {images} images: {self.printed()[-2000:]}")

    def wait(self, below: Sequence[psutil.Process] = ()) -> int:
        """The exit code, once the command and all its child processes (also `below`) have ended.

        Raises Broken if nothing was printed for `QUIET_S`.
        """
        below = [*below, *self.below()]
        size, end = -1, 0.0
        while True:
            try:
                code = self.process.wait(1)
                break
            except psutil.TimeoutExpired:
                if (now := self.output.stat().st_size) != size:
                    size, end = now, time.monotonic() + QUIET_S
                elif time.monotonic() > end:
                    self.kill()
                    raise Broken(f"{self.run.folder.name} hangs: {self.printed()[-2000:]}") from None
        _, alive = psutil.wait_procs(below, QUIET_S)
        require(not alive, f"{self.run.folder.name}: child processes remain")
        return code

    def below(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.process.children(recursive=True)
        return []

    def ranks(self) -> list[psutil.Process]:
        """The training processes, by rank; without a launcher, the command itself."""
        found = {}
        for process in [self.process, *self.below()]:
            with contextlib.suppress(psutil.Error):
                if any(word.endswith("train.py") for word in process.cmdline()[:3]):
                    found[int(process.environ().get("RANK", 0))] = process
        return [found[rank] for rank in sorted(found)]

    def kill(self) -> None:
        """SIGKILL to the command and all its child processes."""
        for process in [self.process, *self.below()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def send(process: psutil.Process, number: int) -> None:
    """Sends a signal if the process still exists."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.Signals(number))
