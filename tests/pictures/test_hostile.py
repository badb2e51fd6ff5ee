"""Pictures of every format, damaged, hostile or unusual."""

import os
import socket
import struct
import subprocess
import threading
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pictures.decode import MAX_METADATA, Budget, decode, decode_file, open_image
from pictures.formats import FORMATS
from pictures.preprocessing import Preprocessing

FOUND = Preprocessing()
NOISE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
SMOOTH = (np.indices((64, 48)).sum(0)[..., None] * [2, 1, 2]).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows: bytes, height: int, *chunks: bytes, width: int = 48, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlace)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_rows(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "BMP": {},
    "DIB": {},
    "TIFF": {},
    "PPM": {},
    "JPEG2000": {},
    "QOI": {},
    "PCX": {},
    "TGA": {"compression": "tga_rle"},
    "JPEG": {"quality": 100, "subsampling": 0},
    "GIF": {},
    "ICO": {"sizes": [(48, 64)]},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_decoded(kind: str) -> None:
    pixels = decode(encoded(SMOOTH, kind, **LOSSLESS[kind]), FOUND)
    np.testing.assert_allclose(pixels.astype(int), SMOOTH.transpose(2, 0, 1), atol=8 if kind in ("JPEG", "AVIF") else 3)


KINDS: dict[str, bytes] = {
    **{kind: encoded(NOISE, kind, **LOSSLESS[kind]) for kind in FORMATS},
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "interlaced": encoded(Image.fromarray(NOISE).quantize(64), "GIF", interlace=1),
    "cmyk": encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    "lzw": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "deflate": encoded(NOISE, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg in tiff": encoded(NOISE, "TIFF", compression="jpeg"),
    "group4": encoded(Image.fromarray(NOISE).convert("1"), "TIFF", compression="group4"),
    "lossy webp": encoded(NOISE, "WEBP"),
    "pbm": encoded(Image.fromarray(NOISE).convert("1"), "PPM"),
    "raw tga": encoded(NOISE, "TGA"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_an_error(kind: str, share: float) -> None:
    data = KINDS[kind]
    decode(data, FOUND)
    with pytest.raises(ValueError, match=r"\S"):  # the reason is Pillow's
        decode(data[: int(len(data) * share)], FOUND)


@pytest.mark.parametrize("rows", [0, 1, 32, 63, 63.5])
def test_a_png_whose_rows_end_early_is_an_error(rows: float) -> None:
    """Its compressed stream is complete and its checksums are right, so that Pillow makes the other rows black."""
    raw = png_rows(NOISE)
    np.testing.assert_array_equal(decode(png(raw, 64), FOUND), NOISE.transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"end early|truncated"):
        decode(png(raw[: int(len(raw) * rows / 64)], 64), FOUND)
    with pytest.raises(ValueError, match=r"unrecognized data|truncated"):
        decode(png(raw[: int(len(raw) * rows / 64)], 64, interlace=1), FOUND)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_that_ends_in_black_is_complete(mode: str) -> None:
    assert not decode(encoded(Image.new(mode, (9, 7), 0), "PNG"), Preprocessing(background=(0, 0, 0))).any()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}, {"subsampling": 0}, {"optimize": True}])
def test_a_jpeg_whose_blocks_end_early_is_an_error(mode: str, options: dict) -> None:
    """It has an end marker, so that libjpeg makes the other blocks grey."""
    data = encoded(Image.fromarray(NOISE).convert(mode), "JPEG", **options)
    decode(data, FOUND)
    for share in (0.5, 0.8):
        with pytest.raises(ValueError, match=r"end early"):
            decode(data[: int(len(data) * share)] + b"\xff\xd9", FOUND)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}])
