import os

import pytest

from training.files import recover_folder, replace_folder, write_text


def fill(text: str):
    return lambda folder: (folder / "a.txt").write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "model"
    replace_folder(target, lambda folder: (folder / "old.txt").write_text("1"))
    replace_folder(target, fill("2"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in target.iterdir()] == ["a.txt"]


def test_a_failed_replacement_leaves_the_old_one(tmp_path):
    target = tmp_path / "model"
    replace_folder(target, fill("1"))

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "a.txt").read_text() == "1"


def test_a_refused_rename_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "model"
    replace_folder(target, fill("1"))
    rename, calls = os.rename, []

    def refusing(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError("disk full")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(OSError, match="disk full"):
        replace_folder(target, fill("2"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "a.txt").read_text() == "1"


def test_a_crash_between_the_two_renames_is_undone(tmp_path, monkeypatch):
    target = tmp_path / "model"
    replace_folder(target, fill("1"))
    rename, calls = os.rename, []

    def dying(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", dying)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(target, fill("2"))
    monkeypatch.undo()
    assert not target.exists()
    recover_folder(target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "a.txt").read_text() == "1"
    replace_folder(target, fill("3"))
    assert (target / "a.txt").read_text() == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "config.yaml"
    write_text(path, "a")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "a"
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    write_text(path, "β")
    assert path.read_text(encoding="utf-8") == "β"
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
