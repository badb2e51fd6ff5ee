"""Folders, globs and file names as they are found in the world."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures.formats import FORMATS
from training.data import DataConfig, open_images
from training.data.sources.listing import KINDS, Listing
from training.data.sources.source import find_source
from training.data.validate import validate


def test_every_suffix_of_the_list_is_taken_in_any_case(pixels, save, config, tmp_path: Path) -> None:
    count = 0
    for kind, suffixes in FORMATS.items():
        for suffix in suffixes:
            for name in (suffix, suffix.upper(), suffix.title()):
                count += 1
                save(tmp_path / "set" / f"{count}{name}", pixels(count, 32, 32, 3), format=kind)
    assert len(open_images(config(source=tmp_path / "set", max_bad=0))) == count > 80


def test_pictures_without_a_suffix_are_taken_and_other_files_counted(pixels, save, config, tmp_path, capsys) -> None:
    folder = tmp_path / "set"
    save(folder / "cat" / "0001", pixels(0, 4, 4), format="PNG")
    save(folder / "dog" / "0002", pixels(1, 4, 4), format="BMP")
    save(folder / "dog" / "a.png", pixels(2, 4, 4))
    for name in ("README", "a.txt", "b.TXT", "c.mp4", ".DS_Store", "dog/x.heic", "dog/.hidden.png", ".git/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"text")
    images = open_images(config(source=folder))
    note = "left out: 2 .txt, 2 hidden, 1 without a suffix, 1 .mp4, 1 .heic, 1 hidden folders"
    assert (len(images), images.classes) == (3, ("cat", "dog"))
    assert sorted(images.notes[0][10:].split(", ")) == sorted(note[10:].split(", "))
    assert images.notes[0] in str(images)
    (folder / "more.mp4").touch()
    assert "2 .mp4" in str(open_images(config(source=folder)))  # the cache is the same, the note is not
    assert "2 .mp4" in str(open_images(DataConfig(source=str(folder), stream=True, size=4, channels=1)))
    validate(DataConfig(source=str(folder)))
    assert "\nleft out        2 " in capsys.readouterr().out


def test_without_images_the_message_counts_what_there_is(config, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.npz", "b.npz", "c\x1b[31m.x\x1by"):
        (tmp_path / "set" / name).touch()
    with pytest.raises(
        ValueError, match=r"'.*set' holds no images.*2 \.npz, 1 \.x\\x1by.*\.avif.*\.npz file is a data\.source"
    ):
        find_source(config(source=tmp_path / "set"))


def test_many_suffixes_are_counted_together(tmp_path: Path) -> None:
    for i in range(50):
        (tmp_path / f"{i}.s{i}").touch()
    assert str(Listing.of(tmp_path)).endswith(", 40 more")


def test_globs_name_pictures_arrays_and_folders(pixels, save, config, tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    for i, name in enumerate(["cat/a.png", "cat/b.jpg", "dog/a.png", "dog/deep/b.png", "eel/a.png", "eel/a.npy"]):
        save(folder / name, pixels(i, 4, 4), **({"format": "BMP"} if name.endswith("npy") else {}))
    np.save(folder / "eel" / "a.npy", pixels(9, 4, 4))
    images = open_images(config(source=folder / "*" / "*.png"))
    assert (len(images), images.classes) == (3, ("cat", "dog", "eel"))
    assert len(open_images(config(source=folder / "**" / "*.png"))) == 4
    assert len(open_images(config(source=folder / "[cd]*" / "**"))) == 4  # a folder, those in it, and their files
    assert open_images(config(source=folder / "[cd]*")).classes == ("cat", "dog")
    assert open_images(config(source=folder / "dog" / "*.png")).classes is None
    assert open_images(config(source=folder / "eel" / "*.npy")).shape == (1, 4, 4)
    with pytest.raises(ValueError, match=r"'.*pets/\*' .*images.*a\.png.*arrays.*a\.npy"):
        find_source(config(source=folder / "*"))
    (folder / "cat" / "notes.txt").touch()
    assert "left out: 1 .txt" in str(open_images(config(source=folder / "cat" / "*")))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "A.TGZ", "a.7z", "a.rar", "a.tar.xz", "a.tar.zst"])
def test_an_archive_is_to_be_unpacked(name: str, config, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=rf"data\.source '.*{name}' is an archive.*unpack"):
        find_source(config(source=tmp_path / name))


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a", "a.h5", "a.pkl", "a.pt", "a.mp4", "a.\n"])
def test_a_file_that_is_no_source_has_a_way_out(name: str, config, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"data\.source '.*a.*\.npy or \.npz.*the folder") as error:
        find_source(config(source=tmp_path / name))
    assert ("data.label_file" in str(error.value)) == (name in ("a.txt", "a.csv", "a.jsonl"))
    assert "\n" not in str(error.value)


def test_a_single_picture_is_a_source(config, tmp_path: Path, pixels) -> None:
    Image.fromarray(pixels(0, 4, 4)).save(tmp_path / "a.png")
    assert len(open_images(config(source=tmp_path / "a.png"))) == 1


def special(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "none")


@pytest.mark.parametrize("suffix", [".png", ".npy"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "dangling link"])
def test_a_file_that_is_not_regular_counts_as_bad(kind, suffix, pixels, config, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    monkeypatch.chdir(folder)
    special(kind, folder / f"cat{suffix}")
    if suffix == ".npy":
        np.save(folder / "a.npy", pixels(0, 4, 4))
    else:
        Image.fromarray(pixels(0, 4, 4)).save(folder / "a.png")
    images = open_images(config(source=folder))
    assert len(images) == 1
    assert kind.removeprefix("dangling link") in images.bad[0]
    assert images.bad[0].startswith(f"cat{suffix}: ")
    with pytest.raises(ValueError, match=r"1 of 2 images"):
        validate(DataConfig(source=str(folder)))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npy", ".npz", ".zip", ""])
def test_a_source_that_is_not_regular_is_an_error(kind, suffix, config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    special(kind, tmp_path / f"set{suffix}")
    with pytest.raises(ValueError, match=rf"set{suffix} is a .*{kind}"):
        open_images(config(source=tmp_path / f"set{suffix}"))
    if suffix in (".parquet", ".arrow"):
        with pytest.raises(ValueError, match=rf"set{suffix} .*{kind}"):
            open_images(config(source=tmp_path / f"*{suffix}"))


NAMES: dict[str, bytes] = {
    "newline": b"a\nb.png",
    "escape": b"a\x1b[2Jb.png",
    "not utf-8": b"\xff\xfe.png",
    "long": b"x" * 251 + b".png",
    "spaces": b"  .png",
    "right to left": "a\u202egnp.png".encode(),
    "percent": b"%s%n{}.png",
    "backslash": b"a\\b.png",
    "glob": b"[a-z]*.png",
    "dash": b"-rf.png",
    "emoji": "😀.png".encode(),
}


@pytest.mark.parametrize("kind", NAMES)
def test_any_name_is_taken_and_shown_in_one_line(kind: str, pixels, png, config, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(folder) + b"/" + NAMES[kind])).write_bytes(png(pixels(0, 4, 4)))
    Path(os.fsdecode(os.fsencode(folder) + b"/sub/" + NAMES[kind])).write_bytes(b"no image")
    images = open_images(config(source=folder, labels=False))
    assert (len(images), len(images.bad)) == (1, 1)
    with pytest.raises(ValueError, match=r"1 of 2 images"):
        validate(DataConfig(source=str(folder), labels=False))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sub/")
    assert lines[0].endswith(": not an image")
    assert lines[0].isprintable()


def vanish(path: Path) -> None:
    path.unlink()


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def shrink(path: Path) -> None:
    os.truncate(path, 60)


@pytest.mark.parametrize("change", [vanish, become_folder, become_pipe, shrink])
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_a_file_that_changes_after_listing_counts_as_bad(
    change: Callable, suffix: str, pixels, save, config, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        if suffix == ".npy":
            np.save(folder / f"{i}.npy", pixels(i, 8, 8))
        else:
            save(folder / f"{i}.png", pixels(i, 8, 8))
    records = find_source(config(source=folder)).open()
    change(folder / f"1{suffix}")
    from training.data.decode import decode_all

    decoded = [pixels for _, pixels, _ in decode_all(records.items(), DataConfig().preprocessing)]
    assert [isinstance(each, str) for each in decoded] == [False, True, False]


def test_a_folder_with_a_suffix_is_a_folder(pixels, save, config, tmp_path: Path) -> None:
    save(tmp_path / "set" / "x.png" / "a.png", pixels(0, 4, 4))
    save(tmp_path / "set" / "y.npy" / "a.png", pixels(1, 4, 4))
    assert open_images(config(source=tmp_path / "set")).classes == ("x.png", "y.npy")


def test_link_loops_end(pixels, save, config, tmp_path: Path) -> None:
    save(tmp_path / "set" / "a.png", pixels(0, 4, 4))
    (tmp_path / "set" / "up").symlink_to("..")
    (tmp_path / "set" / "self.png").symlink_to("self.png")
    images = open_images(config(source=tmp_path / "set"))
    assert len(images) == 1
    assert [text.partition(":")[0] for text in images.bad] == ["self.png"]


def test_kinds_have_no_suffix_in_common() -> None:
    suffixes = [suffix for those in KINDS.values() for suffix in those]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)
