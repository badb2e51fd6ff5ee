"""Random changes of batches of images on the device: flips, padded crops, Cutout, Mixup, CutMix.

All random numbers are drawn per image from `GlobalRandom`, so the result does not depend on processes or micro-batches.
Crops and Cutout fill with zero: normalise the images before, so that zero is the mean colour.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.random import GlobalRandom

Images = Float[Tensor, "b c h w"]
PADDING = {"zeros": "constant", "reflect": "reflect"}


def random_flip(image: Images, random: GlobalRandom) -> Images:
    """Each image mirrored left to right with probability 1/2."""
    return torch.where((random.uniform() < 0.5)[:, None, None, None], image.flip(-1), image)


def padded_crop(image: Images, random: GlobalRandom, pad_px: int, padding: str = "zeros") -> Images:
    """Each image shifted by up to `pad_px` pixels in each direction: padded on all sides, then cropped to its size.

    He et al. 2015, section 4.2 (with zeros); "reflect" fills with the mirrored border (Zagoruyko and Komodakis 2016).
    """
    height, width = image.shape[2:]
    return random_crop(F.pad(image, [pad_px] * 4, mode=PADDING[padding]), random, (height, width))


def random_crop(
    image: Images, random: GlobalRandom, size: tuple[int, int], periodic_width: bool = False
) -> Float[Tensor, "b c h2 w2"]:
    """A part of each image with this height and width, at a random place. With `periodic_width` it may go on across the
    right border, at the left one."""
    height, width = image.shape[2:]
    starts = height - size[0] + 1, width if periodic_width else width - size[1] + 1
    rows, columns = (
        random.integers(count)[:, None] + torch.arange(kept, device=image.device)
        for count, kept in zip(starts, size, strict=True)
    )
    columns = columns % width
    number = torch.arange(len(image), device=image.device)[:, None, None, None]
    channel = torch.arange(image.shape[1], device=image.device)[:, None, None]
    return image[number, channel, rows[:, None, :, None], columns[:, None, None, :]]


def random_turn(image: Images, random: GlobalRandom) -> Images:
    """Each image in one of its eight orientations: mirrored, upside down and transposed with probability 1/2 each.

    Raises ValueError unless the images are square.
    """
    if image.shape[2] != image.shape[3]:
        raise ValueError(f"images of {image.shape[2]} x {image.shape[3]} px cannot be transposed; crop them to squares")
    for change in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        image = torch.where((random.uniform() < 0.5)[:, None, None, None], change(image), image)
    return image


def cutout(image: Images, random: GlobalRandom, side_px: int) -> Images:
    """A square of each image replaced by the mean colour. Its centre is any pixel, so it may cross the border.

    DeVries and Taylor 2017.
    """
    height, width = image.shape[2:]
    middle_y, middle_x = random.integers(height), random.integers(width)
    top, left = middle_y - side_px // 2, middle_x - side_px // 2
    return image.masked_fill(_inside(image, top, left, top + side_px, left + side_px), 0.0)


def mixed(
    image: Images, label: Int[Tensor, "b"], random: GlobalRandom, mixup: float, cutmix: float
) -> tuple[Images, Int[Tensor, "b"], Float[Tensor, "b"]]:
    """Each image mixed with its neighbour, the label of that neighbour, and the share of the image that is its own.

    Neighbours are images 2k and 2k + 1 of the batch, so any even part of a batch can be mixed. `mixup` blends both
    (Zhang et al. 2018). `cutmix` pastes a box of the neighbour (Yun et al. 2019, algorithm A1). Each number is the
    concentration of the share's Beta distribution, 0 for never. With both, each image gets one of the two.
    Raises ValueError for an odd number of images.
    """
    if len(image) % 2:
        raise ValueError(f"{len(image)} images cannot be mixed in pairs; give train.micro_batch an even number")
    other = image.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    other_label = label.unflatten(0, (-1, 2)).flip(1).flatten()
    if not cutmix:
        share = random.beta(mixup)
        return _blend(image, other, share), other_label, share
    box, share = _box(image, random.beta(cutmix), random)
    pasted = torch.where(box, other, image)
    if not mixup:
        return pasted, other_label, share
    blends, blended_share = random.uniform() < 0.5, random.beta(mixup)
    result = torch.where(blends[:, None, None, None], _blend(image, other, blended_share), pasted)
    return result, other_label, torch.where(blends, blended_share, share)


def _blend(image: Images, other: Images, share: Float[Tensor, "b"]) -> Images:
    return torch.lerp(other, image, share[:, None, None, None])


def _box(
    image: Images, share: Float[Tensor, "b"], random: GlobalRandom
) -> tuple[Bool[Tensor, "b 1 h w"], Float[Tensor, "b"]]:
    """A box with the share 1 - `share` of the area, centred at any point, and the exact share outside the box.

    The box has the aspect ratio of the image, and is cut off at the border.
    """
    height, width = image.shape[2:]
    side = (1 - share).sqrt()
    middle_y, middle_x = random.uniform() * height, random.uniform() * width
    edges = [
        (middle + sign * side * size / 2).round().clamp(0, size).long()
        for sign in (-1, 1)
        for middle, size in ((middle_y, height), (middle_x, width))
    ]
    box = _inside(image, *edges)
    return box, 1 - box.float().mean(dim=(1, 2, 3))


def _inside(image: Images, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Bool[Tensor, "b 1 h w"]:
    """Mask of the pixels inside each image's box; the bottom and right edges are outside."""
    row, column = (torch.arange(size, device=image.device) for size in image.shape[2:])
    rows = (row >= top[:, None]) & (row < bottom[:, None])
    columns = (column >= left[:, None]) & (column < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
