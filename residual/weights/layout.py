"""Layouts: the weight names of other libraries, and the errors for configs they cannot express."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from residual.weights.keymap import Place, Table
from residual.weights.read import read_weights, usable


@dataclass(frozen=True)
class Layout:
    """Weight names of another library: a walk over the blocks, a table of rules, and a check of the config."""

    places: Callable[[Any], Iterator[Place]]
    """yields all blocks of a config's network"""
    table: Table
    check: Callable[[Any], Any]
    """raises ValueError with the reason if the library's network cannot express a config"""
    clean: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda theirs: theirs
    """renames older spellings of the names to the current ones"""


def read_state(state_dict: Mapping[str, Any] | str | Path) -> Mapping[str, Tensor]:
    """Returns a state dict, or reads one from a safetensors file.

    Raises ValueError for a missing or damaged file, for a pickle, for NaN and infinity, and for a mapping with values
    other than tensors, such as a training checkpoint that contains a state dict.
    """
    if isinstance(state_dict, str | Path):
        return read_weights(Path(state_dict))
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"a {type(state_dict).__name__} is no state dict: give net.state_dict(), or a file")
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise ValueError(f"{name!r} is a {type(tensor).__name__}, not a named tensor: give the state dict itself")
    return usable(state_dict)


def inexpressible(network: str, value: str, reason: str) -> ValueError:
    """The error for a config value that another library's network cannot express."""
    return ValueError(f"{network} cannot express {value}: {reason}")


def require(network: str, config: Any, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError unless each field in `fixed` has one of the values that the network supports."""
    for name, allowed in fixed.items():
        if (value := getattr(config, name)) not in allowed:
            raise inexpressible(network, f"{name}={value!r}", f"it has {' or '.join(map(repr, allowed))}")
