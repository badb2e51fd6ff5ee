"""A full disk at every point of a run: saved files stay, partial files are removed, training continues."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from accelerate.tracking import GeneralTracker
from safetensors import SafetensorError
from tensorboard.summary.writer.record_writer import RecordWriter

from tests.training import toy
from tests.training.toy import BATCH, ToyTask, hashes, loop, newest, train
from training import checkpoint, disk_space, log
from training.disk_space import DiskFull, append_line, is_full
from training.loop import Loop
from training.memory import saved_bytes
from training.units import show_size

FULL = [errno.ENOSPC, errno.EFBIG, errno.EDQUOT]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within the block this process cannot write files of more than `size` bytes."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


class Lines(list):
    """In the place of a run's log."""

    def write(self, images_seen, update, numbers, **marks):
        self.append((images_seen, update, numbers, marks))


@pytest.fixture
def saving(tmp_path) -> Iterator[Loop]:
    """A loop after three updates, with checkpoints of the first two and the start."""
    runner = loop(tmp_path, ToyTask(), keep_last=5)
    runner.log = Lines()
    runner.begin()
    for _ in range(2):
        runner.step.update()
        assert runner.save()
    runner.step.update()
    yield runner
    runner.step.close()


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def save_fails(runner: Loop) -> bool:
    """Whether the next save finds the disk full; if so, every checkpoint is as it was, and nothing lies beside them."""
    path = runner.folder.path
    before = content(path / "checkpoints")
    if runner.save():
        return False
    assert content(path / "checkpoints") == before
    assert list(path.rglob("tmp-*")) == []
    assert (path / "model/model.safetensors").stat().st_size > 0
    assert runner.log[-1] == (24, 3, {}, {"saved": False})
    return True


def fail_at(patch: pytest.MonkeyPatch, step: int, code: int) -> None:
    """Let the `step`-th operation that takes disk space fail with the system's error `code`."""
    left = [step]

    def failing(function, error):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == -1:
                raise error
            return function(*arguments, **options)

        return call

    wrapped = SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
    patch.setattr(checkpoint, "save_file", failing(checkpoint.save_file, wrapped))
    patch.setattr(toy, "save_file", failing(toy.save_file, wrapped))
    patch.setattr(Path, "write_bytes", failing(Path.write_bytes, OSError(code, os.strerror(code))))
    patch.setattr(Path, "write_text", failing(Path.write_text, OSError(code, os.strerror(code))))
    for name in ("fsync", "rename", "replace", "mkdir"):
        patch.setattr(os, name, failing(getattr(os, name), OSError(code, os.strerror(code))))


def test_checkpoints_stay_whichever_operation_fails(saving, capsys):
    """Every operation of a save that takes disk space fails in turn, with each of the system's errors."""
    step, failed = 0, True
    while failed:
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, step, FULL[step % 3])
            failed = save_fails(saving)
        step += failed
    assert step >= 20
    out = capsys.readouterr().out
    text = rf"NOT SAVED after 24 images: the disk is full: {saving.folder.path} .*a checkpoint.*: "
    text += r"\S+ \w+ are needed, \S+ .B are free \(.*\); remove something, .*; training continues"
    assert len(re.findall(text, out)) == step
    assert newest(saving.folder.path).name == "000000024"


