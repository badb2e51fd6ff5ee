"""A published layout of a network's weights, and finding the one that is meant."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from residual.weights.keymap import Place, Table
from residual.weights.pretrained import read_weights


@dataclass(frozen=True)
class Layout:
    """The names of another library: where each block stands, how its tensors are called, what cannot be expressed."""

    places: Callable[[Any], Iterator[Place]]
    """all blocks of the network that a config describes"""
    table: Table
    check: Callable[[Any], Any]
    """raises ValueError, with the reason, for a config that the library's network cannot express"""
    clean: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda theirs: theirs
    """brings older spellings to the current one"""


def read_state(state_dict: Mapping[str, Any] | str | Path) -> Mapping[str, Tensor]:
    """A state dict, or that of a safetensors file.

    Raises ValueError for a missing or damaged file, for a pickle, and for what is no state dict, such as a training
    checkpoint that holds one.
    """
    if not isinstance(state_dict, Mapping):
        return read_weights(Path(state_dict))
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name!r} is a {type(tensor).__name__}, no tensor: give the state dict itself")
    return state_dict


def inexpressible(network: str, value: str, reason: str) -> ValueError:
    """The error for a value of our config that another network has no argument for."""
    return ValueError(f"{network} cannot express {value}: {reason}")


def require(network: str, config: Any, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError unless each of these fields has one of the values that the network has built in."""
    for name, allowed in fixed.items():
        if (found := getattr(config, name)) not in allowed:
            raise inexpressible(network, f"{name}={found!r}", f"it has {' or '.join(map(repr, allowed))}")
