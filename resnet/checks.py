"""What the configs and the networks of the zoo check alike. Each raises ValueError with the value and the rule."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from torch import Tensor


def check_choices(config: Any, choices: Mapping[str, Any]) -> None:
    """Fields that must be one of the strings of a `Literal`."""
    for name, choice in choices.items():
        if (value := getattr(config, name)) not in get_args(choice):
            raise ValueError(f"no {name} {value!r}; one of: {', '.join(get_args(choice))}")


def check_positive(config: Any, names: Iterable[str]) -> None:
    """Fields that must be at least 1, or none."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def check_stages(config: Any, *names: str) -> None:
    """Fields with one number per stage, all equally many and at least 1."""
    values = [getattr(config, name) for name in names]
    for name, value in zip(names, values, strict=True):
        if min(value, default=1) < 1:
            raise ValueError(f"{name}={value} must be at least 1 in every stage")
    if len({len(value) for value in values}) > 1 or not values[0]:
        shown = " and ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{shown} need one entry per stage, at least one")


def check_shares(config: Any, names: Iterable[str]) -> None:
    """Fields that are the share of something that is dropped."""
    for name in names:
        if not 0 <= (share := getattr(config, name)) < 1:
            raise ValueError(f"{name}={share} must be at least 0 and below 1")


def check_statistics(config: Any) -> None:
    """`mean` and `std` of the training images: one number per channel, if they are known."""
    for name in ("mean", "std"):
        if (value := getattr(config, name)) is not None and len(value) != config.in_channels:
            raise ValueError(f"{name}={value} should have one number for each of the {config.in_channels} channels")
    if config.std is not None and min(config.std) <= 0:
        raise ValueError(f"std={config.std} must be positive: images are divided by it")


def check_images(x: Tensor, channels: int, stride: int) -> None:
    """Images (b, c, h, w) must have the channels that a network takes, and at least a pixel after its total stride."""
    if x.dim() != 4:
        raise ValueError(
            f"images should have four axes (batch, channels, height, width), not the shape {tuple(x.shape)}"
        )
    if x.shape[1] != channels:
        raise ValueError(f"the images have {x.shape[1]} channels, this network takes {channels} (in_channels)")
    if x.shape[2] < stride or x.shape[3] < stride:
        raise ValueError(
            f"images of {x.shape[2]}x{x.shape[3]} px are smaller than the network's total stride of {stride} px: "
            "enlarge them, or take a network for small images (resnet20, …)"
        )
