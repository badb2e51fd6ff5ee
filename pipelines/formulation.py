"""Formulations as plain values, as the files of model folders hold them."""

from dataclasses import asdict
from typing import Any

from diffusion import FORMULATIONS, Formulation
from residual.names import require_known
from residual.weights.config import read_config


def describe_formulation(formulation: Formulation) -> dict[str, Any]:
    """A formulation as plain values: its kind and its fields."""
    kind = next(name for name, cls in FORMULATIONS.items() if cls is type(formulation))
    return {"kind": kind, **asdict(formulation)}  # type: ignore[call-overload]


def read_formulation(document: Any) -> Formulation:
    """The inverse of `describe_formulation`. Raises ValueError for an unknown kind or field, or a missing one."""
    if not isinstance(document, dict):
        raise ValueError(f"formulation={document!r} should be an object with a kind; train again")
    fields = dict(document)
    kind = require_known("formulation", str(fields.pop("kind", None)), FORMULATIONS)
    config_class: Any = FORMULATIONS[kind]
    return read_config(config_class, fields, optional=config_class.later_fields)
