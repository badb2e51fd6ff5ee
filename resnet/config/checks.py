"""Checks of config fields. Each raises ValueError with the field, its value and the rule."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin


def check_choices(config: Any) -> None:
    """Checks fields that must be one of the strings of a `Literal`."""
    for field in fields(config):
        value, choices = getattr(config, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in choices:
            raise ValueError(f"no {field.name} {value!r}; one of: {', '.join(choices)}")


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


def check_dropout(config: Any) -> None:
    """Checks the field `dropout`, a probability."""
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout} must be at least 0 and below 1")
