import numpy as np
import pytest
import torch
from PIL import Image

from pictures.files import are_pictures, picture_bytes, read_image, save_image, to_picture, to_uint8
from pictures.grid import (
    COLOURS,
    GAP_PX,
    MAX_PX,
    draw_grid,
    draw_samples,
    grid_size,
    hidden_note,
    save_animation,
    value_ranges,
)
from pictures.pixel_format import BYTES, PixelFormat

FIELD = PixelFormat(dtype="float32", low=-50, high=150, file="npy")


def tiles(count, channels=1, height=8, width=8):
    """Each tile has its number as grey level."""
    return np.stack([np.full((height, width, channels), k, np.uint8) for k in range(count)])


def found(picture, count):
    """Upper left corner (x, y) of each tile, by its grey level (which a letter's edge may have, too)."""
    pixels = np.array(picture.convert("L"))
    flat = np.lib.stride_tricks.sliding_window_view(pixels, (9, 9))
    return [tuple(np.argwhere((flat == k).all((2, 3)))[0][::-1].tolist()) for k in range(count)]


def test_pixels_are_the_inverse_of_scaling_to_minus_one_to_one():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert (to_uint8(pixels / 127.5 - 1)[0, ..., 0].ravel() == np.arange(256)).all()
    assert to_uint8(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2)).ravel().tolist() == [0, 255]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grey_and_colour(channels, mode):
    assert draw_grid(tiles(3, channels)).mode == mode
    levels = np.arange(4 * channels, dtype=np.uint8).reshape(2, 2, channels)
    picture = to_picture(levels)
    assert picture.mode == mode
    np.testing.assert_array_equal(np.array(picture).reshape(2, 2, -1), levels)


@pytest.mark.parametrize(("height", "width", "scale"), [(8, 8, 8), (32, 16, 2), (100, 8, 1)])
def test_small_images_are_enlarged_by_a_whole_number(height, width, scale):
    picture = draw_grid(tiles(1, 1, height, width))
    area = (np.array(picture) == 0).nonzero()
    assert np.ptp(area[0]) + 1 == height * scale
    assert np.ptp(area[1]) + 1 == width * scale


def test_without_names_the_grid_is_about_square():
    corners = found(draw_grid(tiles(7)), 7)
    assert len({x for x, _ in corners}) == len({y for _, y in corners}) == 3
    assert corners == sorted(corners, key=lambda corner: corner[::-1])


def test_images_of_a_class_share_its_row_beside_its_name():
    picture = draw_grid(tiles(7), [("cat", "dog", "owl")[k % 3] for k in range(7)])
    corners = found(picture, 7)
    assert len({corners[k][1] for k in (0, 3, 6)}) == 1
    assert len({y for _, y in corners}) == 3
    left = np.array(picture)[:, : corners[0][0] - 4]
    assert [(left[y : y + 64] < 128).any() for _, y in corners[:3]] == [True] * 3


def test_a_large_class_takes_several_rows():
    corners = found(draw_grid(tiles(30), ["cat"] * 30), 30)
    assert len({y for _, y in corners}) == 5


def test_many_classes_have_their_name_below_each_image():
    picture = draw_grid(tiles(25), [f"class {k}" for k in range(25)])
    x, y = found(picture, 25)[0]
    assert (np.array(picture)[y + 64 : y + 80, x : x + 64] < 128).any()
    assert x == 4