@pytest.mark.parametrize("level", [127, 128])
def test_a_jpeg_that_ends_in_grey_is_complete(level: int, options: dict) -> None:
    half = np.where(np.indices((64, 48))[0] < 32, SMOOTH[..., 0], level).astype(np.uint8)
    assert abs(int(decode(encoded(half, "JPEG", **options), FOUND)[0, -1, -1]) - level) <= 2


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
OTHERS = {
    "postscript": POSTSCRIPT,
    "postscript in dos": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT,
    "photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(8) + bytes(194),
    "fits": b"SIMPLE  =                    T".ljust(80)
    + b"BITPIX  =                    8".ljust(80)
    + b"NAXIS   =                    2".ljust(80)
    + b"NAXIS1  =                    2".ljust(80)
    + b"NAXIS2  =                    2".ljust(80)
    + b"END".ljust(2480)
    + bytes(4),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "grib": b"GRIB" + bytes([0, 0, 0, 1]) + bytes(64),
    "bufr": b"BUFR" + bytes(64),
    "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(64),
    "mpeg": b"\0\0\1\xb3" + bytes(64),
    "pcd": b"\xff" * 2048 + b"PCD_IPI" + bytes(64),
    "xpm": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"};\n',
    "xbm": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {\n0x00};\n",
    "sun": struct.pack(">8I", 0x59A66A95, 8, 1, 8, 8, 1, 0, 0) + bytes(8),
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.7\n%%EOF\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "zip": b"PK\x03\x04" + bytes(64),
    "zeros": bytes(4096),
    "one byte": b"\x89",
    "empty": b"",
    "signature": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds_start_no_program_and_are_no_images(name: str, monkeypatch, tmp_path: Path) -> None:
    started: list = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr(os, "system", started.append)
    (tmp_path / "x.png").write_bytes(OTHERS[name])
    for data in (OTHERS[name], tmp_path / "x.png"):
        with pytest.raises(Exception):  # noqa: B017, PT011 - as many types as formats
            decode(data, FOUND)
    assert not started


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a device", "folder", "dangling", "loop"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "cat.png"
    monkeypatch.chdir(tmp_path)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("cat.png")
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link to a device": "/dev/zero", "dangling": "none", "loop": "cat.png"}[kind])
    expected = {"pipe": "a named pipe", "socket": "a socket", "folder": "a folder", "dangling": "No such file"}
    with pytest.raises((ValueError, OSError), match=expected.get(kind, "a device|symbolic links")):
        decode(path, FOUND)


@pytest.mark.parametrize("size", [2 << 20, 20 << 20])
@pytest.mark.parametrize("kind", ["iCCP", "zTXt", "tEXt", "iTXt"])
def test_a_png_with_a_large_text_or_profile_is_read(size: int, kind: str) -> None:
    text = bytes(size) if kind == "iCCP" else b"x" * size
    body = {
        "iCCP": b"name\0\0" + zlib.compress(text),
        "zTXt": b"key\0\0" + zlib.compress(text),
        "tEXt": b"key\0" + text,
        "iTXt": b"key\0\0\0\0\0" + text,
    }[kind]
    data = png(png_rows(NOISE), 64, chunk(kind.encode(), body))
    np.testing.assert_array_equal(decode(data, FOUND), NOISE.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["iCCP", "zTXt"])
def test_metadata_that_unpack_to_more_are_refused(kind: str) -> None:
    bomb = zlib.compress(bytes(MAX_METADATA + 1))
    with pytest.raises(ValueError, match=r"MAX_TEXT_CHUNK"):
        decode(png(png_rows(NOISE), 64, chunk(kind.encode(), b"key\0\0" + bomb)), FOUND)
    assert PngImagePlugin.MAX_TEXT_MEMORY == MAX_METADATA


EXIF = {
    "no tiff": b"Exif\0\0garbage",
    "empty": b"Exif\0\0",
    "truncated": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
    "text": b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, 2, 4, b"abc\0", 0),
    "nine": b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 9, 0),
    "zero": b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 0, 0),
    "many": b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 2, 6, 6, 0),
    "far": b"Exif\0\0II*\0" + struct.pack("<I", 1 << 31),
    "rational": b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 5, 1, 26) + struct.pack("<III", 0, 0, 0),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Possibly corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", EXIF)
def test_a_damaged_orientation_is_ignored(name: str, kind: str) -> None:
    pixels = decode(encoded(SMOOTH, kind, exif=EXIF[name]), FOUND)
    assert pixels.shape == (3, 64, 48)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_the_first_picture_of_several_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue")]
    pixels, several, _ = decode_file(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), FOUND)
    assert several
    np.testing.assert_allclose(pixels[:, 4, 4], [255, 0, 0], atol=4)


def test_a_multi_picture_jpeg_and_an_icon_of_several_sizes() -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue")]
    pixels, several, _ = decode_file(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]), FOUND)
    assert (several, pixels.shape) == (True, (3, 8, 16))
    icon = encoded(Image.new("RGB", (64, 64), "red"), "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    assert decode(icon, FOUND).shape == (3, 64, 64)


def test_a_targa_file_from_the_top() -> None:
    header = bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 24, 0x20])
    assert decode(header + bytes([1, 2, 3, 4, 5, 6]), FOUND)[:, :, 0].T.tolist() == [[3, 2, 1], [6, 5, 4]]


def test_jpeg_2000_with_16_bits() -> None:
    levels = np.array([[0, 257, 65535, 4]], np.uint16).repeat(4, 0)
    data = encoded(levels, "JPEG2000")
    np.testing.assert_array_equal(decode(data, Preprocessing(bits=16))[0], levels)
    assert decode(data, FOUND)[0, 0].tolist() == [0, 1, 255, 0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_by_the_header() -> None:
    with pytest.raises(ValueError, match=r"10000 x 10000"):
        decode(png(b"", 10000, width=10000), FOUND)
    for side in (20000, 2**31 - 1):
        with pytest.raises(ValueError, match=rf"{side**2} pixels"):
            decode(png(b"", side, width=side), FOUND)


def test_a_file_of_more_than_1_gib_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(NOISE, "PNG"))
    os.truncate(tmp_path / "a.png", 10**10)
    with pytest.raises(ValueError, match=r"10,000,000,000 bytes.*1,073,741,824"):
        decode(tmp_path / "a.png", FOUND)


def test_threads_share_a_number_of_pixels() -> None:
    budget, most, now, lock = Budget(10), 0, 0, threading.Lock()

    def work(pixels: int) -> None:
        nonlocal most, now
        with budget.hold(pixels):
            with lock:
                now += pixels
                most = max(most, now)
            threading.Event().wait(0.002)
            with lock:
                now -= pixels

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (10, 3, 3, 3, 7, 10, 1, 5) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (now, most) == (0, 10)


def test_decoding_holds_the_pixels_of_the_header(monkeypatch) -> None:
    budget = Budget(64 * 48)
    monkeypatch.setattr("pictures.decode.IN_FLIGHT", budget)
    with pytest.raises(ValueError, match=r"end early"):
        decode(png(png_rows(NOISE[:9]), 64), FOUND)
    decode(encoded(NOISE, "PNG"), FOUND)
    with (
        budget.hold(64 * 48),
        open_image(encoded(NOISE, "PNG")) as image,
    ):  # everything is free again; headers need none
        assert image.size == (48, 64)
