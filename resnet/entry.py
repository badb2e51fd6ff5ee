"""What is known of a model besides its name."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A published network: its config, its size, where it was published and what it reached there."""

    config: Any = field(repr=False)
    parameters: int | None = None
    size: int = 224
    """side of the images for which it was published, in pixels"""
    giga_multiply_adds: float | None = None
    """of one forward pass per image of that size, in units of 10⁹"""
    source: str = ""
    result: str = ""
    """published accuracy or error"""