def test_files_that_may_not_grow(saving):
    """The same without any stand-in: the system refuses the first byte beyond each of 20 sizes."""
    sizes = [path.stat().st_size for path in newest(saving.folder.path).iterdir()]
    for number in range(20):
        with largest_file(max(sizes) * number // 20):
            assert save_fails(saving), number
    with largest_file(2 * max(sizes)):
        assert saving.save()


def test_nothing_is_written_without_disk_space(saving, monkeypatch, capsys):
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr(checkpoint, "stage", lambda *arguments: pytest.fail("begun"))
    assert save_fails(saving)
    needed = show_size(saved_bytes(saving.step.trained, 2))
    text = f"{saving.folder.path} has no space for a checkpoint and the model: {needed}"
    assert f"{text} are needed, 1 kB are free; remove something, or" in capsys.readouterr().out


def test_other_errors_are_raised(saving, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        saving.save()
    assert not is_full(SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)"))
    assert not is_full(SafetensorError("no such tensor"))
    assert all(is_full(OSError(code, "")) for code in FULL)


def test_a_run_needs_space_for_two_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 4000)
    task = ToyTask()
    with pytest.raises(DiskFull, match=re.escape(f"{tmp_path} has no space for two checkpoints and the model: ")):
        train(tmp_path, task)
    assert (task.batches, task.saved) == ([], 0)
    monkeypatch.undo()
    assert train(tmp_path).finished


class Acting(ToyTask):
    """Does something during an update."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.at, self.act = at, act

    def loss(self, model, batch, random):
        if len(self.batches) + 1 == self.at:
            self.act()
        return super().loss(model, batch, random)


def test_the_end_of_a_run_must_be_saved(tmp_path, monkeypatch):
    settings = {"checkpoint_every_images": 4 * BATCH}
    train(tmp_path / "straight", **settings)
    task = Acting(9, lambda: monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 0))
    text = "the last updates are not saved: .*; remove something, .*; the same command resumes"
    with pytest.raises(DiskFull, match=text):
        train(tmp_path / "run", task, **settings)
    assert newest(tmp_path / "run").name == "000000064"
    with pytest.raises(DiskFull, match="for a checkpoint and the model"):
        train(tmp_path / "run", **settings)
    monkeypatch.undo()
    train(tmp_path / "run", **settings)
    assert hashes(tmp_path / "run") == hashes(tmp_path / "straight")


@pytest.mark.parametrize("due", [True, False])
def test_a_stop_that_cannot_save_is_an_error(tmp_path, monkeypatch, due):
    task = Acting(6, lambda: monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 0))
    task.signal_at = 6, signal.SIGTERM
    with pytest.raises(DiskFull, match=r"the last updates are not saved: .*; the same command resumes"):
        train(tmp_path, task, checkpoint_every_images=(2 if due else 4) * BATCH)
    assert newest(tmp_path).name == "000000032"


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.jsonl"
    assert append_line(path, "first")
    with largest_file(9):
        assert not append_line(path, "second")  # three bytes of it would fit
    assert path.read_text() == "first\n"
    assert append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


class Full(GeneralTracker):
    """A tracker on a full disk."""

    name = "tensorboard"
    requires_logging_directory = True
    tracker = None

    def log(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_only_the_reports_of_a_run(tmp_path, monkeypatch, capsys):
    train(tmp_path / "straight")
    monkeypatch.setattr(log, "append_line", lambda path, line: False)
    monkeypatch.setattr(log, "filter_trackers", lambda *arguments: [Full()])
    task = ToyTask()
    monkeypatch.setattr(toy.ToyEvaluation, "run", Full().log)
    capsys.readouterr()
    train(tmp_path / "full", task)
    assert hashes(tmp_path / "full") == hashes(tmp_path / "straight")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("the disk is full", "NOT MEASURED: the sum after"))] == [
        "the disk is full: tensorboard lacks numbers of this run; it is tried again with the next",
        f"the disk is full: {tmp_path / 'full/log.jsonl'} lacks the lines after 8 images",
        f"NOT MEASURED: the sum after 80 images: the disk is full: {tmp_path / 'full'}; the same command tries it "
        "again",
    ]
    monkeypatch.undo()
    again = train(tmp_path / "full")
    assert again.evaluated == [80], "repeated by the same command"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), r"OSError\(5, .*"),
        (MemoryError(), r"MemoryError\(\)"),
        (RuntimeError("queue"), r"RuntimeError\('queue'\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_the_thread_of_a_tracker_costs_only_the_tracker(tmp_path, monkeypatch, capsys, error, reason):
    left, write = [12], RecordWriter.write

    def failing(writer, data):
        left[0] -= 1
        if left[0] < 0:
            raise error
        write(writer, data)

    train(tmp_path / "straight")
    monkeypatch.setattr(RecordWriter, "write", failing)
    assert train(tmp_path / "run", trackers=("tensorboard",)).finished
    assert hashes(tmp_path / "run") == hashes(tmp_path / "straight")
    assert len(re.findall(f"{reason}: tensorboard lacks numbers", capsys.readouterr().out)) == 1


def test_a_tracker_that_cannot_be_started_is_named(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"train\.trackers=tensorboard .*NotADirectoryError"):
        train(tmp_path, trackers=("tensorboard",))


NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000000000 bytes."),
]


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        *((error, {}, f"update with {BATCH} images .*=4;") for error in NO_MEMORY),
        (NO_MEMORY[0], {"batch": 6}, "update with 6 images .*=3;"),
        (NO_MEMORY[0], {"micro_batch": 1}, r"train\.micro_batch=1: .* kB .*smaller model"),
    ],
)
def test_an_update_without_memory_proposes_a_micro_batch(tmp_path, error, changes, message):
    def fail():
        raise error

    settings = {"images": 48, "checkpoint_every_images": 12} | changes
    with pytest.raises(ValueError, match=message):
        train(tmp_path, Acting(5, fail), **settings)
    assert checkpoint.verify(newest(tmp_path)) is None
    assert train(tmp_path, **settings | {"micro_batch": 1}).finished


@pytest.mark.parametrize("error", NO_MEMORY)
def test_an_evaluation_without_memory_is_named(tmp_path, monkeypatch, capsys, error):
    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(toy.ToyEvaluation, "run", fail)
        train(tmp_path)
    assert "the sum after 80 images: it needs more memory" in capsys.readouterr().out
    assert train(tmp_path).evaluated == [80]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a disk is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


PAGE = 4096
FILLED = {"images": 6 * BATCH, "checkpoint_every_images": 2 * BATCH, "eval_every_images": 3 * BATCH}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run on a disk with space."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    train(run, **FILLED)
    return hashes(run)


@pytest.mark.parametrize("pages", range(20))
def test_a_disk_that_fills_up(small_disk, undisturbed, pages):
    """During the third of six updates something else takes all but some pages, and gives them back at the end."""
    ballast, run = small_disk / "ballast", small_disk / "run"
    saved: dict[str, str] = {}

    def fill():
        saved.update(hashes(run))
        ballast.write_bytes(bytes(disk_space.free_bytes(small_disk) - pages * PAGE))

    with suppress(DiskFull):
        train(run, Acting(3, fill), **FILLED)
    assert checkpoint.verify(newest(run)) is None
    if newest(run).name == "000000016":
        assert hashes(run) == saved
    assert [path.name for path in run.rglob("tmp-*")] == []
    for line in (run / "log.jsonl").read_text().splitlines():
        json.loads(line)
    ballast.unlink()
    train(run, **FILLED)
    assert hashes(run) == undisturbed
