"""Builds of the cache that are killed, run twice, fail, or run out of disk space."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from training.data import DataConfig, open_images
from training.data.cache import build as module
from training.data.cache import pixel_file
from training.data.cache.pixel_file import PixelFile

COUNT = 120


@pytest.fixture(scope="module")
def pets(pixels, save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures, one in colour late among them, one bad, one animation; two classes. They are only read."""
    folder = tmp_path_factory.mktemp("source") / "pets"
    for i in range(COUNT):
        shape = (4, 5, 3) if i == 70 else (4, 5)
        save(folder / ("cat" if i % 3 else "dog") / f"{i:03}.png", pixels(i, *shape))
    (folder / "cat" / "010.png").write_text("no image")
    frames = [Image.fromarray(pixels(i, 4, 5)) for i in range(2)]
    frames[0].save(folder / "cat" / "011.png", save_all=True, append_images=frames[1:])
    return folder


@pytest.fixture
def own_pets(pets: Path, tmp_path: Path) -> Path:
    """A copy of these pictures that a test changes."""
    return shutil.copytree(pets, tmp_path / "pets")


@pytest.fixture(scope="module")
def content() -> Callable[[DataConfig], dict[str, bytes]]:
    """The bytes of each file of the only folder in a cache, after it is opened."""

    def read(config: DataConfig) -> dict[str, bytes]:
        open_images(config)
        (folder,) = config.cache.iterdir()
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    return read


