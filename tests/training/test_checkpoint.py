import errno
import json
import os
import pickle
import platform
import re
import shutil
from datetime import UTC, datetime, timedelta

import pytest
import torch
from torch.testing import assert_close

import residual
from storage.write import recover_folder, replace_folder
from training import checkpoint
from training.checkpoint import (
    FORMAT_VERSION,
    CheckpointMetadata,
    changes,
    describe_machine,
    newest,
    prune,
    publish,
    read_tensors,
    stage,
    verify,
)


def content(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    image = torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last)
    return {"model": {"weight": image, "scale": torch.tensor(2.0)}, "ema": {"weight": image + 1}, "optimizer": {}}


def metadata(images: int, **changed) -> CheckpointMetadata:
    values = {"processes": 2, "data": "abc", "micro_batch": None, "config": {"name": "né"}}
    values["machine"] = describe_machine(torch.device("cpu"))
    return CheckpointMetadata(images=images, update=images // 8, batch=8, **values | changed)


def write(root, images: int, value: float = 1.0):
    return publish(stage(root, content(value), metadata(images)))


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path, 80)
    assert folder.name == "000000080"
    found, damaged = newest(tmp_path)
    assert found is not None
    assert (found.folder, found.images, found.update, found.processes, found.data) == (folder, 80, 10, 2, "abc")
    assert (found.batch, found.config) == (8, metadata(80).config)
    assert found.machine == {
        "version": residual.__version__,
        "commit": found.machine["commit"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "kernels": "off",
    }
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", str(found.machine["commit"]))
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found.written)) < timedelta(minutes=1)
    assert damaged == {}
    for file, tensors in read_tensors(found).items():
        assert set(tensors) == set(content()[file])
        for name, tensor in tensors.items():
            assert_close(tensor, content()[file][name], rtol=0, atol=0, check_stride=False)


def test_the_manifest_lists_every_file(tmp_path):
    folder = write(tmp_path, 80)
    state = json.loads((folder / "state.json").read_text())
    assert set(state["files"]) | {"state.json"} == {path.name for path in folder.iterdir()}
    assert state["files"]["model.safetensors"]["bytes"] == (folder / "model.safetensors").stat().st_size


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    os.truncate(path, 0)


FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [flip, truncate, empty, os.unlink])
def test_any_damage_to_any_file_is_named_and_the_previous_one_is_used(tmp_path, file, damage):
    before, last = write(tmp_path, 8), write(tmp_path, 16)
    damage(last / file)
    found, damaged = newest(tmp_path)
    assert found is not None
    assert found.folder == before
    assert list(damaged) == [last]
    assert file in damaged[last]
    if file != "state.json":
        expected = {
            flip: "has changed since",
            truncate: r"has \d+ bytes instead of \d+",
            empty: "has 0 bytes instead of",
        }
        assert re.search(expected.get(damage, "is missing"), damaged[last])


