"""The soak: what it finds in series of samples and in run folders, and a minute of it."""

import contextlib
import csv
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from tests.soak.__main__ import Soak, numbers
from tests.soak.watch import BLOCK_S, EVERY_S, WARM_UP_S, Series, Slopes, Watch, processes_in
from tests.torture.runs import Broken, Run

ROOT = Path(__file__).parents[1]


def sampled(seed: int, growth_per_hour: float) -> Series:
    """Two minutes of a process with 200 MB, noise of 1 MB, and more in the warm-up before them."""
    seconds = np.arange(0, WARM_UP_S + 2 * BLOCK_S + 10, EVERY_S)
    noise = np.random.default_rng(seed).normal(0, 1e6, len(seconds))
    values = 2e8 + growth_per_hour * seconds / 3600 + noise - 1e8 * (seconds < WARM_UP_S - 1)
    return Series(0, seconds.tolist(), values.astype(int).tolist(), [9] * len(seconds), [3] * len(seconds))


def test_a_leak_is_distinguished_from_noise() -> None:
    flat, leaking = ([sampled(seed, growth) for seed in range(8)] for growth in (0.0, 1e8))
    found = Slopes.of(flat, "bytes")
    assert found is not None
    assert found.is_flat
    assert (found.processes, found.blocks, found.level) == (8, 16, pytest.approx(2e8, rel=0.01))
    found = Slopes.of(leaking, "bytes")
    assert found is not None
    assert not found.is_flat
    assert found.mean == pytest.approx(1e8, rel=0.5)
    files = Slopes.of(flat, "files")
    assert files is not None
    assert files.is_flat
    assert Slopes.of(flat[:4], "bytes") is None


def test_samples_are_written_with_their_process(tmp_path: Path) -> None:
    watch = Watch()
    watch.series = [sampled(0, 0.0), sampled(1, 0.0)]
    watch.close()
    watch.write(tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["bytes"]) for row in rows if row["process"] == "1"] == watch.series[1].bytes


@pytest.mark.parametrize(("code", "printed", "fine"), [(1, "the last updates are not saved", True), (1, "", False)])
def test_a_disk_that_is_full_at_the_end_of_a_run_is_no_failure(
    code: int, printed: str, fine: bool, tmp_path: Path
) -> None:
    """torchrun ends with 1 where a process ends with 2."""
    started = Mock(**{"wait.return_value": code, "printed.return_value": printed})
    soak = Soak(tmp_path, 60, 0)
    try:
        with contextlib.nullcontext() if fine else pytest.raises(Broken):
            assert soak.finish(started) == code
    finally:
        soak.watch.close()


def test_processes_are_found_by_their_folder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as process:
        assert any(text.startswith(f"{process.pid} ") for text in processes_in(tmp_path.resolve()))
        process.kill()
    assert processes_in(tmp_path.resolve()) == []


def test_logs_are_compared_without_the_clock(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"images": 32, "time": "1", "loss": 0.5, "data_wait": 0.1}\n{"images": 32, "saved": false}\n'
    )
    assert numbers(Run(tmp_path, 1, 1)) == [{"images": 32, "loss": 0.5}]


@pytest.mark.slow
def test_a_minute_of_faults_leaves_no_trace(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.soak", "--minutes", "1", "--seed", "3", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished: the bits, the log and the files of the reference" in done.stdout
