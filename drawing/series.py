"""Commands whose images differ by one thing: a value of an option, the noise, or the label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drawing.options import SWEEPS, show
from pipelines.diffusion import DiffusionModel

MAX_ROWS = 20


@dataclass(frozen=True)
class Series:
    """Rows of `columns` images: each row has its own options, each column its noise and label.

    Image `n` is in row `n // columns`. The columns are images 0, 1, … of the seed. In `frames` they are image 0, whose
    noise or label moves from the first column to the last.
    """

    columns: int
    rows: tuple[dict[str, Any], ...] = ({},)
    frames: bool = False

    def __len__(self) -> int:
        return self.columns * len(self.rows)

    def row(self, number: int) -> dict[str, Any]:
        """The options of an image that differ from those of the command."""
        return self.rows[number // self.columns]

    def column(self, number: int) -> int:
        """The column of an image."""
        return number % self.columns

    def seeds(self, numbers: Sequence[int]) -> list[int]:
        """The numbers by which these images get their random numbers."""
        return [0 if self.frames else self.column(number) for number in numbers]

    def shares(self, numbers: Sequence[int]) -> list[float]:
        """How near to the last column these images are, from 0 to 1."""
        return [self.column(number) / max(1, self.columns - 1) for number in numbers]

    def names(self) -> list[str] | None:
        """A name for each image, that of its row; None for a single row."""
        if self.rows == ({},):
            return None
        named = [", ".join(f"{name}={show(value)}" for name, value in row.items()) for row in self.rows]
        return [named[number // self.columns] for number in range(len(self))]


def sweep_rows(words: Sequence[str], model: DiffusionModel, options: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The rows of --sweep, from its words: the option, then its values; without these the usual ones that the model
    takes. Raises ValueError for an option or values that cannot be varied, and as `DiffusionModel.check` does."""
    name, *texts = words
    if name not in SWEEPS:
        raise ValueError(f"sweep={name} cannot be varied; choose one of: {', '.join(SWEEPS)}")
    kind, usual = SWEEPS[name]
    try:
        values = [kind(text) for text in texts]
    except ValueError:
        raise ValueError(f"sweep {name}: {' '.join(texts)} are not all of the type {kind.__name__}") from None
    if len(set(values)) < len(values) or len(values) == 1 or len(values) > MAX_ROWS:
        raise ValueError(f"sweep {name}: {' '.join(texts)} should be 2 to {MAX_ROWS} different values")
    if not texts:
        values = [value for value in usual if _takes(model, options | {name: value})]
    for value in values:
        model.check(**options | {name: value})
    if len(values) < 2:
        raise ValueError(f"sweep={name} has fewer than 2 values that this model takes; give them behind it")
    return tuple({name: value} for value in values)


def _takes(model: DiffusionModel, options: dict[str, Any]) -> bool:
    try:
        model.check(**options)
    except ValueError:
        return False
    return True
