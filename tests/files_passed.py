"""Lists the project's files whose code runs during a call: those that a reader opens to follow it.

    python -m tests.files_passed

prints the files of one training update of configs/digits-tiny.yaml and of one sample, as docs/architecture.md has them.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType

from tasks import RUNS
from tasks.denoising import DiffusionTask
from training.accelerator import make_accelerator
from training.cli import parse
from training.data import open_images
from training.step import Step

ROOT = Path(__file__).parents[1]
TINY = ["--config", str(ROOT / "configs" / "digits-tiny.yaml")]


def files_passed(call: Callable[[], object]) -> list[str]:
    """The files of the project whose functions run during `call`, in the order of their first use.

    Relative to the root of the project. Every thread counts, but threads that were started before are not seen.
    """
    names: dict[str, None] = {}

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            names.setdefault(frame.f_code.co_filename)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    paths = (Path(name) for name in names)
    inside = (path.relative_to(ROOT) for path in paths if path.is_relative_to(ROOT))
    return [path.as_posix() for path in inside if path.parts[0] not in ("tests", ".venv")]


def one_update() -> list[str]:
    """The files of the first update, which also starts the thread that reads images."""
    run = parse(RUNS, TINY).run
    images = open_images(run.data)
    with closing(Step(run.build(images), images, run, make_accelerator(run.train))) as step:
        return files_passed(step.update)


def one_sample() -> list[str]:
    """The files of one image of a class, drawn by `ddim`."""
    run = parse(RUNS, TINY).run
    task = run.build(open_images(run.data))
    assert isinstance(task, DiffusionTask)
    return files_passed(lambda: task.diffusion.draw([0], [3], sampler="ddim", steps=10))


if __name__ == "__main__":
    for name, files in {"one update": one_update(), "one sample": one_sample()}.items():
        print(f"{name}, {len(files)} files:", *files, sep="\n    ")
