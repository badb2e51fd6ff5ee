"""Static fields: channels, such as an elevation, that are a condition of every image of a set."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from training.data.sources.arrays import map_array, to_chw


def read_static(path: Path) -> Float32[np.ndarray, "k h w"]:
    """The fields in a .npy file, of shape (k, h, w) or (h, w).

    Raises ValueError, which starts with data.static, for a file that cannot be read, a value that is not finite, and a
    constant field.
    """
    try:
        with np.errstate(over="ignore"):
            fields = np.array(to_chw(map_array(Path(os.path.expanduser(path))), "chw"), np.float32)
        for number, field in enumerate(fields):
            if not (finite := np.isfinite(field)).all():
                row, column = map(int, np.argwhere(~finite)[0])
                raise ValueError(f"field {number} is {field[row, column]:g} at {(row, column)}; give finite numbers")
            if field.min() == field.max():
                raise ValueError(f"field {number} is {field[0, 0]:g} everywhere, which states nothing; leave it out")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"data.static {str(path)!r}: {reason}") from None
    return fields
