"""Caches whose files are damaged, or replaced by something else: found when they are opened, and built again."""

import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.data import Images, open_images
from training.data.cache import checksums, files
from training.data.cache import open as module
from training.data.cache.checksums import BLOCK_BYTES, Checksums, verify
from training.data.cache.journal import crc32

COUNT = 6


@pytest.fixture
def pets(pixels, save, tmp_path: Path) -> Path:
    for i in range(COUNT):
        save(tmp_path / "pets" / ("cat" if i % 2 else "dog") / f"{i}.png", pixels(i, 4, 5, 3))
    return tmp_path / "pets"


@pytest.fixture
def cache(pets: Path, config) -> Path:
    """The folder of a complete cache."""
    open_images(config(source=pets))
    (folder,) = config().cache.iterdir()
    return folder


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file that no link may lead a write to."""
    file = tmp_path / "precious"
    file.write_text("keep me")
    return file


def flip(file: Path, byte: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 4
    file.write_bytes(data)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def zeros(file: Path) -> None:
    size = file.stat().st_size
    file.write_bytes(b"")
    os.truncate(file, size)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def bound(file: Path) -> None:
    file.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(file.parent)  # the name of a socket is short
        server.bind(file.name)
        os.chdir(here)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


HARMS: list[Callable[[Path], None]] = [
    flip,
    truncate,
    lengthen,
    zeros,
    folder,
    pipe,
    bound,
    device,
    dangling,
    circle,
    Path.unlink,
]


@pytest.mark.parametrize("name", ["images.bin", "labels.npy", "cache.json"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_noticed_and_the_cache_built_again(name, harm, pets, config, cache, capsys) -> None:
    before = {file.name: file.read_bytes() for file in cache.iterdir()}
    harm(cache / name)
    images = open_images(config(source=pets))
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == before
    assert list(cache.parent.iterdir()) == [cache]
    assert len(images) == COUNT
    message = capsys.readouterr().err
    assert message.count("is damaged") == 1
    assert str(cache) in message
    assert name in message


def test_an_intact_cache_is_opened_without_a_message(pets, config, cache, capsys, monkeypatch) -> None:
    monkeypatch.setattr(module, "build", None)
    assert len(open_images(config(source=pets))) == COUNT
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("byte", range(0, COUNT * 60, 7))
def test_a_flipped_bit_anywhere_in_the_images_is_noticed(byte: int, pets, config, cache, capsys) -> None:
    flip(cache / "images.bin", byte)
    open_images(config(source=pets))
    assert "images.bin" in capsys.readouterr().err


FIELDS = {
    "huge shape": {"shape": [10**18, 3, 4, 5]},
    "huger shape": {"shape": [10**400, 1, 1, 1]},
    "negative shape": {"shape": [-6, -3, 4, 5]},
    "zero": {"shape": [0, 3, 4, 5]},
    "floats": {"shape": [6.0, 3.0, 4.0, 5.0]},
    "booleans": {"shape": [True, 3, 4, 30]},
    "texts": {"shape": ["6", "3", "4", "5"]},
    "flat": {"shape": 360},
    "two axes": {"shape": [6, 60]},
    "no shape": {"shape": None},
    "other shape": {"shape": [3, 6, 4, 5]},
    "other dtype": {"pixel_format": {"dtype": "object", "low": 0, "high": 255, "file": "png"}},
    "unknown field": {"pixel_format": {"dtype": "uint8", "low": 0, "high": 255, "file": "png", "x": 1}},
    "no pixel format": {"pixel_format": []},
    "labels without classes": {"classes": None},
    "fewer classes": {"classes": ["cat"]},
    "no texts": {"bad": [1]},
    "fingerprint": {"fingerprint": 5},
    "version": {"format_version": 2},
    "version text": {"format_version": "3"},
    "blocks": {"blocks": {}},
    "blocks list": {"blocks": [[1]]},
    "block size": {"block_bytes": 0},
}


@pytest.mark.parametrize("checksum", [True, False], ids=["", "without checksum"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_a_description_that_makes_no_sense_is_noticed(
    fields: dict, checksum: bool, pets, config, cache, capsys
) -> None:
    info = json.loads((cache / "cache.json").read_text()) | fields
    info["crc32"] = crc32({key: value for key, value in info.items() if key != "crc32"}) if checksum else 0
    (cache / "cache.json").write_text(json.dumps(info))
    assert open_images(config(source=pets)).shape == (3, 4, 5)
    assert f"{cache} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "{", "[" * 100_000, '{"a": ' * 900 + "1" + "}" * 900, "1" * 9000]
)
def test_a_description_of_another_kind_is_noticed(text: str, pets, config, cache, capsys) -> None:
    (cache / "cache.json").write_text(text)
    assert len(open_images(config(source=pets))) == COUNT
    assert f"{cache} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "field", ["shape", "pixel_format", "classes", "bad", "notes", "fingerprint", "blocks", "crc32"]
)
def test_a_missing_field_is_noticed(field: str, pets, config, cache, capsys) -> None:
    """`crc32` is missing in caches of earlier versions."""
    info = json.loads((cache / "cache.json").read_text())
    del info[field], info["crc32" if field != "crc32" else "block_bytes"]
    (cache / "cache.json").write_text(json.dumps(info | ({} if field == "crc32" else {"crc32": crc32(info)})))
    assert len(open_images(config(source=pets))) == COUNT
    assert f"{cache} is damaged" in capsys.readouterr().err


def test_a_cache_of_an_earlier_version_has_no_checksums(pets, config, cache, capsys) -> None:
    info = json.loads((cache / "cache.json").read_text())
    for field in ("crc32", "blocks", "block_bytes"):
        del info[field]
    (cache / "cache.json").write_text(json.dumps(info))
    assert len(open_images(config(source=pets))) == COUNT
    message = capsys.readouterr().err
    assert f"{cache} has no checksums" in message
    assert "damaged" not in message


def test_a_large_description_is_read(pets, config, cache, monkeypatch) -> None:
    """Such as one with the reasons of a million unreadable images."""
    with (cache / "cache.json").open("ab") as file:
        file.write(b" " * (65 << 20))
    monkeypatch.setattr(module, "build", None)
    assert len(open_images(config(source=pets))) == COUNT


def archive(file: Path) -> Path:
    np.savez(file, labels=np.zeros(COUNT, np.int64))
    return file


LABELS: dict[str, Callable[[Path], object]] = {
    "pickle": lambda file: np.save(file, np.array([{}] * COUNT, dtype=object), allow_pickle=True),
    "dtype": lambda file: np.save(file, np.zeros(COUNT)),
    "length": lambda file: np.save(file, np.zeros(COUNT + 1, np.int64)),
    "axes": lambda file: np.save(file, np.zeros((COUNT, 1), np.int64)),
    "negative": lambda file: np.save(file, np.full(COUNT, -1)),
    "out of range": lambda file: np.save(file, np.full(COUNT, 2)),
    "archive": lambda file: shutil.move(archive(file.parent.parent / "labels.npz"), file),
}


@pytest.mark.parametrize("harm", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("checksum", [True, False])
def test_other_labels_are_noticed(checksum: bool, harm, pets, config, cache, capsys) -> None:
    """Even with a checksum that fits, which no accident would make."""
    harm(cache / "labels.npy")
    if checksum:
        info = json.loads((cache / "cache.json").read_text())
        info["blocks"]["labels.npy"] = Checksums.of(cache / "labels.npy").blocks
        info["crc32"] = crc32({key: value for key, value in info.items() if key != "crc32"})
        (cache / "cache.json").write_text(json.dumps(info))
    assert open_images(config(source=pets)).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert f"{cache} is damaged" in capsys.readouterr().err


REPLACED: dict[str, Callable[[Path, Path], object]] = {
    "file": lambda path, precious: path.write_text("text"),
    "pipe": lambda path, precious: os.mkfifo(path),
    "link to a file": lambda path, precious: path.symlink_to(precious),
    "link to a folder": lambda path, precious: path.symlink_to(precious.parent / "linked", target_is_directory=True),
    "dangling link": lambda path, precious: path.symlink_to("nowhere"),
    "empty folder": lambda path, precious: path.mkdir(),
    "folder with a file": lambda path, precious: (path.mkdir(), (path / "x").write_text("x")),
}


@pytest.mark.parametrize("suffix", ["", ".partial", ".lock"])
@pytest.mark.parametrize("put", REPLACED.values(), ids=REPLACED)
def test_something_else_in_place_of_a_folder_or_a_lock(suffix, put, precious, pets, config, cache) -> None:
    (precious.parent / "linked").mkdir()
    shutil.rmtree(cache)
    put(cache.with_name(cache.name + suffix), precious)
    assert len(open_images(config(source=pets))) == COUNT
    assert precious.read_text() == "keep me"
    assert list((precious.parent / "linked").iterdir()) == []
    assert cache.is_dir()
    assert not cache.is_symlink()


@pytest.mark.parametrize(
    "name",
    ["images-1.bin", "images-3.bin", "images.bin", "labels.npy", "tmp-labels.npy", "cache.json", "journal.jsonl"],
)
@pytest.mark.parametrize("put", REPLACED.values(), ids=REPLACED)
def test_something_else_in_place_of_a_file_of_a_build(name, put, precious, pets, config, cache) -> None:
    shutil.rmtree(cache)
    partial = cache.with_name(f"{cache.name}.partial")
    partial.mkdir()
    put(partial / name, precious)
    assert len(open_images(config(source=pets))) == COUNT
    assert precious.read_text() == "keep me"
    assert sorted(path.name for path in cache.iterdir() if path.is_file()) == ["cache.json", "images.bin", "labels.npy"]


def test_verified_once_for_all_processes(pets, config, cache, monkeypatch) -> None:
    """The processes that wait for the main process read only the description."""
    monkeypatch.setattr("training.data.cache.files.verify", None)
    assert isinstance(open_images(config(source=pets), on_main=lambda find: cache), Images)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of ten blocks and a half."""
    file = tmp_path / "large"
    file.write_bytes(np.random.default_rng(0).bytes(10 * BLOCK_BYTES + BLOCK_BYTES // 2))
    return file


def test_all_blocks_are_compared_as_long_as_there_is_time(large: Path) -> None:
    blocks = Checksums.of(large).blocks
    assert len(blocks) == 11
    assert verify(large, blocks, math.inf) == 1
    assert 1 / 11 <= verify(large, blocks, 0.0) <= 4 / 11
    for number in range(11):
        flip(large, number * BLOCK_BYTES + 7)
        with pytest.raises(ValueError, match=rf"large.*{number * BLOCK_BYTES:,}"):
            verify(large, blocks, math.inf)
        flip(large, number * BLOCK_BYTES + 7)


def test_without_time_another_random_sample_is_compared_each_time(large: Path) -> None:
    blocks = Checksums.of(large).blocks
    flip(large, 3 * BLOCK_BYTES)
    found = 0
    for _ in range(60):
        try:
            verify(large, blocks, 0.0)
        except ValueError:
            found += 1
    assert 0 < found < 60


def test_damage_is_not_overlooked_by_a_second_sample(pets, config, cache, capsys, monkeypatch) -> None:
    """A large cache is verified in part, another part each time."""
    samples = iter([ValueError("images.bin differs")])
    original = files.verify

    def sample(path: Path, blocks: list[int], seconds: float) -> float:
        if path.parent == cache and path.name == "images.bin" and (error := next(samples, None)):
            raise error
        return original(path, blocks, seconds)

    monkeypatch.setattr(files, "verify", sample)
    before = (cache / "cache.json").stat().st_ino, cache.stat().st_mtime_ns
    assert len(open_images(config(source=pets))) == COUNT
    assert ((cache / "cache.json").stat().st_ino, cache.stat().st_mtime_ns) != before
    assert f"{cache} is damaged (images.bin differs)" in capsys.readouterr().err
    assert len(open_images(config(source=pets))) == COUNT
    assert capsys.readouterr().err == ""


def test_a_sample_is_reported_with_its_share(pets, config, cache, capsys, monkeypatch) -> None:
    monkeypatch.setattr("training.data.cache.files.verify", lambda *arguments: 0.25)
    assert len(open_images(config(source=pets))) == COUNT
    assert f"25.0% of {cache / 'images.bin'}" in capsys.readouterr().err


@pytest.mark.parametrize("part", [1, 7, 1 << 16, BLOCK_BYTES + 1])
def test_checksums_do_not_depend_on_how_a_file_is_written(part: int, monkeypatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 1 << 10)
    data = np.random.default_rng(0).bytes(10_000)
    whole, parts = Checksums(), Checksums()
    whole.add(data)
    for start in range(0, len(data), part):
        parts.add(data[start : start + part])
    assert whole.blocks == parts.blocks
    assert len(whole.blocks) == 10


def test_opening_a_cache_takes_bounded_time(pets, config, cache, monkeypatch) -> None:
    """A file that is read slowly, such as over a network: one block per thread is compared, not all."""
    monkeypatch.setattr(files, "SECONDS", 0.0)
    start = time.monotonic()
    open_images(config(source=pets))
    assert time.monotonic() - start < 5