@pytest.fixture(scope="module")
def straight(pets: Path, content, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a build without interruption."""
    return content(DataConfig(source=str(pets), cache=tmp_path_factory.mktemp("straight") / "cache"))


class Killed(BaseException):
    """Stands for SIGKILL: no handler in the program catches it."""


def killed(*_arguments, **_options):
    raise Killed


@pytest.fixture
def build_until(pets, config, monkeypatch) -> Callable[[int], None]:
    """Starts a build that is killed before the image of a number is written."""

    def start(number: int) -> None:
        append = PixelFile.append
        with monkeypatch.context() as patch:
            patch.setattr(
                PixelFile,
                "append",
                lambda self, *image: (killed if self.progress.count == number else append)(self, *image),
            )
            with pytest.raises(Killed):
                open_images(config(source=pets))

    return start


@pytest.fixture
def every_image(monkeypatch) -> None:
    """The journal is written after every image."""
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """Names of the images that are written from here on."""
    names: list[str] = []
    append = PixelFile.append
    monkeypatch.setattr(PixelFile, "append", lambda self, image, name: (names.append(name), append(self, image, name)))
    return names


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
@pytest.mark.parametrize("stops", [(1,), (9, 10, 11), (60,), (95, 118)])
def test_a_killed_build_resumes_to_the_same_bytes(
    stops, seconds, pets, config, content, straight, build_until, monkeypatch
) -> None:
    """With a journal of every image, and with one of only the start and the change to RGB."""
    monkeypatch.setattr(module, "SAVE_SECONDS", seconds)
    for stop in stops:
        build_until(stop)
        names = sorted(path.suffix for path in config().cache.iterdir())
        assert names == [".lock", ".partial"]
    assert content(config(source=pets)) == straight
    assert sorted(straight) == ["cache.json", "images.bin", "labels.npy"]


def test_a_resumed_build_decodes_no_image_again(pets, config, every_image, build_until, written, capsys) -> None:
    build_until(100)
    assert "skipped cat/010.png" in capsys.readouterr().err
    images = open_images(config(source=pets))
    assert len(images) == COUNT - 1
    assert len(written) == COUNT - 1
    assert "skipped" not in capsys.readouterr().err
    assert [text.partition(":")[0] for text in images.bad] == ["cat/010.png"]


@pytest.mark.parametrize(
    ("where", "what", "stop"),
    [
        (PixelFile, "save", lambda self: None if self.progress.count == 0 else killed()),  # the RGB copy exists
        (module, "write_text", killed),  # only cache.json is missing
        (module.os, "replace", lambda old, new: killed() if str(old).endswith(".partial") else os.rename(old, new)),
    ],
    ids=["widened", "undescribed", "unnamed"],
)
def test_a_kill_between_two_steps(where, what, stop, pets, config, content, straight, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, what, stop)
        with pytest.raises(Killed):
            open_images(config(source=pets))
    assert content(config(source=pets)) == straight


def test_a_truncated_line_of_the_journal_is_dropped(pets, config, content, straight, every_image, build_until) -> None:
    build_until(100)
    (journal,) = config().cache.glob("*.partial/journal.jsonl")
    journal.write_bytes(journal.read_bytes()[:-20])
    assert content(config(source=pets)) == straight


@pytest.mark.parametrize("stop", [40, 90])  # before and after the change to RGB
def test_lost_or_damaged_images_are_decoded_again(
    stop, pets, config, content, straight, every_image, build_until, written
) -> None:
    for size, flips in ((700, ()), (None, (0,)), (None, (401, 402)), (0, ()), (None, (20 * stop - 1,))):
        build_until(stop)
        (file,) = config().cache.glob("*.partial/images-*.bin")
        data = bytearray(file.read_bytes()[:size])
        for byte in flips:
            data[byte] ^= 1
        file.write_bytes(data)
        written.clear()
    assert content(config(source=pets)) == straight
    assert len(written) == COUNT - 1


def flip(line: bytes) -> bytes:
    return line.replace(b'"taken": ', b'"taken": 1')


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped digit": flip,
    "no line end": lambda line: line[:-1],
    "empty": lambda line: b"\n",
    "list": lambda line: b"[1, 2]\n",
    "no checksum": lambda line: (
        json.dumps({k: v for k, v in json.loads(line).items() if k != "crc32"}).encode() + b"\n"
    ),
    "text as checksum": lambda line: b'{"crc32": "x"}\n',
    "bytes": lambda line: b"\xff\x00\xfe\n",
    "deep": lambda line: b"[" * 100_000 + b"\n",
    "twice": lambda line: line[:-1] + line,
    "zeros": lambda line: bytes(len(line)),
    "label": lambda line: line.replace(b'"labels": [', b'"labels": [0, '),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("number", [0, 1, 60, -1])
def test_lines_of_the_journal_after_a_damaged_one_are_dropped(
    number, damage, pets, config, content, straight, every_image, build_until, written, capsys
) -> None:
    build_until(69)  # before the change to RGB, after which earlier images are lost
    (journal,) = config().cache.glob("*.partial/journal.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    number %= len(lines)
    lines[number] = damage(lines[number])
    journal.write_bytes(b"".join(lines))
    written.clear()
    capsys.readouterr()
    assert content(config(source=pets)) == straight
    kept = max(json.loads(line)["count"] for line in lines[:number]) if number else 0
    assert len(written) == COUNT - 1 - kept
    assert f"{journal} is damaged" in capsys.readouterr().err


CHILD = """
import sys, time
from pathlib import Path
from training.data import DataConfig, open_images
from training.data.cache import build
from training.data.cache.pixel_file import PixelFile
build.SAVE_SECONDS = 0.0
append = PixelFile.append
PixelFile.append = lambda self, image, name: (time.sleep(0.02), append(self, image, name))
open_images(DataConfig(source=sys.argv[1], cache=Path(sys.argv[2])))
"""


def test_another_process_waits_names_for_whom_and_takes_over_when_it_is_killed(
    pets, config, content, straight, capsys
) -> None:
    cache = config().cache
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(pets), str(cache)], stderr=subprocess.DEVNULL)
    while sum(len(file.read_bytes().splitlines()) for file in cache.glob("*.partial/journal.jsonl")) < 20:
        assert child.poll() is None
        time.sleep(0.01)
    threading.Timer(0.3, lambda: child.send_signal(signal.SIGKILL)).start()
    assert content(config(source=pets)) == straight
    assert child.wait() == -signal.SIGKILL
    assert f"waiting for process {child.pid} on " in capsys.readouterr().err


def test_who_waited_finds_the_cache(pets, config, monkeypatch) -> None:
    """Nothing is built when the other is done: here the folder appears while the lock is held."""
    images = open_images(config(source=pets))
    (folder,) = config().cache.iterdir()
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    held = threading.Event()

    def other() -> None:
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            held.set()
            time.sleep(0.2)
            hidden.rename(folder)

    threading.Thread(target=other).start()
    held.wait()
    monkeypatch.setattr(module, "write", None)
    assert open_images(config(source=pets)).fingerprint == images.fingerprint
    assert list(config().cache.iterdir()) == [folder]


def test_a_build_with_invalid_data_leaves_no_files(own_pets, config, pixels, save) -> None:
    save(own_pets / "dog" / "999.png", pixels(0, 9, 9))
    with pytest.raises(ValueError, match=r"999\.png has 9 x 9"):
        open_images(config(source=own_pets))
    assert list(config().cache.iterdir()) == []


def test_a_higher_max_bad_resumes_the_build(own_pets, config, every_image, written) -> None:
    (own_pets / "dog" / "099.png").write_text("no image")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"data\.max_bad 1 .*cat/010\.png: "):
            open_images(config(source=own_pets, max_bad=1))
    assert len(open_images(config(source=own_pets, max_bad=2)).bad) == 2
    assert len(written) == len(set(written)) == COUNT - 2


def test_files_with_several_pictures_are_reported(pets, config, straight) -> None:
    note = "1 file holds several pictures, such as cat/011.png; the first is used"
    assert json.loads(straight["cache.json"])["notes"] == [note]
    assert str(open_images(config(source=pets))).endswith(f"; {note}")


def test_missing_disk_space_is_an_error_after_the_first_image(pets, config, monkeypatch) -> None:
    free = namedtuple("free", "total used free")(0, 0, COUNT * 20 - 1)
    monkeypatch.setattr(pixel_file.shutil, "disk_usage", lambda _: free)
    with pytest.raises(ValueError, match=r"2\.4 kB .*partial has 2\.4 kB .*data\.cache"):
        open_images(config(source=pets))
    assert list(config().cache.iterdir()) == []
    monkeypatch.setattr(pixel_file.shutil, "disk_usage", lambda _: free._replace(free=COUNT * 20))
    with pytest.raises(ValueError, match=r"7\.2 kB "):  # as RGB
        open_images(config(source=pets))


def test_a_full_disk_is_named_and_the_build_resumes_later(pets, config, content, straight, monkeypatch) -> None:
    def full(self, image, name):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PixelFile, "append", full)
        with pytest.raises(OSError, match="No space left") as raised:
            open_images(config(source=pets))
    assert str(raised.value.filename).endswith(".partial")
    assert content(config(source=pets)) == straight


def test_the_progress_bar_resumes_with_the_build(pets, config, every_image, build_until, monkeypatch) -> None:
    build_until(30)
    seen = []
    bar = module.Bar
    monkeypatch.setattr(module, "Bar", lambda **options: (seen.append(options["initial"]), bar(**options))[1])
    assert np.shape(open_images(config(source=pets)).labels) == (COUNT - 1,)
    assert seen == [31]  # with an unreadable one