def test_an_animation_rests_on_its_last_frame(tmp_path):
    save_animation([draw_grid(tiles(2)), draw_grid(tiles(2) + 100)], tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        durations = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            durations.append(animation.info["duration"])
        assert animation.info["loop"] == 0
    assert durations == [60, 2000]


def colour_at(picture, x, y):
    return np.array(picture)[y, x].tolist()


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(2, 24, 40), (5, 24, 40), (1, 24, 40), (3, 8, 8), (4, 1, 40)]
)
def test_every_channel_of_a_field_has_a_readable_panel_in_colours(channels, height, width):
    values = np.tile(np.linspace(-7, 90, width, dtype=np.float32), (2, channels, height, 1))
    values *= np.arange(1, channels + 1)[:, None, None]  # each channel has its own range
    picture = draw_samples(values, FIELD)
    scale = min(-(-96 // height), 512 // width)
    panel = width * scale
    assert height * scale >= 96 or panel > 256
    assert panel >= 96
    middle = GAP_PX + height * scale // 2
    for channel in range(channels):
        left = GAP_PX + channel * (panel + GAP_PX)
        assert colour_at(picture, left, middle) == COLOURS[0].tolist()
        assert colour_at(picture, left + panel - 1, middle) == COLOURS[-1].tolist()


def test_a_field_has_a_colour_bar_below(monkeypatch):
    written = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda pen, place, text, **options: written.append(text))
    values = np.zeros((1, 2, 24, 40), np.float32)
    values[0, 0, 0, 0], values[0, 1, 0, 0] = 12.5, -3
    picture = draw_samples(values, FIELD)
    assert written[-6:] == ["channel 0", "0", "12.5", "channel 1", "-3", "0"]
    bar = np.array(picture)[-3 * 14 - 2 * GAP_PX - 4]
    assert {tuple(COLOURS[0].tolist()), tuple(COLOURS[-1].tolist())} <= {tuple(colour) for colour in bar.tolist()}


def test_a_constant_field_and_values_that_are_not_finite_are_drawn():
    values = np.full((2, 2, 8, 8), np.nan, np.float32)
    values[0, 0] = 3
    assert draw_samples(values, FIELD).width > 2 * 96


def test_each_field_of_several_channels_has_a_row():
    one, three = (draw_samples(np.zeros((count, 2, 24, 40), np.float32), FIELD) for count in (1, 3))
    assert three.width == one.width
    assert three.height == one.height + 2 * (96 + GAP_PX)
    assert draw_samples(np.zeros((4, 1, 24, 40), np.float32), FIELD).width == 2 * (160 + GAP_PX) + GAP_PX


def test_frames_of_a_field_share_their_colours():
    values = np.linspace(0, 1, 40, dtype=np.float32) * np.ones((1, 1, 24, 1), np.float32)
    picture = draw_samples(values / 2, FIELD, ranges=value_ranges(values))
    assert colour_at(picture, GAP_PX + 159, GAP_PX) == COLOURS[2].tolist()  # the middle of the range


@pytest.mark.parametrize(
    ("shape", "pixel_format", "pictures"),
    [
        ((1, 8, 8), BYTES, True),
        ((3, 8, 8), BYTES, True),
        ((1, 8, 8), PixelFormat(dtype="uint16", high=65535), True),
        ((1, 8, 8), PixelFormat(file="npy"), True),
        ((2, 8, 8), PixelFormat(file="npy"), False),
        ((1, 8, 8), PixelFormat(low=5, high=9, file="npy"), False),
        ((3, 8, 8), FIELD, False),
    ],
)
def test_what_is_shown_as_a_picture(shape, pixel_format, pictures):
    assert are_pictures(shape[0], pixel_format) == pictures


def test_sixteen_bits_are_shown_with_eight():
    levels = np.array([0, 128, 129, 257, 65535], np.uint16).reshape(1, 1, 5)
    assert picture_bytes(levels).ravel().tolist() == [0, 0, 1, 1, 255]


@pytest.mark.parametrize(
    ("shape", "pixel_format"),
    [((3, 2048, 2048), BYTES), pytest.param((73, 720, 1440), FIELD, marks=pytest.mark.slow)],
)
def test_a_grid_has_bounded_size(shape, pixel_format):
    count = grid_size(256, shape, pixel_format)
    assert 1 <= count < 256
    assert f"{count} of 256 images" in str(hidden_note(256, shape, pixel_format))
    assert ("16 of 73 channels" in str(hidden_note(256, shape, pixel_format))) == (shape[0] == 73)
    values = np.zeros((1, *shape), pixel_format.dtype).repeat(min(count, 2), axis=0)
    picture = draw_samples(values, pixel_format)
    assert picture.width * picture.height <= 2 * MAX_PX


def test_a_grid_of_few_small_images_hides_nothing():
    assert hidden_note(256, (1, 8, 8), BYTES) is hidden_note(16, (5, 24, 40), FIELD) is None


@pytest.mark.parametrize(
    "name", ["two\nlines", "\x1b[31mred", "bad \udcff byte", "\u202eabc", "x" * 100_000, "日本", ""]
)
@pytest.mark.parametrize("count", [2, 25])
def test_any_name_can_be_shown(name, count):
    names = [name if k == 0 else f"class {k}" for k in range(count)]
    assert draw_grid(tiles(count), names).width < 2000


@pytest.mark.parametrize(
    ("channels", "pixel_format"),
    [(1, BYTES), (3, BYTES), (1, PixelFormat(dtype="uint16", high=65535)), (5, FIELD), (2, PixelFormat(file="npy"))],
)
def test_a_saved_image_is_read_as_it_was(tmp_path, channels, pixel_format):
    image = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = tmp_path / f"a.{pixel_format.file}"
    save_image(image, pixel_format, path, {"class": "日本 ☃", "seed": "3"})
    np.testing.assert_array_equal(read_image(path), pixel_format.from_unit(image[None])[0])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if path.suffix == ".png":
        with Image.open(path) as picture:
            assert picture.text == {"class": "日本 ☃", "seed": "3"}


def test_a_saved_image_replaces_a_link(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "elsewhere")
    save_image(torch.zeros(1, 4, 4), BYTES, tmp_path / "a.png")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / "a.png").is_symlink()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"%!PS", b"GIF89a"])
@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_a_damaged_image_is_an_error(tmp_path, content, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        read_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(("channels", "pixel_format"), [(3, BYTES), (2, FIELD)])
def test_a_truncated_image_is_an_error(tmp_path, channels, pixel_format):
    path = tmp_path / f"a.{pixel_format.file}"
    save_image(torch.zeros(channels, 16, 16), pixel_format, path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises((ValueError, OSError)):
        read_image(path)
