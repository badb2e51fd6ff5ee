import os
import socket
import stat
from pathlib import Path

import pytest

from storage.read import is_regular, open_regular, parse_json, read_bytes, read_json, read_text, require_regular


@pytest.fixture(params=["pipe", "socket", "folder", "device", "link to a pipe"])
def irregular(request, tmp_path):
    path = tmp_path / "x"
    match request.param:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.path.relpath(path))
        case "folder":
            path.mkdir()
        case "device":
            return Path("/dev/zero")
        case _:
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to(tmp_path / "pipe")
    return path


@pytest.mark.parametrize("read", [require_regular, open_regular, read_bytes, read_text, read_json])
def test_only_regular_files_are_read(read, irregular):
    with pytest.raises(ValueError, match=str(irregular)):
        read(irregular)
    assert not is_regular(irregular)


def test_a_file_that_becomes_a_pipe_before_it_is_opened(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.touch()
    status = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda _: status)
    assert stat.S_ISREG(os.stat(path).st_mode)
    with pytest.raises(ValueError, match=f"{path}.*pipe"):
        open_regular(path)


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "a").write_text("text")
    (tmp_path / "b").symlink_to("a")
    assert read_bytes(tmp_path / "b") == b"text"
    assert is_regular(tmp_path / "b")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "x")
    assert not is_regular(tmp_path / "x")
    assert not is_regular(tmp_path / "a\0b")


def test_the_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(11))
    assert read_bytes(path, 11) == read_bytes(path, None) == bytes(11)
    with pytest.raises(ValueError, match=rf"{path}.*10"):
        read_bytes(path, 10)


def test_text(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn")
    assert read_text(path) == "grün"
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=rf"{path}.*UTF-8.*2"):
        read_text(path)


@pytest.mark.parametrize("text", ["{", "[1]", "nul", '{"a": ' + "9" * 5000 + "}", "[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_no_object(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)):
        read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_json_values():
    assert parse_json("[1]") == parse_json(b"[1]") == [1]
    with pytest.raises(ValueError, match="nested"):
        parse_json("[" * 100_000)


def test_no_memory_is_taken_for_bytes_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 8192)  # 2 MiB
    with open_regular(tmp_path / "file") as file:
        assert len(file.read(1 << 60)) == 2 << 20
        assert file.read(1 << 60) == b""
        file.seek(5)
        assert file.read(3) == b"\5\6\7"
        assert len(file.read()) == (2 << 20) - 8
        file.seek(1 << 20)
        assert len(file.read(1 << 40)) == 1 << 20
