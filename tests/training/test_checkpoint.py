import json
import os
import re
import shutil

import pytest
import torch
from torch.testing import assert_close

from training import checkpoint, files
from training.checkpoint import newest, prune, publish, read_tensors, stage, verify


def content(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    image = torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last)
    return {"model": {"weight": image, "scale": torch.tensor(2.0)}, "ema": {"weight": image + 1}, "optimizer": {}}


def write(root, images: int, value: float = 1.0):
    return publish(stage(root, content(value), images=images, update=images // 8, processes=2, data="abc"))


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path, 80)
    assert folder.name == "000000080"
    found, damaged = newest(tmp_path)
    assert found is not None
    assert (found.folder, found.images, found.update, found.processes, found.data) == (folder, 80, 10, 2, "abc")
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


FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [flip, truncate, os.unlink])
def test_any_damage_to_any_file_is_named_and_the_one_before_is_taken(tmp_path, file, damage):
    before, last = write(tmp_path, 8), write(tmp_path, 16)
    if damage is truncate and file == "state.json":
        os.truncate(last / file, 40)  # the last byte is a line feed, without which it is as good
    else:
        damage(last / file)
    found, damaged = newest(tmp_path)
    assert found is not None
    assert found.folder == before
    assert list(damaged) == [last]
    assert file in damaged[last]
    expected = {flip: "has changed|cannot be read", truncate: "bytes instead of|cannot be read"}
    assert re.search(expected.get(damage, "is missing|cannot be read"), damaged[last])


def test_none_intact_is_an_error(tmp_path):
    write(tmp_path, 8)
    flip(tmp_path / "000000008" / "ema.safetensors")
    text = "is intact (000000008: ema.safetensors has changed since it was written (SHA-256)); restore one from a copy"
    with pytest.raises(ValueError, match=re.escape(text)):
        newest(tmp_path)


def test_an_unknown_format(tmp_path):
    folder = write(tmp_path, 8)
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    assert verify(folder) == "state.json has format_version 2, this program reads 1"


def test_no_checkpoint_is_no_error(tmp_path):
    (tmp_path / "best").mkdir()
    assert newest(tmp_path) == (None, {})


def test_prune_keeps_the_newest_and_what_is_no_checkpoint(tmp_path):
    for images in (8, 16, 24, 1_000_000_008):
        write(tmp_path, images)
    (tmp_path / "notes").mkdir()
    prune(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"000000024", "1000000008", "notes"}


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
        files.recover_folder(root / "model")
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
    staged = stage(root / "checkpoints", content(images), images=images, update=images // 8, processes=1, data="abc")
    files.replace_folder(root / "model", lambda folder: (folder / "weights").write_text(str(images)))
    publish(staged)
    prune(root / "checkpoints", 2)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    write(tmp_path, 8)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path, 16)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["000000008"]
    assert verify(tmp_path / "000000008") is None
