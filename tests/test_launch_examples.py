"""The examples of launching are run as they are, with stand-ins for what this machine does not have."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.test_end_to_end import CONFIG, ROOT, launch, losses

SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit=1
worst=0
for number in 0 1; do SLURM_PROCID=$number SLURM_LOCALID=$number "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid"; code=$?; [ $code -gt $worst ] && worst=$code; done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && echo 127.0.0.1
[ "$1" = requeue ] && echo "requeued $2"
exit 0
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a process that finds our Python, and the stand-ins, first."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "srun": SRUN,
        "scontrol": SCONTROL,
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "torchrun": f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "digits.yaml").write_text(CONFIG)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    more = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PATH": f"{programs}:{os.environ['PATH']}"}
    return os.environ | more


FLAGS = ["--config", "digits.yaml", "--run", "run", "--data.cache", "cache"]


@pytest.mark.slow
def test_two_machines_train_what_one_does(tmp_path: Path, environment: dict[str, str]) -> None:
    launch(tmp_path, "train.py", "--config", "digits.yaml", "--run", "one", "--data.cache", "cache")
    meet = {"HEAD": "127.0.0.1", "PORT": str(free_port()), "GPUS": "1"}
    started = [
        subprocess.Popen(
            ["bash", str(ROOT / "examples/two_machines.sh"), *FLAGS],
            cwd=tmp_path, env=environment | meet | {"MACHINE": str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for process in started:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-4000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-5)


@pytest.mark.slow
def test_a_slurm_job_that_reaches_its_limit_is_requeued_and_goes_on(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    job = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": str(free_port()), "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}

    def submit(restarts: int) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(ROOT / "examples/slurm.sbatch"), "--fresh", *FLAGS, "--train.images", str(32 * 120)],
            cwd=tmp_path, env=environment | job | {"SLURM_RESTART_COUNT": str(restarts)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    first = submit(0)
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    for process in psutil.Process(first.pid).children(recursive=True):
        if process.cmdline()[1:2] == ["train.py"]:
            process.send_signal(signal.SIGUSR1)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 75, said
    assert "stopped by SIGUSR1 after" in said
    assert f"requeued {job['SLURM_JOB_ID']}" in said

    again = submit(1)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "resuming run from" in said
    assert "requeued" not in said
    assert len(losses(tmp_path / "run")) == 120  # one line per update: nothing repeated, nothing left out


@pytest.mark.parametrize("name", ["slurm.sbatch", "two_machines.sh"])
def test_the_examples_are_scripts_that_bash_can_read(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / "examples" / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
