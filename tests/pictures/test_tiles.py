"""Images in tiles: the same as the whole image, where the function needs no more than the overlap hides."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pictures.tiles import Tiles


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(8, 8), (5, 40), (21, 16), (33, 30), (17, 9)])
@pytest.mark.parametrize("overlap", [0, 1, 5, 15])
def test_a_function_of_single_pixels_is_that_of_the_whole_image(size: tuple[int, int], overlap: int) -> None:
    image, tiles = picture(*size), Tiles(16, overlap, batch=3)
    assert_close(tiles.apply(lambda x: 3 * x + 1, image), 3 * image + 1)
    enlarge = nn.Upsample(scale_factor=2)
    assert_close(tiles.apply(enlarge, image, 2), enlarge(image))


def test_a_convolution_within_a_quarter_of_the_overlap_is_that_of_the_whole_image() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(2)), nn.Conv2d(2, 8, 1), nn.PixelShuffle(2))
    image = picture(45, 38)
    with torch.no_grad():
        assert_close(Tiles(16, 8).apply(net, image, 2), net(image), rtol=1e-5, atol=1e-6)
        near = Tiles(16, 2).apply(net, image, 2)
    assert (near - net(image)).abs().max() > 1e-3


def test_tiles_of_bf16_are_put_together_in_float32() -> None:
    image = 255 * picture(20, 20)
    made = Tiles(8, 4).apply(lambda x: x.bfloat16(), image)
    assert_close(made, image.bfloat16().float(), rtol=1e-5, atol=1e-4)


def test_the_function_receives_no_more_tiles_than_the_batch() -> None:
    counts: list[int] = []

    def count(x: torch.Tensor) -> torch.Tensor:
        counts.append(len(x))
        return x

    Tiles(8, 2, batch=4).apply(count, picture(20, 20))
    assert counts == [4, 4, 1]


def test_there_is_a_pause_after_each_batch() -> None:
    counts: list[int] = []
    parts = Tiles(8, 2, batch=4).applying(lambda x: counts.append(len(x)) or x, picture(20, 20))
    assert [(share, sum(counts)) for share in parts] == [(4 / 9, 4), (8 / 9, 8), (1.0, 9)]


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 0), "tile=0"), ((8, -1), "overlap=-1.*0 to 7"), ((8, 8), "overlap=8.*tile=8"), ((8, 0, 0), "batch=0")],
)
def test_impossible_tiles_are_refused(values: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiles(*values)
