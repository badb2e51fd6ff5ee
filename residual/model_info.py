"""Records of models: named ones, and the config class of each kind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class ModelInfo(Generic[ConfigT]):
    """A named model."""

    config: ConfigT = field(repr=False)
    parameters: int
    giga_multiply_adds: float
    """10⁹ multiply-adds of one forward pass per image of the published size"""
    source: str
    """publication and training data"""
    result: str = ""
    """published metric, such as top-1 accuracy on ImageNet"""
    size_px: int | None = None
    """side of the images the model was published for, in pixels; None where the config holds the size"""


def refuse_pretrained(name: str, changes: Mapping[str, Any]) -> None:
    """Raises ValueError, with the way to published weights, for the arguments by which other libraries load them."""
    for argument in ("pretrained", "weights"):
        if argument in changes:
            raise ValueError(
                f"{argument}={changes[argument]!r}: a name downloads nothing; create {name!r} without it, then call "
                "net.import_weights with the published file as safetensors; from_pretrained opens folders and hub ids"
            )


@dataclass(frozen=True)
class ConfigClasses(Mapping[str, type]):
    """The config class of each kind of network. Rows that are added to the table later are included."""

    networks: Mapping[str, tuple[type, type]]
    """kind -> (config class, network class)"""

    def __getitem__(self, kind: str) -> type:
        return self.networks[kind][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.networks)

    def __len__(self) -> int:
        return len(self.networks)
