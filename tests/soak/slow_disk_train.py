"""train.py on a disk that is slow at times: while the file `slow` exists, each flush and each renaming takes longer.

The file is in the current folder and holds the additional seconds.
"""

import os
import runpy
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SLOW = Path("slow")


def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function after a pause, if the disk is slow."""

    def later(*args: Any, **options: Any) -> Any:
        with suppress(OSError, ValueError):
            time.sleep(float(SLOW.read_text()))
        return call(*args, **options)

    return later


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # as if train.py were the script
    os.fsync, os.rename, os.replace = slowly(os.fsync), slowly(os.rename), slowly(os.replace)
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
