"""The examples of launching are run as they are, with stand-ins for what this machine does not have."""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from torch.distributed.run import get_args_parser as torchrun_parser

from tasks import RUNS
from tests.test_end_to_end import CONFIG, ROOT, launch, losses
from training.cli import parse

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
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-4000:]
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
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 75, output
    assert "stopped by SIGUSR1 after" in output
    assert f"requeued {job['SLURM_JOB_ID']}" in output

    again = submit(1)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "resuming run from" in output
    assert "requeued" not in output
    assert len(losses(tmp_path / "run")) == 120  # one line per update: nothing repeated, nothing left out


@pytest.mark.parametrize("name", ["slurm.sbatch", "two_machines.sh"])
def test_the_examples_are_scripts_that_bash_can_read(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / "examples" / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


MACHINES = ["--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "29400"]


def train_flags(words: list[str]) -> list[str]:
    """The flags of train.py in a command of torchrun, which its own parser reads first."""
    assert words[0] == "torchrun"
    read = torchrun_parser().parse_args(words[1:])
    assert read.training_script == "train.py"
    parse(RUNS, read.training_script_args)
    return read.training_script_args


@pytest.mark.parametrize("name", ["pytorchjob.yaml", "trainjob.yaml"])
def test_jobs_of_kubeflow_start_our_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = yaml.safe_load((ROOT / "examples" / name).read_text())
    assert re.fullmatch(r"[a-z0-9-]+", job["metadata"]["name"])
    if job["kind"] == "TrainJob":
        assert job["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
        trainer = job["spec"]["trainer"]
        assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
        containers = [trainer]
    else:
        assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
        replicas = job["spec"]["pytorchReplicaSpecs"]
        assert replicas.keys() == {"Master", "Worker"}
        pods = [replica["template"]["spec"] for replica in replicas.values()]
        containers = [container for pod in pods for container in pod["containers"]]
        for pod in pods:
            assert pod["securityContext"]["runAsNonRoot"]
            (container,) = pod["containers"]
            assert container["name"] == "pytorch"  # the operator looks for this name
            assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
            assert {m["name"] for m in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for container in containers:
        flags = train_flags([*container["command"], *container["args"]])
        assert flags[flags.index("--run") + 1].startswith("/runs/")


def test_skypilot_starts_the_two_machines(tmp_path: Path, environment: dict[str, str]) -> None:
    task = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text())
    assert task.keys() == {"name", "num_nodes", "workdir", "resources", "file_mounts", "envs", "setup", "run"}
    assert task["num_nodes"] == 2
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT"
    done = subprocess.run(["bash", "-n"], input=task["setup"] + task["run"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "bin" / "torchrun").write_text('#!/bin/sh\necho torchrun "$@"\n')
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    given = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    done = subprocess.run(
        ["bash", "-euc", task["run"]],
        cwd=tmp_path,
        env=environment | given | task["envs"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:7] == ["torchrun", *MACHINES[:6]]
    assert words[words.index("--nproc_per_node") + 1] == "8"
    assert words[words.index("--") + 1 :] == ["train.py", *task["envs"]["FLAGS"].split()]


def test_ray_starts_torchrun_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for Ray, which calls the function of the second of two machines."""
    script = runpy.run_path(str(ROOT / "examples" / "ray_train.py"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    started: list[tuple[list[str], dict]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: started.append((command, options)))
    made: dict[str, dict] = {}

    class Trainer:
        def __init__(self, work: Callable[[dict], None], train_loop_config: dict, **options: object) -> None:
            self.work, self.config = work, train_loop_config

        def fit(self) -> None:
            self.work(self.config)

    ray, of_train, of_torch = (types.ModuleType(name) for name in ("ray", "ray.train", "ray.train.torch"))
    for name in ("FailureConfig", "RunConfig", "ScalingConfig"):
        setattr(of_train, name, lambda name=name, **options: made.setdefault(name, options))
    of_train.get_context = lambda: types.SimpleNamespace(get_world_rank=lambda: 1)
    of_torch.TorchTrainer, ray.train = Trainer, of_train
    for module in (ray, of_train, of_torch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    flags = ["--config", "configs/cifar10-ddpm.yaml", "--run", "runs/cifar10"]
    script["main"](["--machines", "2", "--gpus", "8", "--restarts", "3", "--", *flags])
    ((command, options),) = started
    assert command == ["torchrun", *MACHINES, "--nproc_per_node", "8", "--", "train.py", *flags]
    assert train_flags(command) == flags
    assert options == {"cwd": ROOT, "check": True}
    assert made["ScalingConfig"]["num_workers"] == 2
    assert made["ScalingConfig"]["resources_per_worker"] == {"GPU": 8}
    assert made["FailureConfig"] == {"max_failures": 3}


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.replace("\\\n", " ").splitlines() if line]


def test_the_image_of_the_dockerfile_is_not_run_by_root() -> None:
    steps = dockerfile()
    assert steps[0][0] == "FROM"
    assert {name for name, _ in steps} <= {"FROM", "RUN", "WORKDIR", "ENV", "COPY", "USER", "ENTRYPOINT", "CMD"}
    (user,) = [argument for name, argument in steps if name == "USER"]
    assert any(name == "RUN" and re.search(rf"useradd .*\b{user}\b", argument) for name, argument in steps)
    assert [name for name, _ in steps[-3:]] == ["USER", "ENTRYPOINT", "CMD"]


def test_the_dockerfile_copies_files_that_exist_and_runs_commands_that_are_read() -> None:
    steps = dockerfile()
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name, argument in steps:
        if name == "COPY":
            for path in argument.split()[:-1]:
                assert (ROOT / path).exists(), path
                assert path not in ignored
        if name == "RUN":
            done = subprocess.run(["bash", "-n"], input=argument, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")
    entry, command = (json.loads(argument) for name, argument in steps if name in ("ENTRYPOINT", "CMD"))
    assert entry == ["python"]
    assert (ROOT / command[0]).is_file()
    assert command[0] not in ignored


def test_the_dockerfile_installs_what_training_needs() -> None:
    (code,) = [re.search(r'python -c "(.+?)" >', argument) for name, argument in dockerfile() if "tomllib" in argument]
    assert code is not None
    listed = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {*project["dependencies"], *extras["sample"], *extras["train"]}
    assert set(listed.split("\n")) - {""} == {line for line in needed if not line.startswith("residual")}
