"""Checks of config fields. Each raises ValueError with the field, its value and the rule."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from residual.weights.config import MAX_BLOCKS, check_counts


def check_choices(config: Any) -> None:
    """Checks fields that must be one of the strings of a `Literal`."""
    for field in fields(config):
        value, choices = getattr(config, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in choices:
            raise ValueError(f"no {field.name} {value!r}; one of: {', '.join(choices)}")


def check_stages(config: Any, *names: str) -> None:
    """Checks fields with one count per stage: equally many. The first one counts the blocks."""
    check_counts(config, *names)
    values = [getattr(config, name) for name in names]
    if sum(values[0]) > MAX_BLOCKS:
        raise ValueError(f"{names[0]}={values[0]} are more than {MAX_BLOCKS} blocks together; give fewer")
    if len({len(value) for value in values}) > 1 or not values[0]:
        shown = " and ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{shown} need one entry per stage, at least one")


def check_dropout(config: Any) -> None:
    """Checks the field `dropout`, a probability."""
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout} must be at least 0 and below 1")
