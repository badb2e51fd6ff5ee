import os

import pytest

from storage.write import create_new, empty_folder, recover_folder, remove, replace_file, replace_folder, write_text


def fill(text: str):
    return lambda folder: (folder / "a.txt").write_text(text)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"picture\.png is a folder"):
        replace_file(folder(tmp_path / "picture.png"), lambda new: pytest.fail("begun"))
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def folder(path):
    path.mkdir()
    return path


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


@pytest.fixture
def outside(tmp_path):
    """A file and a folder that links in the folder written to lead to."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("precious")
    (tmp_path / "out").mkdir()
    yield tmp_path / "outside" / "file"
    assert (tmp_path / "outside" / "file").read_text() == "precious"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x", "tmp-x"])
def test_a_file_is_never_written_through_a_link(outside, tmp_path, name):
    (tmp_path / "out" / name).symlink_to(outside)
    write_text(tmp_path / "out" / "x", "new")
    assert not (tmp_path / "out" / "x").is_symlink()
    assert (tmp_path / "out" / "x").read_text() == "new"


@pytest.mark.parametrize("name", ["x", "tmp-new-x", "tmp-old-x"])
def test_a_folder_is_never_written_through_a_link(outside, tmp_path, name):
    (tmp_path / "out" / name).symlink_to(outside.parent)
    recover_folder(tmp_path / "out" / "x")
    replace_folder(tmp_path / "out" / "x", fill("new"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    assert not (tmp_path / "out" / "x").is_symlink()
    assert (tmp_path / "out" / "x" / "a.txt").read_text() == "new"


def test_links_are_removed_not_followed(outside, tmp_path):
    for path in (tmp_path / "out" / "a", tmp_path / "out" / "b"):
        path.symlink_to(outside.parent)
    assert list(empty_folder(tmp_path / "out" / "a").iterdir()) == []
    remove(tmp_path / "out" / "b")
    remove(tmp_path / "out" / "nothing")
    (tmp_path / "out" / "file").symlink_to(outside)
    create_new(tmp_path / "out" / "file")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "file"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_on_permissions(tmp_path, mask):
    def private(path):
        path.unlink(missing_ok=True)
        path.touch(0o600)

    before = os.umask(mask)
    try:
        replace_file(tmp_path / "file", private)
        replace_folder(tmp_path / "folder", lambda new: private(new / "file"))
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "folder" / "file"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
