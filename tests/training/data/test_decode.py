import struct
import threading
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures.decode import Budget, Postponed, decode, decode_file
from pictures.pixel_format import BYTES
from pictures.preprocessing import Preprocessing
from training.data import decode as module
from training.data.decode import decode_all, in_threads
from training.data.sources.arrays import ArrayImage
from training.data.sources.records import Item

FOUND = Preprocessing()


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_lossless_pixels_are_unchanged(pixels) -> None:
    grey, colour = pixels(0, 5, 7), pixels(1, 5, 7, 3)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey)), FOUND), grey[None])
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(colour)), FOUND), colour.transpose(2, 0, 1))


def test_channels_are_converted(pixels) -> None:
    grey, colour = pixels(0, 5, 7), pixels(1, 5, 7, 3)
    np.testing.assert_array_equal(decode(grey, Preprocessing(channels=3)), np.stack([grey] * 3))
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(decode(colour, Preprocessing(channels=1))[0], luma, atol=0.51)


def test_16_bit_greys_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = [[[0, 0, 1, 1, 128, 255]]]
    assert decode(encoded(Image.fromarray(deep)), FOUND).tolist() == expected
    assert decode(encoded(Image.fromarray(deep), "tiff"), FOUND).tolist() == expected
    assert decode(pgm16(deep), FOUND).tolist() == expected


DEEP = Preprocessing(bits=16)


def test_16_bits_are_kept_and_8_are_scaled_up() -> None:
    deep = np.array([[0, 1, 257, 65535]], np.uint16)
    for data in (encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep), "tiff"), pgm16(deep)):
        kept = decode(data, DEEP)
        assert kept.dtype == np.uint16
        assert kept.tolist() == [[[0, 1, 257, 65535]]]
    assert decode(encoded(Image.fromarray(deep)), Preprocessing(bits=16, channels=3)).tolist() == [deep.tolist()] * 3
    shallow = np.array([[0, 1, 254, 255]], np.uint8)
    assert decode(encoded(Image.fromarray(shallow)), DEEP).tolist() == [[[0, 257, 65278, 65535]]]
    colour = Image.new("RGBA", (1, 1), (1, 2, 3, 255))
    assert decode(encoded(colour), DEEP).ravel().tolist() == [257, 514, 771]


