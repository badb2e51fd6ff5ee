import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import yaml

from storage.show import printable
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
    differences = (
        "train.seed=0 .*1",
        "optimizer.learning_rate=0.01 .*0.02",
        "model.channels=absent .*64",
        r"model.sides=absent .*\[null, true\]",
    )
    parts = (re.escape(str(tmp_path / "run")), *differences, "--run NEW --init ", "--fresh")
    with pytest.raises(ValueError, match=".*".join(parts)):
        opened(tmp_path / "run", learning_rate=0.02, seed=1, other={"model": {"channels": 64, "sides": [None, True]}})


def test_what_may_change(tmp_path):
    train(tmp_path / "run", images=HALF)
    changes = {
        "log_every_images": 16,
        "eval_every_images": 24,
        "checkpoint_every_images": 32,
        "trackers": ("tensorboard",),
        "keep_last": 3,
        "hang_seconds": 60.0,
    }
    changes |= {"micro_batch": 4, "keep_every_images": 64, "compile": True}
    assert opened(tmp_path / "run", images=2 * HALF, **changes).status == "resume"


def test_what_has_changed_is_written_once_the_run_goes_on(tmp_path):
    def keep_last() -> int:
        return yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["keep_last"]

    train(tmp_path, images=HALF)
    assert opened(tmp_path, images=2 * HALF, keep_last=3).status == "resume"
    assert keep_last() == 2, "the images or the model may still be refused"
    train(tmp_path, images=2 * HALF, keep_last=3)
    assert keep_last() == 3
    train(tmp_path, images=HALF, keep_last=4)
    assert keep_last() == 4, "of a finished run"


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
    assert train(tmp_path, task, images=HALF).finished
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
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    process = fork.Process(target=held, args=(tmp_path, ready))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ValueError, match=f"{tmp_path} is in use by process {process.pid} on "):
            opened(tmp_path)
    finally:
        process.kill()
        process.join()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == process.pid, "the killed process did not clean up"
    assert opened(tmp_path).status == "new"


def held(path: Path, ready: Event) -> None:
    """Run in a process of its own: opens a run folder and waits to be killed."""
    folder = RunFolder(path)
    folder.open(config(), resolved(config()))
    ready.set()
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


def test_a_resume_reports_a_damaged_line_of_the_log_and_keeps_the_rest(tmp_path, capsys):
    train(tmp_path, images=HALF, log_every_images=BATCH)
    path = tmp_path / "log.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"\0\xff", *lines[2:]]) + b"\n")
    assert opened(tmp_path, images=HALF).status == "finished"
    assert path.read_bytes().splitlines() == [lines[0], *lines[2:]]
    assert re.search(r"log\.jsonl: damaged lines .*: 2\n", capsys.readouterr().out)


NEWEST = "checkpoints/000000040"
DEEP = 100_000


def forged(**changes: object) -> Callable[[dict], str]:
    """A state.json with a matching hash, so that only its values are wrong. A value of ... leaves the field out."""

    def change(state: dict) -> str:
        state = {name: value for name, value in (state | changes).items() if value is not ... and name != "sha256"}
        digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
        return json.dumps(state | {"sha256": digest}, indent=2) + "\n"

    return change


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\0" * 100,
        "[" * DEEP,
        '{"files":' * DEEP + "1" + "}" * DEEP,
        '{"files": ' + "[" * 900 + "]" * 900 + "}",
        '{"images": ' + "1" * 5000 + "}",
        forged(images=-8),
        forged(images="40"),
        forged(images=40.0),
        forged(images=float("nan")),
        forged(images=True),
        forged(images=None),
        forged(images=...),
        forged(update=[]),
        forged(update=-5),
        forged(update=...),
        forged(batch={}),
        forged(processes="1"),
        forged(micro_batch="8"),
        forged(data=1),
        forged(config=[]),
        forged(machine=None),
        forged(written=...),
        forged(unlogged_updates=-1),
        forged(skipped_in_a_row=-1),
        forged(went_back=0.5),
        forged(unlogged_updates=None),
        forged(unlogged_sums=None),
        forged(unlogged_sums=[[1.0]]),
        forged(unlogged_sums=[["1", "2"]]),
        forged(unlogged_sums={"loss": 1.0}),
        forged(files=[]),
        forged(files={"../../lock": {"bytes": 1, "sha256": "0"}}),
        forged(files={"model.safetensors": None}),
        forged(files={"model.safetensors": {"bytes": "x", "sha256": 0}}),
        forged(format_version=None),
        forged(format_version=float("inf")),
        forged(format_version=[3]),
        forged(format_version=...),
    ],
)
def test_a_damaged_state_is_set_aside(tmp_path, capsys, text):
    train(tmp_path, images=HALF)
    state = tmp_path / NEWEST / "state.json"
    state.write_text(text if isinstance(text, str) else text(json.loads(state.read_text())))
    folder = opened(tmp_path, images=HALF)
    assert folder.status == "resume"
    assert folder.resume_from is not None
    assert folder.resume_from.images == 0
    assert re.search(r"checkpoint 000000040 is damaged: .*; moved to damaged-000000040", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_named_pipe_in_a_checkpoint_is_set_aside(tmp_path, capsys, name):
    train(tmp_path, images=HALF)
    (tmp_path / NEWEST / name).unlink()
    os.mkfifo(tmp_path / NEWEST / name)
    assert opened(tmp_path, images=HALF).status == "resume"
    assert f"checkpoint 000000040 is damaged: {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["7", "²", "٣", " 12", "-5", "12 ", "+5", "1e3", "０００００００４０", "notes\n.txt", "x" * 250]
)
@pytest.mark.parametrize("is_folder", [True, False])
def test_other_names_among_the_checkpoints_are_ignored(tmp_path, capsys, name, is_folder):
    train(tmp_path, images=HALF)
    path = tmp_path / "checkpoints" / name
    path.mkdir() if is_folder else path.write_text("")
    assert opened(tmp_path, images=HALF).status == "finished"
    assert path.exists()
    assert f"{printable(str(path))} is not a checkpoint and is ignored\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["000000080", "9" * 200])
