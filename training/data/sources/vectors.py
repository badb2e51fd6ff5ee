"""Vectors: numbers of each image, such as the parameters of a simulation, from columns of a source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from residual.names import amount

Values = Sequence[Any] | Shaped[np.ndarray, "n"]


@dataclass(frozen=True)
class VectorColumns:
    """The columns of the settings."""

    names: tuple[str, ...] = ()
    varied: bool = True
    """whether a constant column is an error, as in a set to train on"""

    def stack(self, columns: Mapping[str, Values], where: str) -> Float32[np.ndarray, "n v"] | None:
        """The columns of these names, side by side; None if there are none.

        Raises ValueError, with the place `where` they are, for a value that is not a finite number of float32, and for
        a constant column.
        """
        if not self.names:
            return None
        return np.stack([self._checked(name, columns[name], where) for name in self.names], axis=1)

    def _checked(self, name: str, values: Values, where: str) -> Float32[np.ndarray, "n"]:
        title = f"data.vector_columns: {name!r} of {where}"
        for row, value in enumerate(values):
            if not isinstance(value, int | float | np.number):
                raise ValueError(f"{title} is {str(value)[:40]!r} in row {row}, not a number; correct it")
        with np.errstate(over="ignore"):
            found = np.array(values, np.float64).astype(np.float32)
        if len(wrong := np.flatnonzero(~np.isfinite(found))):
            row = int(wrong[0])
            raise ValueError(f"{title} is {values[row]} in row {row}, not a finite number of float32; correct it")
        if self.varied and len(found) and found.min() == found.max():
            raise ValueError(f"{title} is {found[0]:g} for all of {amount(len(found), 'image')}; leave it out")
        return found


NO_VECTORS = VectorColumns()