def pgm16(levels: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % levels.shape[::-1] + levels.astype(">u2").tobytes()


def test_16_bits_are_scaled_in_size_without_loss_or_clipping() -> None:
    flat = np.full((8, 8), 12345, np.uint16)
    assert (decode(encoded(Image.fromarray(flat)), Preprocessing(bits=16, size=(4, 6))) == 12345).all()
    edge = np.repeat(np.array([[0, 0, 65535, 65535]], np.uint16), 4, axis=0)
    wider = decode(encoded(Image.fromarray(edge)), Preprocessing(bits=16, size=(4, 16), crop="stretch"))[0]
    assert (wider[:, [0, 5]] == 0).all()  # bicubic overshoots
    assert (wider[:, [10, 15]] == 65535).all()
    assert len(np.unique(wider % 257)) > 1  # levels that 8 bits do not have


def png16(kind: int, levels: list[int], *chunks: bytes) -> bytes:
    """A PNG of one pixel with 16 bits a channel, which Pillow does not write."""
    return png_of(1, 16, kind, np.array(levels, ">u2").tobytes(), *chunks)


def png_of(width: int, bits: int, kind: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of one row."""
    data = zlib.compress(b"\0" + row)
    header = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    whole = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def tiff16(levels: list[int]) -> bytes:
    """An RGB TIFF of one pixel with 16 bits a channel: the tags of its only page, then 3 times "16", then the pixel."""
    tags = [(256, 1), (257, 1), (258, 122), (259, 1), (262, 2), (273, 128), (277, 3), (278, 1), (279, 6)]
    page = b"".join(struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + page + struct.pack("<I3H3H", 0, 16, 16, 16, *levels)


RGB, LA, RGBA = 2, 4, 6
WIDE = {
    "rgb": (png16(RGB, [0x1234, 0xFFFF, 0x00FF]), [0x12, 0xFF, 0x00]),
    "tiff": (tiff16([0x1234, 0xFFFF, 0x00FF]), [0x12, 0xFF, 0x00]),
    "text ppm": (b"P3 1 1 65535 4660 65535 255", [0x12, 0xFF, 0x00]),
    "rgb key": (png16(RGB, [4660, 1, 2], chunk(b"tRNS", struct.pack(">3H", 4660, 1, 2))), [255] * 3),
    "ppm": (b"P6 1 1 65535\n" + np.array([0x1234, 0xFFFF, 0x00FF], ">u2").tobytes(), [0x12, 0xFF, 0x00]),
    "rgba": (png16(RGBA, [0x1234, 0xFFFF, 0x00FF, 0xFFFF]), [0x12, 0xFF, 0x00]),
    "la": (png16(LA, [0x1234, 0xFFFF]), [0x12]),
    "key": (png16(0, [0x1234], chunk(b"tRNS", struct.pack(">H", 0x1234))), [255]),
    "other key": (png16(0, [0x1234], chunk(b"tRNS", struct.pack(">H", 0x1235))), [0x12]),
}


@pytest.mark.parametrize("kind", WIDE)
def test_16_bit_files_of_which_pillow_reads_8_bits_are_an_error_with_bits_16(kind: str) -> None:
    """With bits 8, Pillow reads the high byte (and scales a PPM)."""
    data, cut = WIDE[kind]
    np.testing.assert_allclose(decode(data, FOUND).ravel(), cut, atol="ppm" in kind)
    with pytest.raises(ValueError, match=r"16 bits.*data\.bits"):
        decode(data, DEEP)


def test_32_bit_pixels_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=rf"32 bits \(mode {mode}\)"):
            decode(encoded(Image.new(mode, (2, 2)), "tiff"), FOUND)


def test_transparent_images_get_a_white_background() -> None:
    hidden = Image.new("RGBA", (1, 3), (255, 0, 0, 0))
    hidden.putpixel((0, 1), (255, 0, 0, 255))
    hidden.putpixel((0, 2), (0, 0, 0, 51))  # a fifth of black
    assert decode(encoded(hidden), FOUND)[:, :, 0].T.tolist() == [[255] * 3, [255, 0, 0], [204] * 3]
    grey = Image.new("LA", (1, 2), (10, 0))
    grey.putpixel((0, 1), (10, 255))
    assert decode(encoded(grey), FOUND).tolist() == [[[255], [10]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, transparency=0), FOUND)[:, 0].T.tolist() == [[255] * 3, [0, 0, 255]]
    keyed = Image.new("L", (2, 1), 7)
    keyed.putpixel((1, 0), 8)
    assert decode(encoded(keyed, transparency=7), FOUND).tolist() == [[[255, 8]]]


def test_transparent_images_get_any_background_and_grey_stays_grey_on_grey() -> None:
    blue, grey = Preprocessing(background=(0, 100, 200)), Preprocessing(background=(100, 100, 100))
    fifth = Image.new("RGBA", (1, 1), (255, 0, 50, 51))  # a fifth of itself, four fifths of the background
    assert decode(encoded(fifth), blue).ravel().tolist() == [51, 80, 170]
    assert decode(encoded(fifth), grey).ravel().tolist() == [131, 80, 90]
    mono = Image.new("LA", (1, 1), (50, 51))
    assert decode(encoded(mono), blue).ravel().tolist() == [10, 90, 170]
    assert decode(encoded(mono), grey).ravel().tolist() == [90]
    assert decode(encoded(mono), Preprocessing(background=(100, 100, 100), bits=16)).ravel().tolist() == [90 * 257]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, transparency=0), blue)[:, 0].T.tolist() == [[0, 100, 200], [0, 0, 255]]
    keyed = Image.new("RGB", (1, 1), (1, 2, 3))
    assert decode(encoded(keyed, transparency=(1, 2, 3)), blue).ravel().tolist() == [0, 100, 200]
    assert decode(encoded(keyed, transparency=(1, 2, 4)), blue).ravel().tolist() == [1, 2, 3]


@pytest.mark.parametrize(("bits", "row"), [(1, 0b01000000), (2, 0b00010000), (4, 0b00000001)])
def test_the_transparent_level_of_a_grey_with_few_bits_is_found(bits: int, row: int) -> None:
    """Levels 0 and 1, of which 1 is transparent."""
    data = png_of(2, bits, 0, bytes([row]), chunk(b"tRNS", struct.pack(">H", 1)))
    assert decode(data, Preprocessing(background=(100, 100, 100))).tolist() == [[[0, 100]]]


def test_palettes_bits_and_cmyk_become_rgb_or_grey() -> None:
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(palette), FOUND).ravel().tolist() == [10, 20, 30]
    assert decode(encoded(Image.new("1", (1, 1), 1)), FOUND).tolist() == [[[255]]]
    ink = encoded(Image.new("CMYK", (1, 1), (51, 0, 255, 51)), "tiff")  # (1 - ink) (1 - black) = 0.8 x 0.8, 0.8, 0
    np.testing.assert_allclose(decode(ink, FOUND).ravel(), [163, 204, 0], atol=1)
    red = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg", quality=95), FOUND)
    np.testing.assert_allclose(red[:, 4, 4], [255, 0, 0], atol=3)


UPRIGHT = {  # EXIF 2.32, table 6: where the first row and the first column of the stored pixels are displayed
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.swapaxes(0, 1),  # left, top
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda stored: stored.swapaxes(0, 1)[::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation: int, pixels) -> None:
    stored = pixels(0, 4, 6, 3)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    upright = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(decode(encoded(image, exif=exif), FOUND), upright.transpose(2, 0, 1))
    deep = stored[..., 0].astype(np.uint16) * 200
    upright = UPRIGHT[orientation](deep)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(deep), exif=exif), DEEP)[0], upright)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_the_first_of_several_pictures_is_used_and_reported(kind: str) -> None:
    frames = [Image.new("L", (3, 2), level) for level in (10, 200, 90)]
    options = {"lossless": True} if kind == "webp" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    pixels, several, _ = decode_file(data, FOUND)
    assert (pixels == 10).all()
    assert several
    assert not decode_file(encoded(frames[0], kind), FOUND)[1]


def test_shrinking_does_not_alias() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)  # its mean is grey; every other pixel is white
    np.testing.assert_allclose(decode(board, Preprocessing(size=(8, 8))), 127.5, atol=2)


def test_center_crops_and_stretch_keeps_all() -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    assert (decode(wide, Preprocessing(size=(8, 8))) == 200).all()
    whole = decode(wide, Preprocessing(size=(8, 8), crop="stretch"))[0, 4, [0, 4, 7]]
    np.testing.assert_allclose(whole, [0, 200, 0], atol=8)  # bicubic overshoots a little
    assert (decode(wide.T.copy(), Preprocessing(size=(8, 8))) == 200).all()


@pytest.mark.parametrize("crop", ["center", "stretch"])
def test_size_is_height_then_width(crop, pixels) -> None:
    assert decode(pixels(0, 20, 30, 3), Preprocessing(size=(4, 6), crop=crop)).shape == (3, 4, 6)
    assert decode(pixels(0, 2, 3), Preprocessing(size=(4, 6), crop=crop)).shape == (1, 4, 6)


def test_an_image_of_the_right_size_is_unchanged(pixels) -> None:
    array = pixels(0, 4, 6)
    np.testing.assert_array_equal(decode(array, Preprocessing(size=(4, 6)))[0], array)


def test_too_many_pixels_are_an_error_before_decoding(monkeypatch, pixels) -> None:
    monkeypatch.setattr("pictures.decode.MAX_PIXELS", 20)
    with pytest.raises(ValueError, match=r"7 x 3 px.* 20 "):
        decode(pixels(0, 3, 7), FOUND)


@pytest.mark.parametrize("quick_seconds", [0.0, 1.0])
def test_order_and_errors_do_not_depend_on_threads(quick_seconds, monkeypatch, pixels, png, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "QUICK_SECONDS", quick_seconds)
    data: list[bytes | Path] = [png(pixels(i, 3, 3)) for i in range(200)]
    data[70], data[150], data[199] = b"no image", data[150][:40], tmp_path / "none.png"  # type: ignore[index]
    result = list(decode_all([Item(str(i), each) for i, each in enumerate(data)], FOUND))
    assert [item.name for item, _, _ in result] == [str(i) for i in range(200)]
    texts = {item.name: decoded for item, decoded, _ in result if isinstance(decoded, str)}
    assert list(texts) == ["70", "150", "199"]
    assert texts["70"] == "not an image"
    assert "No such file" in texts["199"]
    np.testing.assert_array_equal(result[100][1], pixels(100, 3, 3)[None])


def test_threads_stop_when_too_many_decoded_bytes_wait(monkeypatch) -> None:
    """A slow first item holds the others back: each thread may add one more result, and the rest is computed later."""
    monkeypatch.setattr(module, "MAX_HELD", 1000)
    started, release = [], threading.Event()

    def function(item: Item, may_start: object) -> np.ndarray:
        if item.name == "0":
            release.wait(10)
        else:
            started.append(item.name)
        return np.full(50, int(item.name), np.uint16)

    items = [Item(str(i), b"") for i in range(20 * module.CHUNK)]
    stream = in_threads(function, items, workers=4, size=lambda result: result.nbytes)
    threading.Timer(0.3, release.set).start()
    first = next(stream)
    assert len(started) <= 11 + 4 + module.CHUNK  # the chunk of the slow item goes on, too
    assert [first[0], *(result[0] for result in stream)] == list(range(len(items)))
    assert len(started) == len(items) - 1


def test_threads_that_waited_for_their_turn_ask_again(monkeypatch, pixels, png) -> None:
    """One picture at a time is decoded, and the first result fills the memory: the other threads leave theirs."""
    monkeypatch.setattr(module, "MAX_HELD", 0)
    monkeypatch.setattr("pictures.decode.IN_FLIGHT", Budget(30 * 30))
    done, release, turn = [], threading.Event(), threading.Barrier(8)

    def function(item: Item, may_start: Callable[[], bool]) -> tuple[str, np.ndarray]:
        if item.name == "0":
            release.wait(10)
        elif int(item.name) % module.CHUNK == 0 and not done:
            turn.wait(10)  # all threads have begun
        name, decoded = item.name, module.attempt(item, may_start, preprocessing=FOUND)[1]
        done.append(name)
        return name, decoded

    items = [Item(str(i), png(pixels(i, 30, 30))) for i in range(9 * module.CHUNK)]
    stream = in_threads(function, items, workers=9, size=lambda result: result[1].nbytes)
    threading.Timer(0.3, lambda: (finished.extend(done), release.set())).start()
    finished: list[str] = []
    names = [name for name, _ in stream]
    assert names == [item.name for item in items]
    assert 1 <= len(finished) <= 3


def test_arrays_share_the_same_memory(monkeypatch, tmp_path: Path) -> None:
    array = ArrayImage(np.zeros((3, 8, 8), np.uint8), BYTES, (3, 8, 8), "a", "chw")
    with pytest.raises(Postponed):
        module.attempt(Item("a", array), lambda: False, preprocessing=FOUND)
    assert module.attempt(Item("a", array), preprocessing=FOUND)[1].shape == (3, 8, 8)


def test_enlarging_holds_the_pixels_of_the_result(monkeypatch, pixels, png) -> None:
    asked = []

    class Asked(Budget):
        def hold(self, amount: int):
            asked.append(amount)
            return super().hold(amount)

    monkeypatch.setattr("pictures.decode.IN_FLIGHT", Asked(100))
    decode(png(pixels(0, 4, 5)), Preprocessing(size=(30, 20)))  # more than all: it waits for all
    decode(png(pixels(0, 4, 5)), FOUND)
    assert asked == [600, 20]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("preprocessing", [FOUND, Preprocessing(channels=3), Preprocessing(size=(9, 5))])
def test_parts_of_a_picture_give_the_whole(mode: str, preprocessing: Preprocessing, monkeypatch, pixels) -> None:
    """`STRIP` pixels are converted at a time."""
    image = Image.fromarray(pixels(0, 13, 7).astype(np.uint16) * 200) if mode == "I;16" else None
    image = image or Image.fromarray(pixels(0, 13, 7, 4), "RGBA").convert("RGB" if mode == "CMYK" else "RGBA")
    data = encoded(image if mode == "I;16" else image.convert(mode), "tiff" if mode == "CMYK" else "png")
    whole = decode(data, preprocessing)
    monkeypatch.setattr("pictures.decode.STRIP", 15)
    np.testing.assert_array_equal(decode(data, preprocessing), whole)


def test_threads_do_not_read_a_stream_ahead(pixels) -> None:
    taken = []
    items = (taken.append(i) or Item(str(i), pixels(i, 2, 2)) for i in range(10_000))
    stream = in_threads(lambda item, may_start: item.name, items, workers=2)
    assert next(stream) == "0"
    stream.close()
    assert len(taken) <= 5 * module.CHUNK
