"""A process that hangs: who is named, and what does not count."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.training.hung_rank import UPDATE
from training.config import TrainConfig
from training.watchdog import Progress, Watchdog, watching

ROOT = Path(__file__).parents[2]
LIMIT_S = 10.0


class Store(dict):
    """A store of torch.distributed in this process."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]


class Processes:
    """Watchdogs of several processes, without threads, and a clock."""

    def __init__(self, ranks: int) -> None:
        self.now, store = 0.0, Store()
        self.progress = [Progress() for _ in range(ranks)]
        self.dogs = [
            Watchdog(progress, rank, ranks, LIMIT_S, 1, store, lambda: self.now)
            for rank, progress in enumerate(self.progress)
        ]

    def mark(self, *phases, update: int = 2, micro_batch: int = 0) -> None:
        for progress, phase in zip(self.progress, phases, strict=True):
            progress.now = phase, update, micro_batch

    def wait(self, seconds: float, frozen: int | None = None) -> dict[int, str]:
        """What the watchdogs find in the next seconds, by rank; that of a `frozen` process does not look."""
        found = {}
        end = self.now + seconds
        while self.now < end and not found:
            self.now += self.dogs[0].interval_s
            problems = {dog.rank: dog.look() for dog in self.dogs if dog.rank != frozen}
            found = {rank: problem for rank, problem in problems.items() if problem is not None}
        return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_process_that_computes_for_too_long_is_named(ranks):
    processes = Processes(ranks)
    processes.mark("computing", *["waiting"] * (ranks - 1), update=7)
    found = processes.wait(1.1 * LIMIT_S)
    assert processes.now >= LIMIT_S
    assert set(found) == set(range(1, ranks)), "those that wait"
    assert "process 0" in found[1]
    assert "update 7" in found[1]
    assert set(found.values()) <= {found[1], ""}, "one message"


def test_a_process_that_does_not_even_publish_is_named():
    processes = Processes(3)
    processes.mark("waiting", "waiting", "waiting")
    processes.wait(1)
    processes.mark("waiting", "waiting", "between", update=3)
    assert "process 2" in processes.wait(1.1 * LIMIT_S, frozen=2)[0]


def test_processes_that_wait_for_each_other_end():
    processes = Processes(2)
    processes.mark("waiting", "waiting")
    assert "update 2" in processes.wait(1.1 * LIMIT_S)[0]


@pytest.mark.parametrize("phase", ["reading", "between", "left"])
def test_only_computing_counts(phase):
    processes = Processes(2)
    processes.mark("waiting", phase)
    assert processes.wait(10 * LIMIT_S) == {}


def test_a_process_that_has_left_is_not_named():
    processes = Processes(2)
    processes.mark("waiting", "left")
    processes.wait(1)
    assert processes.wait(10 * LIMIT_S, frozen=1) == {}


def test_the_first_update_does_not_count():
    processes = Processes(2)
    processes.mark("waiting", "computing", update=1)
    assert processes.wait(10 * LIMIT_S) == {}


def test_progress_starts_the_time_again():
    processes = Processes(2)
    for micro_batch in range(3):
        processes.mark("waiting", "computing", micro_batch=micro_batch)
        assert processes.wait(0.9 * LIMIT_S) == {}
    for update in range(3, 6):
        processes.mark("waiting", "computing", update=update)
        assert processes.wait(0.9 * LIMIT_S) == {}
    assert processes.wait(0.2 * LIMIT_S) != {}


@pytest.mark.parametrize("value", [0.0, -1.0, 0.5, 7201.0, float("nan"), float("inf")])
def test_a_limit_that_makes_no_sense_is_refused(value):
    with pytest.raises(ValueError, match=f"hang_seconds={value}"):
        TrainConfig(hang_seconds=value)


def test_training_goes_on_to_its_stop_if_the_launcher_is_gone(monkeypatch, capsys):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = dist.PrefixStore("group", dist.TCPStore("127.0.0.1", server.port, is_master=False))
    del server
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr("training.processes.CONNECT", timedelta(milliseconds=50))
    with watching(Progress(), 10.0, first=1):
        pass
    assert "processes that hang are no longer noticed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_other_process_ends_and_names_the_one_that_hangs(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [str(ROOT / "tests/training/hung_rank.py"), str(tmp_path), "3", "30"]
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, "of torchrun"
    (line,) = [line for line in done.stderr.splitlines() if "error: process" in line]
    assert "process 1" in line
    assert f"update {UPDATE}" in line
    assert "train.hang_seconds=3" in line
