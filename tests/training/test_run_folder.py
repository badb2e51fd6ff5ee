import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.training.test_checkpoint import flip
from tests.training.toy import BATCH, ToyTask, config, resolved, train
from training.data import DataConfig
from training.run_folder import RunFolder
from training.step import TrainingSettings
from training.yaml_file import FORMAT_VERSION

HALF = 5 * BATCH


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    data: DataConfig = field(default_factory=DataConfig)


def opened(path, fresh: bool = False, other: dict | None = None, **changes) -> RunFolder:
    """A folder that was opened, and closed again."""
    folder = RunFolder(path)
    with contextlib.closing(folder):
        settings = config(**changes)
        folder.open(Settings(**vars(settings)), resolved(settings, **other or {}), fresh)
    return folder


def test_new_resume_finished(tmp_path):
    path = tmp_path / "deep" / "run"
    assert opened(path).status == "new"
    assert opened(path).status == "new", "nothing was trained yet"
    train(path, images=HALF)
    assert opened(path, images=HALF).status == "finished"
    longer = opened(path)
    assert longer.status == "resume"
    assert longer.resume_from is not None
    assert longer.resume_from.images == HALF


def test_the_resolved_config_is_stored(tmp_path):
    opened(tmp_path / "run", other={"model": {"channels": 64}})
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert stored["format_version"] == FORMAT_VERSION
    assert stored["model"] == {"channels": 64}
    assert stored["optimizer"]["kind"] == "adamw"
    assert stored["optimizer"]["betas"] == [0.9, 0.999]


def test_another_config_is_refused_with_both_values(tmp_path):
    train(tmp_path / "run", images=HALF)
    differences = ("train.seed=0 .*1", "optimizer.learning_rate=0.01 .*0.02", "model.channels=absent .*64")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'run'))} .*{'.*'.join(differences)}.*--fresh"):
        opened(tmp_path / "run", learning_rate=0.02, seed=1, other={"model": {"channels": 64}})


def test_what_may_change(tmp_path):
    train(tmp_path / "run", images=HALF)
    changes = {
        "log_every_images": 16,
        "eval_every_images": 24,
        "checkpoint_every_images": 32,
        "trackers": ("tensorboard",),
        "keep_last": 3,
    }
    changes |= {"micro_batch": 4, "keep_every_images": 64, "compile": True}
    assert opened(tmp_path / "run", images=2 * HALF, **changes).status == "resume"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]["keep_last"] == 3


@pytest.mark.parametrize(
    "data", [{"cache": "there"}, {"source": "moved"}, {"max_bad": 20}, {"label_file": "moved.jsonl"}, {"labels": True}]
)
def test_the_images_may_move(tmp_path, data):
    train(tmp_path / "run", images=HALF)
    assert opened(tmp_path / "run", other={"data": data}).status == "resume"


def test_images_of_another_size_are_refused(tmp_path):
    train(tmp_path / "run", images=HALF)
    with pytest.raises(ValueError, match=r"data\.size=absent .*9"):
        opened(tmp_path / "run", other={"data": {"size": 9}})


def test_before_anything_was_trained_the_config_may_change(tmp_path):
    opened(tmp_path / "run")
    assert opened(tmp_path / "run", seed=1).status == "new"


def test_a_run_without_its_checkpoints_is_refused(tmp_path):
    path = tmp_path / "run"
    train(path, images=HALF)
    log = (path / "log.jsonl").read_text()
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(ValueError, match=r"log\.jsonl.* no checkpoint.*--fresh"):
        opened(path)
    assert (path / "log.jsonl").read_text() == log
    assert opened(path, fresh=True).status == "new"


def test_fresh_moves_the_old_run_aside(tmp_path, capsys):
    train(tmp_path / "run", images=HALF)
    assert opened(tmp_path / "run", fresh=True, seed=1).status == "new"
    train(tmp_path / "run", images=HALF, seed=1)
    assert opened(tmp_path / "run", fresh=True).status == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.1", "run.2"}
    assert opened(tmp_path / "run.1", images=HALF).status == "finished"
    assert f"moved the old run to {tmp_path / 'run.2'}" in capsys.readouterr().out


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, fresh):
    (tmp_path / "thesis.tex").write_text("…")
    text = f"{tmp_path} is not a run folder (no config.yaml); give another --run"
    with pytest.raises(ValueError, match=re.escape(text)):
        opened(tmp_path, fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="run is a file, not a run folder; give another --run"):
        opened(tmp_path / "run")


