"""The number of images that are drawn for metrics within `quality.seconds`, from a short trial of the sampler."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from storage.read import read_json
from storage.write import write_text
from training.disk_space import ignore_disk_full
from training.processes import gather, on_main, process_state

RECORD = "quality.json"
"""in the folder of evaluations: the number that was chosen, and for what"""
TRIAL_SECONDS = 0.5
"""A step of the sampler that takes longer is not tried with more images."""


def seconds_per_image(
    denoising: Callable[..., Iterator[Tensor]],
    labels: Sequence[int] | None,
    batch: int,
    steps: int,
    given: Callable[[Sequence[int]], Mapping[str, Any]] = lambda numbers: {},
    **options: Any,
) -> float:
    """How long the slowest process takes to draw an image, in batches of `batch`; to be called on every process.

    Times the first two steps of the sampler for more and more images, each number twice because the first trial may
    load kernels. The slower step counts: a first step from pure noise may need fewer evaluations of the network than
    the others. `labels` has at least `batch` of them; `denoising`, `given` and `options` are those of a
    `DiffusionModel`.
    """
    device, count = process_state().device, 1
    while True:
        for _ in range(2):
            numbers, some = range(count), labels and labels[:count]
            drawing = denoising(numbers, some, steps=steps, device=device, **given(numbers), **options)
            next(drawing).sum().item()  # the noise
            moments = [time.perf_counter()]
            for _ in range(min(2, steps)):
                next(drawing).sum().item()  # waits for the device
                moments.append(time.perf_counter())
            seconds = max(after - before for before, after in pairwise(moments))
        if count == batch or seconds > TRIAL_SECONDS:
            return max(gather([seconds * steps / count]))
        count = min(batch, 8 * count)


def choose_count(
    most: int, least: int, affordable: float, facts: Mapping[str, Any], folder: Path, record: bool
) -> tuple[int, str]:
    """How many of `most` images are drawn if only so many are `affordable`; the number, and a text with the reason.

    At least `least`. The number that was chosen before for the same `facts` is kept, so that all points of a curve have
    it; it is in `folder`, where a new one is written with `record`. To be called on every process.
    """
    facts = json.loads(json.dumps(dict(facts)))

    def choose() -> tuple[int, str]:
        try:
            stored = read_json(folder / RECORD)
        except (ValueError, OSError):
            stored = {}
        count = stored.get("images")
        if stored.get("facts") == facts and isinstance(count, int) and least <= count <= most:
            return count, "as before"
        count = int(max(least, min(most, affordable)))
        if record:
            folder.mkdir(parents=True, exist_ok=True)
            with ignore_disk_full():
                write_text(folder / RECORD, json.dumps({"images": count, "facts": facts}, indent=2) + "\n")
        rule = "the least for the judge, more than" if affordable < least else "the most that"
        return count, f"{rule} quality.seconds={facts['seconds']:g} allows"

    count, reason = on_main(choose)
    return count, f"{count:,} of {most:,} images ({reason})" if count < most else f"{count:,} images"
