"""Checks of config fields. Each raises ValueError with the field, its value and the rule."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args


def check_choices(config: Any, choices: Mapping[str, Any]) -> None:
    """Checks fields that must be one of the strings of a `Literal`."""
    for name, choice in choices.items():
        if (value := getattr(config, name)) not in get_args(choice):
            raise ValueError(f"no {name} {value!r}; one of: {', '.join(get_args(choice))}")


def check_positive(config: Any, names: Iterable[str]) -> None:
    """Checks fields that must be at least 1, or None."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def check_stages(config: Any, *names: str) -> None:
    """Checks fields with one number per stage: equally many numbers, each at least 1."""
    values = [getattr(config, name) for name in names]
    for name, value in zip(names, values, strict=True):
        if min(value, default=1) < 1:
            raise ValueError(f"{name}={value} must be at least 1 in every stage")
    if len({len(value) for value in values}) > 1 or not values[0]:
        shown = " and ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{shown} need one entry per stage, at least one")


def check_probabilities(config: Any, names: Iterable[str]) -> None:
    """Checks fields that are the probability of dropping something."""
    for name in names:
        if not 0 <= (value := getattr(config, name)) < 1:
            raise ValueError(f"{name}={value} must be at least 0 and below 1")
