from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import DataConfig
from training.data import decode as module
from training.data.decode import decode, decode_all, decode_in_threads
from training.data.records import Item

FOUND = DataConfig()


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_lossless_pixels_come_back_as_they_are(pixels) -> None:
    grey, colour = pixels(0, 5, 7), pixels(1, 5, 7, 3)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey)), FOUND), grey[None])
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(colour)), FOUND), colour.transpose(2, 0, 1))


def test_channels_are_converted(pixels) -> None:
    grey, colour = pixels(0, 5, 7), pixels(1, 5, 7, 3)
    np.testing.assert_array_equal(decode(grey, DataConfig(channels=3)), np.stack([grey] * 3))
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(decode(colour, DataConfig(channels=1))[0], luma, atol=0.51)


def test_16_bit_greys_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = [[[0, 0, 1, 1, 128, 255]]]
    assert decode(encoded(Image.fromarray(deep)), FOUND).tolist() == expected
    assert decode(encoded(Image.fromarray(deep), "tiff"), FOUND).tolist() == expected
    pgm = b"P5 6 1 65535\n" + deep.astype(">u2").tobytes()
    assert decode(pgm, FOUND).tolist() == expected


def test_32_bit_pixels_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(
            ValueError, match=rf"32 bits \(mode {mode}\) have no agreed range; save it with 8 or 16 bits"
        ):
            decode(encoded(Image.new(mode, (2, 2)), "tiff"), FOUND)


def test_transparency_is_laid_on_white() -> None:
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


def test_palettes_bits_and_cmyk_become_rgb_or_grey() -> None:
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(palette), FOUND).ravel().tolist() == [10, 20, 30]
    assert decode(encoded(Image.new("1", (1, 1), 1)), FOUND).tolist() == [[[255]]]
    red = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg", quality=95), FOUND)
    np.testing.assert_allclose(red[:, 4, 4], [255, 0, 0], atol=3)


def test_exif_orientation_is_applied(pixels) -> None:
    array = pixels(0, 4, 6, 3)
    turned = Image.fromarray(array)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    np.testing.assert_array_equal(decode(encoded(turned, exif=exif), FOUND), np.rot90(array, -1).transpose(2, 0, 1))


def test_shrinking_does_not_alias() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)  # its mean is grey; every other pixel is white
    np.testing.assert_allclose(decode(board, DataConfig(size=8)), 127.5, atol=2)


def test_the_centre_is_cut_out_and_stretch_keeps_all() -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    assert (decode(wide, DataConfig(size=8)) == 200).all()
    whole = decode(wide, DataConfig(size=8, crop="stretch"))[0, 4, [0, 4, 7]]
    np.testing.assert_allclose(whole, [0, 200, 0], atol=8)  # bicubic overshoots a little
    assert (decode(wide.T.copy(), DataConfig(size=8)) == 200).all()


@pytest.mark.parametrize("crop", ["center", "stretch"])
def test_size_is_height_then_width(crop, pixels) -> None:
    assert decode(pixels(0, 20, 30, 3), DataConfig(size=(4, 6), crop=crop)).shape == (3, 4, 6)
    assert decode(pixels(0, 2, 3), DataConfig(size=(4, 6), crop=crop)).shape == (1, 4, 6)


def test_an_image_of_the_right_size_is_not_touched(pixels) -> None:
    array = pixels(0, 4, 6)
    np.testing.assert_array_equal(decode(array, DataConfig(size=(4, 6)))[0], array)


def test_too_many_pixels_are_refused_before_they_are_unpacked(monkeypatch, pixels) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 20)
    with pytest.raises(ValueError, match="7 x 3 px is more than 20 pixels"):
        decode(pixels(0, 3, 7), FOUND)


@pytest.mark.parametrize("quick_seconds", [0.0, 1.0])
def test_order_and_errors_do_not_depend_on_threads(quick_seconds, monkeypatch, pixels, png, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "QUICK_SECONDS", quick_seconds)
    data: list[bytes | Path] = [png(pixels(i, 3, 3)) for i in range(200)]
    data[70], data[150], data[199] = b"no image", data[150][:40], tmp_path / "none.png"  # type: ignore[index]
    result = list(decode_all([Item(str(i), each) for i, each in enumerate(data)], FOUND))
    assert [item.name for item, _ in result] == [str(i) for i in range(200)]
    texts = {item.name: decoded for item, decoded in result if isinstance(decoded, str)}
    assert list(texts) == ["70", "150", "199"]
    assert texts["70"] == "not an image"
    assert "No such file" in texts["199"]
    np.testing.assert_array_equal(result[100][1], pixels(100, 3, 3)[None])


def test_threads_do_not_read_a_stream_ahead(pixels) -> None:
    taken = []
    items = (taken.append(i) or Item(str(i), pixels(i, 2, 2)) for i in range(10_000))
    stream = decode_in_threads(items, FOUND, workers=2)
    next(stream)
    stream.close()
    assert len(taken) <= 5 * module.CHUNK