def test_a_run_of_another_format_is_refused(tmp_path):
    train(tmp_path, images=HALF)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace(f"format_version: {FORMAT_VERSION}", "format_version: 9"))
    with pytest.raises(ValueError, match=r"config\.yaml.* 9.*--fresh"):
        opened(tmp_path)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(straight, checkpoint_every_images=2 * BATCH)
    train(broken, checkpoint_every_images=2 * BATCH)
    flip(broken / "checkpoints/000000080/optimizer.safetensors")
    folder = opened(broken, checkpoint_every_images=2 * BATCH)
    assert folder.status == "resume"
    assert folder.resume_from is not None
    assert folder.resume_from.images == 8 * BATCH
    out = capsys.readouterr().out
    assert "checkpoint 000000080 is damaged: optimizer.safetensors has changed since it was written (SHA-256)" in out
    assert "moved to damaged-000000080" in out
    train(broken, checkpoint_every_images=2 * BATCH)
    for file in ("model", "ema", "optimizer"):
        name = f"checkpoints/000000080/{file}.safetensors"
        assert (broken / name).read_bytes() == (straight / name).read_bytes()


def test_no_intact_checkpoint_is_an_error(tmp_path):
    train(tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .* is intact .*state.json cannot be read.*--fresh"):
        opened(tmp_path)


def test_what_a_killed_process_left_is_cleared(tmp_path):
    train(tmp_path, images=HALF)
    (tmp_path / "checkpoints/tmp-000000048").mkdir()
    (tmp_path / "model").rename(tmp_path / "tmp-old-model")
    opened(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000000000", "000000040"]
    assert (tmp_path / "model/model.safetensors").is_file()


def test_a_run_whose_last_evaluation_failed_is_not_finished(tmp_path):
    task = ToyTask()
    task.fail_evaluation = True
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, task, images=HALF)
    assert opened(tmp_path, images=HALF).status == "resume"
    again = train(tmp_path, images=HALF)
    assert again.evaluated == [HALF]
    assert again.batches == []
    assert opened(tmp_path, images=HALF).status == "finished"


def test_a_folder_left_by_a_killed_process_can_be_opened(tmp_path):
    for name in ("lock", "tmp-config.yaml"):
        (tmp_path / name).write_text("")
    assert opened(tmp_path).status == "new"


def test_a_folder_in_use_is_refused_and_fresh_does_not_move_it(tmp_path):
    path = tmp_path / "run"
    train(path, images=HALF)
    with contextlib.closing(RunFolder(path)) as first:
        first.open(config(), resolved(config()))
        who = f"in use by process {os.getpid()} on {socket.gethostname()} since "
        for fresh in (False, True):
            with pytest.raises(ValueError, match=re.escape(who) + r"\d{4}-.*; wait until it ends, stop it, or give"):
                opened(path, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert opened(path).status == "resume"


def test_a_folder_that_is_refused_is_not_held(tmp_path):
    train(tmp_path, images=HALF)
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=r"train\.seed=0 .*1"):
        folder.open(config(), resolved(config(seed=1)))
    assert opened(tmp_path).status == "resume"


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    code = "import sys; from tests.training.test_run_folder import held; held(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    with process, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(process.kill)
        assert process.stdout is not None
        assert "held\n" in iter(process.stdout.readline, "")
        with pytest.raises(ValueError, match=f"{tmp_path} is in use by process {process.pid} on "):
            opened(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == process.pid, "the killed process did not clean up"
    assert opened(tmp_path).status == "new"


def held(path: str) -> None:
    """Run in a process of its own: opens a run folder and waits to be killed."""
    folder = RunFolder(path)
    folder.open(config(), resolved(config()))
    print("held", flush=True)
    signal.pause()


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert opened(tmp_path).status == "new"
    text = f"the file system of {tmp_path} has no locks"
    assert text in capsys.readouterr().out


def test_a_run_started_again_by_its_launcher_is_not_moved_aside_again(tmp_path, monkeypatch):
    path = tmp_path / "run"
    train(path, images=HALF)
    assert opened(path, fresh=True).status == "new"
    train(path, images=HALF)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert opened(path, fresh=True).status == "resume"
    monkeypatch.setattr("os.getppid", lambda: 0)
    assert opened(path, fresh=True).status == "new", "another launcher, which was restarted before it came here"
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
