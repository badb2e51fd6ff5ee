"""What is known of a model besides its name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A network with a name: its config, its size, what it reached and where it was published."""

    config: Any = field(repr=False)
    parameters: int | None = None
    """none: nobody has counted a model that a user registered"""
    giga_multiply_adds: float | None = None
    """of one forward pass per image of `size`, in units of 10⁹"""
    result: str = ""
    """published top-1 accuracy on ImageNet, error on CIFAR-10 or CIFAR-100, or PSNR on DIV2K"""
    source: str = ""
    size: int = 224
    """side of the images for which it was published, in pixels"""


def entries(rows: Mapping[str, tuple[Any, int, float, str]], source: str, size: int = 224) -> dict[str, Entry]:
    """Rows of a table (config, parameters, 10⁹ multiply-adds, result) that have their source and size in common."""
    return {name: Entry(*row, source, size) for name, row in rows.items()}
