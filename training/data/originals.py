"""Files of a data set, which must stay as they were when the set was opened."""

import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from storage.show import printable

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""seconds before each further try to find a file that has disappeared"""
ABSENT = (-1, -1)


class DataLost(ValueError):
    """The data set cannot be read on: a file has changed or disappeared since, or too many images are unreadable."""


class Originals:
    """Files with their sizes in bytes and times of modification when this object was made.

    A file that could not be found then is not checked: it is an unreadable image.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        once = lru_cache(maxsize=1)(present)  # neighbouring shards are in one file
        self._states: Int64[np.ndarray, "n 2"] = np.array([once(file) for file in files], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._files)

    def check(self, number: int) -> None:
        """Compares a file with its first state; waits for a file that has disappeared, see `WAITS_S`.

        Raises DataLost, with the name of the file, if it has changed or does not come back.
        """
        before, file = tuple(self._states[number].tolist()), self._files[number]
        if before == ABSENT:
            return
        for wait in (*WAITS_S, None):
            now = present(file)
            if now != ABSENT:
                break
            if wait is None:
                raise DataLost(
                    f"{file} has disappeared and did not come back in {sum(WAITS_S):g} s; restore it and run the same"
                    " command"
                )
            tqdm.write(printable(f"{file} has disappeared; looking again in {wait:g} s"), file=sys.stderr)
            time.sleep(wait)
        if now != before:
            raise DataLost(
                f"{file} has changed since the data set was opened ({before[0]:,} bytes then, {now[0]:,} now, or a"
                " later time of modification); restore it, with its time, and run the same command"
            )


def present(file: Path) -> tuple[int, int]:
    """Size in bytes and time of modification in nanoseconds; `ABSENT` if the file cannot be found."""
    try:
        status = file.stat()
    except (OSError, ValueError):  # ValueError: a null character in the path
        return ABSENT
    return status.st_size, status.st_mtime_ns
