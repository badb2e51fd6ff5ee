"""Counts the project's files whose code runs during a call: how many a reader opens to follow it.

    python -m tests.files_passed

lists the files of one training update of configs/digits-tiny.yaml.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType

from tasks import RUNS
from training.accelerator import make_accelerator
from training.cli import parse
from training.data import open_images
from training.step import Step

ROOT = Path(__file__).parents[1]
LIMIT = 20


def files_passed(call: Callable[[], object]) -> list[str]:
    """The files of the project, relative to its root, whose functions run during `call`, in any thread.

    Threads that were started before are not seen.
    """
    names: set[str] = set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            names.add(frame.f_code.co_filename)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    paths = (Path(name) for name in names)
    inside = (path.relative_to(ROOT) for path in paths if path.is_relative_to(ROOT))
    return sorted(str(path) for path in inside if path.parts[0] not in ("tests", ".venv"))


def one_update() -> list[str]:
    """The files of the first update of configs/digits-tiny.yaml, which also starts the thread that reads images."""
    run = parse(RUNS, ["--config", str(ROOT / "configs" / "digits-tiny.yaml")]).run
    images = open_images(run.data)
    with closing(Step(run.build(images), images, run, make_accelerator(run.train))) as step:
        return files_passed(step.update)


if __name__ == "__main__":
    found = one_update()
    print("\n".join(found), f"\n{len(found)} files in one training update, at most {LIMIT}")
    raise SystemExit(len(found) > LIMIT)
