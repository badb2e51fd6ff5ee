"""Where caches are kept: the given folder, the default one, or a temporary one if that cannot be written."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from tests import forks
from training.data import DataConfig, open_images
from training.data.cache import place
from training.data.cache.place import default_caches, writable_caches


@pytest.fixture
def home(monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "pictures" / "0.png")
    return tmp_path / "home"


def folder_of(base: Path, cache: Path | None = None) -> Path:
    """Where below `base`, or in `cache`, the one small picture of `home` is cached."""
    open_images(DataConfig(source=str(base / "pictures"), cache=cache))
    (file,) = (cache or base).rglob("images.bin")
    return file.parents[1]


def test_the_cache_is_in_the_home_folder_by_default(home: Path, tmp_path: Path, capsys) -> None:
    assert folder_of(tmp_path) == home / ".cache" / "residual-diffusion"
    assert capsys.readouterr().err == ""


def test_the_cache_folder_of_the_system_is_used(home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder_of(tmp_path) == tmp_path / "xdg" / "residual-diffusion"


@pytest.mark.parametrize("value", ["", "relative", "./here", "~"])
def test_a_relative_cache_folder_of_the_system_is_ignored(value: str, home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.chdir(tmp_path)
    assert folder_of(tmp_path) == home / ".cache" / "residual-diffusion"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOME", "/dev/null"),
        ("HOME", "/proc/nonexistent"),
        ("HOME", "file"),
        ("HOME", "relative"),
        ("XDG_CACHE_HOME", "/dev/null"),
        ("XDG_CACHE_HOME", "/proc"),
        ("XDG_CACHE_HOME", "FILE/below"),
        ("XDG_CACHE_HOME", "/" + "x" * 300),
    ],
)
def test_a_default_that_cannot_be_written_gives_way(
    name, value, home: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value.replace("FILE", str(tmp_path / "file")))
    temporary = tmp_path / "temporary" / f"residual-diffusion-{os.getuid()}"
    for _ in range(2):  # the second time it is found there
        assert folder_of(tmp_path) == temporary
        message = capsys.readouterr().err
        assert message.startswith(f"cache: {temporary}")
        assert "data.cache" in message
        assert message.count("\n") == 1
    assert len(list(temporary.iterdir())) == 1
    assert temporary.stat().st_mode & 0o77 == 0
    given = tmp_path / "given"
    assert folder_of(tmp_path, given) == given
    assert capsys.readouterr().err == ""


def test_a_full_disk_of_the_default_gives_way(home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(place, "write_fault", lambda folder: f"{folder} cannot be written (No space left on device)")
    assert folder_of(tmp_path).parent == tmp_path / "temporary"
    assert "No space left" in capsys.readouterr().err


def test_a_user_without_a_home_folder(home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])  # what pwd raises for an unknown user
    assert default_caches() is None
    assert folder_of(tmp_path).parent == tmp_path / "temporary"
    assert "no home folder" in capsys.readouterr().err


@pytest.mark.parametrize("taken", ["link", "file"])
def test_a_temporary_folder_of_somebody_else_is_not_used(taken: str, home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    name = tmp_path / "temporary" / f"residual-diffusion-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    if taken == "link":
        name.symlink_to(tmp_path / "elsewhere")
    else:
        name.write_text("text")
    folder = folder_of(tmp_path)
    assert folder != name
    assert folder.parent == name.parent
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "given", ["/dev/null", "/dev/null/x", "FILE", "FILE/x", "PIPE", "/proc/x", "~nosuchuser/x", "a\0b", "x" * 300]
)
def test_a_given_folder_that_cannot_be_used_is_an_error(given: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    path = Path(given.replace("FILE", str(tmp_path / "file")).replace("PIPE", str(tmp_path / "pipe")))
    with pytest.raises(ValueError, match=r"data\.cache '.*give a ") as error:
        open_images(DataConfig(cache=path))
    assert repr(str(path)) in str(error.value)
    assert not list(tmp_path.rglob("images.bin"))


@pytest.fixture
def open_folder():
    """A folder that every user may read and write; those of pytest are for one user."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        yield Path(name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("cached", [True, False])
def test_a_container_with_a_random_user(cached: bool, open_folder: Path) -> None:
    """No HOME and no entry of the user; a complete cache that may only be read is used."""
    if cached:
        open_images(DataConfig(cache=open_folder / "shared"))
    code = f"""
import os, sys, tempfile
from pathlib import Path
from training.data import DataConfig, open_images
open_images(DataConfig(cache=Path({str(open_folder / "before")!r})))  # imports what the other user may not read
tempfile.tempdir = {str(open_folder)!r}
os.setgid(54321); os.setuid(54321)
os.environ.pop("HOME", None)
print(len(open_images(DataConfig(cache={f"Path({str(open_folder / 'shared')!r})" if cached else None}))))
"""
    done = forks.run(code)
    assert done.stdout == "1797\n", done.stderr
    assert ("cache: " in done.stderr) is not cached


def test_the_default_is_created(home: Path) -> None:
    assert writable_caches(None) == home / ".cache" / "residual-diffusion"
    assert (home / ".cache" / "residual-diffusion").is_dir()
