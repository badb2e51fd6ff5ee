"""Fields that are larger than the images of a denoiser: overlapping windows that agree at every noise level."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.denoiser import Condition, Denoised, Denoiser
from diffusion.noise import Images, Times

AT_A_TIME = 8
"""windows that are denoised at a time, unless there are more fields"""
Side = tuple[Int[Tensor, "n w"], Float[Tensor, "n w"]]
"""the pixels of the windows along a side, and their weights"""
Size = tuple[int, int]
"""height and width in pixels"""


def windowed(denoise: Denoiser, window: Size, overlap: Size, periodic_width: bool = False) -> Denoiser:
    """A denoiser of fields that are at least as large as a window (Bar-Tal et al. 2023, MultiDiffusion).

    `denoise` is applied to windows of this size, which share at least `overlap` pixels with their neighbours. Where
    they overlap, their denoised images are blended with the weights of `cover`. So a pixel has one x0 at each noise
    level, whatever the sampler. The image of a condition has the size of the field and is cut as the field is. With
    `periodic_width`, windows continue across the left and right border.

    `denoise` receives as many windows at a time as there are fields, or `AT_A_TIME` if these are fewer. Its result for
    one must not depend on the others. Raises ValueError as `check_windows` does, for the field when it is called.
    """
    check_windows(window, overlap)

    def denoise_windows(x: Images, time: Times, condition: Condition) -> Denoised:
        size = (x.shape[2], x.shape[3])
        check_windows(window, overlap, size)
        height = cover(size[0], window[0], overlap[0])
        width = cover(size[1], window[1], overlap[1], periodic_width)
        places = [
            (row[:, None].to(x.device), column.to(x.device), (down[:, None] * right).to(x))
            for row, down in zip(*height, strict=True)
            for column, right in zip(*width, strict=True)
        ]
        total: Tensor | None = None
        count = max(1, AT_A_TIME // len(x))
        for group in (places[first : first + count] for first in range(0, len(places), count)):
            made = denoise(_cut(x, group), time.repeat(len(group)), _of_windows(condition, group))
            total = made.new_zeros(len(x), made.shape[1], *size) if total is None else total
            for (row, column, weight), part in zip(group, made.split(len(x)), strict=True):
                total[:, :, row, column] += weight * part
        assert total is not None, "there is at least one window"
        return total

    return denoise_windows


def check_windows(window: Size, overlap: Size, size: Size | None = None) -> None:
    """Raises ValueError for an overlap that leaves no step from one window to the next, and for a field of `size` that
    is smaller than a window."""
    if any(not 0 <= shared < side for side, shared in zip(window, overlap, strict=True)):
        raise ValueError(
            f"overlap={_show(overlap)} is out of range for windows of {_show(window)} px, which have to move on; give "
            f"0x0 to {window[0] - 1}x{window[1] - 1}"
        )
    if size is not None and any(side > whole for side, whole in zip(window, size, strict=True)):
        raise ValueError(f"size={_show(size)} is smaller than the windows of {_show(window)} px; give a larger size")


def cover(side: int, window: int, overlap: int, periodic: bool = False) -> Side:
    """Windows along one side of a field: the numbers of their pixels, and the weight of each pixel.

    The windows are as few as share `overlap` pixels, and evenly placed, so that they may share more. Weights are those
    of a Hann window, divided by their sum at each pixel. They change smoothly, sum to one at each pixel, and are small
    at the end of a window where another one covers it.
    """
    step = window - overlap
    count = -(-side // step) if periodic else 1 + -(-(side - window) // step)
    distance = side / count if periodic else (side - window) / max(1, count - 1)
    place = torch.arange(window)
    pixels = (torch.tensor([round(i * distance) for i in range(count)])[:, None] + place) % side
    hann = (math.pi * (place + 0.5) / window).sin().square().expand(count, -1)
    return pixels, hann / torch.zeros(side).index_add(0, pixels.flatten(), hann.flatten())[pixels]


def _cut(x: Float[Tensor, "b c h w"], places: Sequence[tuple[Tensor, ...]]) -> Float[Tensor, "n c h2 w2"]:
    """The windows at these places: all fields at the first one, then all at the next."""
    return torch.cat([x[:, :, row, column] for row, column, _ in places])


def _of_windows(condition: Condition, places: Sequence[tuple[Tensor, ...]]) -> Condition:
    """The condition of the windows: that of their field, with its image cut."""
    image = None if condition.image is None else _cut(condition.image, places)
    given = {name: value for name, value in vars(condition).items() if value is not None and name != "image"}
    return replace(condition, image=image, **{name: torch.cat([v] * len(places)) for name, v in given.items()})


def _show(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