def test_flipped_bits_are_found_wherever_they_are(tmp_path):
    folder = write(tmp_path, 8)
    for file in FILES:
        intact = (folder / file).read_bytes()
        for bit in range(0, 8 * len(intact), 7 if file == "state.json" else 61):
            damaged = bytearray(intact)
            damaged[bit // 8] ^= 1 << bit % 8
            (folder / file).write_bytes(damaged)
            assert (verify(folder) or "").startswith(f"{file} "), (file, bit)
        (folder / file).write_bytes(intact)
    assert verify(folder) is None


@pytest.mark.parametrize(("old", "new"), [("\\u00e9", "\\u00E9"), ("\n", "\r"), ("}\n", "}")])
def test_other_bytes_of_the_same_json_are_found(tmp_path, old, new):
    path = write(tmp_path, 8) / "state.json"
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    assert verify(path.parent) == "state.json has changed since it was written (SHA-256)"


@pytest.mark.parametrize("name", ["optimizer.bin", "x.pt", "model", "tmp-state.json"])
def test_a_planted_file_is_named_and_never_opened(tmp_path, name):
    before, last = write(tmp_path, 8), write(tmp_path, 16)
    (last / name).write_bytes(pickle.dumps(Trap()))
    found, damaged = newest(tmp_path)
    assert damaged == {last: f"{name} is not listed in state.json"}
    assert found is not None
    assert found.folder == before
    assert set(read_tensors(found)) == {"model", "ema", "optimizer"}


def test_a_pickle_under_a_listed_name_is_damaged(tmp_path):
    folder = write(tmp_path, 8)
    (folder / "optimizer.safetensors").write_bytes(pickle.dumps(Trap()))
    assert "optimizer.safetensors has" in (verify(folder) or "")


class Trap:
    """Fails the test when unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_hidden_files_are_ignored(tmp_path):
    folder = write(tmp_path, 8)
    (folder / ".DS_Store").write_text("")
    assert verify(folder) is None


def test_changes_since_the_checkpoint_are_listed():
    before = metadata(80, machine={"torch": "2.12", "threads": 2, "kernels": "on", "python": "3.11"})
    now = metadata(80, processes=1, micro_batch=4, machine=before.machine | {"python": "3.12"})
    assert changes(before, before) == []
    assert changes(before, now) == [
        f"{what}; same images and noise, other dropout, batch norms and rounding"
        for what in ("processes: 2 when saved, 1 now", "train.micro_batch: null when saved, 4 now")
    ]
    assert changes(
        before, metadata(80, machine={"torch": "2.13", "threads": 1, "kernels": "off", "python": "3.11"})
    ) == [
        "torch: 2.12 when saved, 2.13 now; same images and noise, other rounding",
        "threads: 2 when saved, 1 now; same images and noise, other rounding",
        "kernels: on when saved, off now; same images and noise, other dropout and rounding",
    ]
    on_gpu = metadata(80, machine={**before.machine, "device": "NVIDIA H100"})
    assert changes(on_gpu, metadata(80, machine={**before.machine, "device": "cpu"})) == [
        "device: NVIDIA H100 when saved, cpu now; same images and noise, other rounding"
    ]


def test_a_copy_without_git_has_no_commit(tmp_path, monkeypatch):
    checkpoint._commit.cache_clear()
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "training" / "checkpoint.py"))
    assert describe_machine(torch.device("cpu"))["commit"] == "unknown"
    checkpoint._commit.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert describe_machine(torch.device("cpu"))["commit"] == "unknown"
    checkpoint._commit.cache_clear()


def test_none_intact_is_an_error(tmp_path):
    write(tmp_path, 8)
    flip(tmp_path / "000000008" / "ema.safetensors")
    text = "is intact (000000008: ema.safetensors has changed since it was written (SHA-256)); restore one from a copy"
    with pytest.raises(ValueError, match=re.escape(text)):
        newest(tmp_path)


def test_a_renamed_checkpoint_is_damaged(tmp_path):
    """A copy with a higher number would be used, and checkpoints written after it would be removed as older."""
    before, after = write(tmp_path, 80), write(tmp_path, 160)
    shutil.copytree(before, tmp_path / "000000240")
    found, damaged = newest(tmp_path)
    assert found is not None
    assert found.folder == after
    assert damaged == {tmp_path / "000000240": "state.json belongs to the checkpoint 000000080"}


def test_prune_ignores_files_that_cannot_be_removed(tmp_path, monkeypatch):
    for images in (8, 16, 24):
        write(tmp_path, images)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(errno.EBUSY, "in use")))
        prune(tmp_path, keep_last=2)
    assert [folder.name for folder in checkpoint.list_folders(tmp_path)] == ["000000024", "000000016"]
    checkpoint.clean(tmp_path)
    assert not list(tmp_path.glob("tmp-*"))


def test_an_unknown_format(tmp_path):
    folder = write(tmp_path, 8)
    path = folder / "state.json"
    path.write_text(path.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 2'))
    assert re.search(rf"format_version 2\b.* {FORMAT_VERSION}\b.* version that wrote it", verify(folder) or "")


def test_no_checkpoint_is_no_error(tmp_path):
    (tmp_path / "best").mkdir()
    assert newest(tmp_path) == (None, {})


def test_prune_keeps_the_newest_and_other_folders(tmp_path):
    for images in (8, 16, 24, 1_000_000_008):
        write(tmp_path, images)
    (tmp_path / "notes").mkdir()
    prune(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"000000024", "1000000008", "notes"}


def test_prune_keeps_permanent_checkpoints(tmp_path):
    for images in (0, 8, 16, 24, 32, 40):
        write(tmp_path, images)
    prune(tmp_path, 2, is_permanent=lambda images: images % 16 < 8)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [0, 16, 32, 40]


class Crash(BaseException):
    """A process killed at once: no `except Exception` runs."""


def crash_at(monkeypatch, step: int) -> None:
    """Let the process die just before its `step`-th operation on files."""
    left = [step]

    def dying(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(checkpoint, "save_file", dying(checkpoint.save_file))
    for module, name in [(os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (os, "unlink")]:
        monkeypatch.setattr(module, name, dying(getattr(module, name)))


def test_a_crash_anywhere_leaves_a_good_checkpoint_and_a_good_model(tmp_path):
    """Killed before every single file operation of a save in turn: the newest published one always loads."""
    step, crashed = 0, True
    while crashed:
        root = tmp_path / str(step)
        (root / "checkpoints").mkdir(parents=True)
        save(root, 8), save(root, 16)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, step)
            try:
                save(root, 24)
                crashed = False
            except Crash:
                pass
        checkpoint.clean(root / "checkpoints")
        recover_folder(root / "model")
        found, damaged = newest(root / "checkpoints")
        assert found is not None
        assert found.images == (24 if (root / "checkpoints/000000024").exists() else 16)
        assert damaged == {}
        model = int((root / "model/weights").read_text())
        assert model in ({16, 24} if found.images == 16 else {24}), "a published checkpoint has its model folder"
        step += 1
    assert step > 15


def save(root, images: int) -> None:
    """As the loop does it."""
    staged = stage(root / "checkpoints", content(images), metadata(images))
    replace_folder(root / "model", lambda folder: (folder / "weights").write_text(str(images)))
    publish(staged)
    prune(root / "checkpoints", 2)
