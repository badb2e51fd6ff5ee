import numpy as np
import pytest
import torch
from PIL import Image

from pictures.files import to_picture, to_uint8
from pictures.grid import draw_grid, save_animation


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


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (5, "RGB")])
def test_grey_and_colour_of_the_first_channels(channels, mode):
    assert draw_grid(tiles(3, channels)).mode == mode
    levels = np.arange(4 * channels, dtype=np.uint8).reshape(2, 2, channels)
    picture = to_picture(levels)
    assert picture.mode == mode
    shown = np.array(picture).reshape(2, 2, -1)
    np.testing.assert_array_equal(shown, levels[..., : shown.shape[-1]])


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
