"""The images that a command starts from, and what is known of them: pixels outside a mask, or grey values."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion.edits import Projection, grey_values, keep_grey, keep_pixels
from pictures.pixel_format import BYTES
from pictures.units import AnyFormat, Units
from pipelines.diffusion import DiffusionModel
from residual.names import amount
from training.data import Images, open_as_trained
from training.data.statistics import far_channels
from training.processes import on_main


@dataclass(frozen=True)
class Given:
    """Images in the format of the model; those of a number come again after the last one."""

    images: Images
    masks: Images | None = None
    """of --mask: one, or one per image"""
    grey: bool = False
    """whether only their grey values are known"""
    encoded: Callable[[Tensor], Tensor] = lambda images: images
    """what the images are as a network draws them, see `DiffusionModel.encoded`"""

    def unit(self, numbers: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """The images of these numbers in the values of the network, 0 where no training image had a value."""
        images = self.images.pixel_format.to_unit(torch.from_numpy(_read(self.images, numbers)))
        return self.encoded(images.nan_to_num_(nan=0.0))

    def drawn(self, numbers: Sequence[int]) -> Bool[Tensor, "b 1 h w"]:
        """The pixels that a mask has drawn anew: those that are not black."""
        assert self.masks is not None, "the caller checks it"
        return torch.from_numpy(_read(self.masks, numbers) > 0)

    def projection(self, numbers: Sequence[int], device: torch.device) -> Projection | None:
        """Keeps what is known of the images of these numbers; None if all may change."""
        images = self.unit(numbers).to(device)
        if self.grey:
            return keep_grey(grey_values(images))
        return None if self.masks is None else keep_pixels(images, self.drawn(numbers).to(device))

    def kept(self, number: int) -> np.ma.MaskedArray | None:
        """The stored values (c, h, w) of an image, those that a mask has drawn anew masked; None without a mask."""
        if self.masks is None:
            return None
        (values,) = _read(self.images, [number])
        return np.ma.MaskedArray(values, np.broadcast_to(self.drawn([number])[0].numpy(), values.shape))

    def known(self, numbers: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """What is known of the images, as images: the rest is grey."""
        images = self.unit(numbers)
        if self.grey:
            return grey_values(images).expand_as(images)
        return images if self.masks is None else images.masked_fill(self.drawn(numbers), 0.0)


def _read(images: Images, numbers: Sequence[int]) -> np.ndarray:
    return images.read(np.array(numbers) % len(images))


def open_given(option: str, source: str, model: DiffusionModel, exact: bool = False) -> Images:
    """The images that an option names, in the format of the model, scaled and cropped to its size.

    If `exact` they must have its size and channels. Raises ValueError if they do not fit, and for a missing value where
    training images had some.
    """
    seen = None if model.inputs is None else model.inputs.seen
    settings = {} if exact else shape_settings(model.output_shape)
    images = open_option(option, source, model.output_format, missing=seen is not None, **settings)
    if images.shape != model.output_shape:
        raise ValueError(
            f"{option} {source!r}: images of shape {images.shape}, but the model's are {model.output_shape}; convert "
            "them, or give others"
        )
    if seen is not None:
        for number in range(len(images)):
            if (torch.from_numpy(_read(images, [number])[0]).isnan() & seen).any():
                raise ValueError(f"{option} {source!r}: number {number} has missing values (NaN); give a whole image")
    require_units(option, source, images, images.pixel_format)
    return images


def shape_settings(shape: tuple[int, int, int]) -> dict[str, Any]:
    """The settings of `DataConfig` that bring pictures to this shape, which arrays must have."""
    return {"channels": shape[0], "size": shape[1:]}


def open_masks(source: str, images: Images) -> Images:
    """The masks of --mask. Raises ValueError if they do not fit the images, and for one that leaves nothing to draw or
    to keep, or has more than two values."""
    masks = open_option("mask", source, BYTES)
    channels, *size = masks.shape
    if channels != 1 or size != list(images.shape[1:]):
        raise ValueError(
            f"mask {source!r}: images of shape {masks.shape}; give black and white ones (1 channel) of "
            f"{images.shape[1]}x{images.shape[2]} px"
        )
    if len(masks) not in (1, len(images)):
        raise ValueError(
            f"mask {source!r}: {amount(len(masks), 'mask')} for {amount(len(images), 'image')} of --from; give one for "
            "all, or one for each"
        )
    for number in range(len(masks)):
        mask = _read(masks, [number])
        name = f"mask {source!r}" if len(masks) == 1 else f"mask {source!r}: number {number}"
        if mask.all() or not mask.any():
            colour, what = ("white", "nothing is kept") if mask.all() else ("black", "nothing is drawn anew")
            raise ValueError(f"{name}: every pixel is {colour}, so that {what}; give black where pixels are kept")
        if len(grey := np.setdiff1d(mask, [0, mask.max()])):
            raise ValueError(
                f"{name}: the value {grey[0]} is neither black (0) nor white ({mask.max()}); give two values, in a "
                "file that keeps them exactly, such as PNG"
            )
    return masks


def require_units(option: str, source: str, images: Images, units: AnyFormat) -> None:
    """Raises ValueError for images whose mean is far from that of the training, which have other units."""
    if not isinstance(units, Units):
        return
    for channel, mean in far_channels(units, images):
        raise ValueError(
            f"{option} {source!r}: channel {channel} is {mean:.3g} standard deviations from the mean of the training, "
            "on average; give values in the units of the training data"
        )


def open_option(option: str, source: str, values: AnyFormat, **settings: Any) -> Images:
    """The images that an option names, in these values, without labels. `source` is as in `data.source`, or FILE:NAME.

    Raises ValueError, which names the option.
    """
    if values.file == "png":
        settings["bits"] = 16 if values.dtype == "uint16" else 8
    file, column = split_column(source)
    if column is not None:
        settings["image_column"] = column
    try:
        images = open_as_trained(values, on_main=on_main, source=file, labels=False, **settings)
    except ValueError as error:
        raise ValueError(f"{option} {source!r}: {error}") from None
    assert isinstance(images, Images), "they are not streamed"
    return images


def split_column(source: str) -> tuple[str, str | None]:
    """The file and the name in FILE:NAME, a column of a table or an array of an .npz file; else the source and None."""
    file, _, name = source.rpartition(":")
    has_column = name and os.path.isfile(os.path.expanduser(file)) and not os.path.lexists(os.path.expanduser(source))
    return (file, name) if has_column else (source, None)
