"""Checks of the images that a network is called with."""

from torch import Tensor


def check_images(x: Tensor, channels: int, min_size_px: int) -> None:
    """Raises ValueError unless images (b, c, h, w) are floats, have these channels, and are so high and wide."""
    if x.dim() != 4:
        raise ValueError(
            f"images should have four axes (batch, channels, height, width), not the shape {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(f"images should be floats, not {x.dtype}: divide by 255, subtract the mean, divide by the std")
    if x.shape[1] != channels:
        raise ValueError(f"the images have {x.shape[1]} channels, this network takes {channels} (in_channels)")
    if x.shape[2] < min_size_px or x.shape[3] < min_size_px:
        raise ValueError(
            f"images of {x.shape[2]}x{x.shape[3]} px are smaller than the network's total stride of {min_size_px} px: "
            "enlarge them, or use a network for small images (resnet20, …)"
        )
