"""A record of a named model: config, size, published result and source."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

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