def test_a_file_with_the_name_of_a_checkpoint_is_set_aside(tmp_path, capsys, name):
    train(tmp_path, images=HALF)
    (tmp_path / "checkpoints" / name).write_text("mine")
    assert train(tmp_path).finished
    assert (tmp_path / f"checkpoints/damaged-{name}").read_text() == "mine"
    assert f"checkpoint {name} is not a folder; moved to damaged-{name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tmp-000000080", "tmp-x", "000000080"])
def test_links_among_the_checkpoints_are_not_followed(tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    train(tmp_path / "run", images=HALF)
    (tmp_path / "run/checkpoints" / name).symlink_to(outside)
    assert train(tmp_path / "run").finished
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("file", "mine")]


@pytest.mark.parametrize("name", ["log.jsonl", "lock", "config.yaml"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    train(tmp_path / "run", images=HALF)
    path, target = tmp_path / "run" / name, tmp_path / "target"
    path.rename(target)
    path.symlink_to(target)
    before = target.read_bytes()
    assert train(tmp_path / "run").finished
    assert target.read_bytes() == before
    assert not path.is_symlink()


@pytest.mark.parametrize("name", ["log.jsonl", "lock"])
def test_a_named_pipe_does_not_stop_a_run(tmp_path, name):
    train(tmp_path, images=HALF)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert train(tmp_path).finished
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "\xff", "{}", "[" * DEEP, '{"pid": 1}', '{"host": [], "pid": null, "x": 1}', "1" * 5000]
)
def test_the_content_of_the_lock_does_not_matter(tmp_path, text):
    (tmp_path / "lock").write_text(text, encoding="latin-1")
    assert opened(tmp_path).status == "new"
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_on_the_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        train(tmp_path / "run", images=HALF)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*")}
    assert modes == {path: (0o777 if path.is_dir() else 0o666) & ~mask for path in modes}
    assert len([path for path in modes if path.suffix == ".safetensors"]) == 7


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def as_link(path: Path) -> None:
    path.parent.rename(path.parents[1] / "elsewhere")
    path.parent.symlink_to(path.parents[1] / "elsewhere")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [os.unlink, flip, half, remove_folder, as_link, as_pipe])
@pytest.mark.parametrize("images", [HALF, 2 * HALF])
def test_a_damaged_model_is_restored_from_the_checkpoint(tmp_path, capsys, damage, images):
    train(tmp_path, images=HALF)
    file = tmp_path / "model/model.safetensors"
    before = file.read_bytes()
    capsys.readouterr()
    damage(file)
    assert train(tmp_path, images=images).finished
    assert re.search(r"model was not that after 40 images .*restored", capsys.readouterr().out)
    assert (file.read_bytes() == before) == (images == HALF)
    assert not file.parent.is_symlink()
    assert train(tmp_path, images=images).finished
    assert "restored" not in capsys.readouterr().out
