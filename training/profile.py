"""`train.py --profile`: a trace of some updates, and a table of where their time goes."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, schedule

from storage.write import replace_file
from training.disk_space import ignore_disk_full

WARM_UP, UPDATES = 4, 3
"""updates of a process before those that are profiled, and their number"""
KINDS = {
    "data": r"^data$",
    "clipping": r"^clipping$",
    "optimizer": r"^optimizer$",
    "averaging": r"^averaging$",
    "communication": r"nccl|gloo|c10d|all_?reduce",
    "convolution": r"conv",
    "normalisation": r"norm",
    "attention": r"attention|softmax|bmm",
    "linear maps": r"linear|addmm|::mm$|matmul",
    "dropout": r"dropout|bernoulli",
    "activations": r"silu|relu|gelu",
}
"""Kinds of operations, by their names. The labels of `Step` come first."""


class Profile:
    """Profiles `UPDATES` updates after `WARM_UP` others; `step` is to be called after each update.

    Then the trace is in the file `trace` (Chrome's format, for https://ui.perfetto.dev), and the table is shown.
    """

    def __init__(self, trace: Path, device: torch.device, show: Callable[[str], object]) -> None:
        self.trace, self.device, self.show, self.is_done = trace, device, show, False
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        times = schedule(wait=WARM_UP - 1, warmup=1, active=UPDATES, repeat=1)
        self._profile = profile(activities=activities, schedule=times, on_trace_ready=self._write)
        self._profile.start()

    def step(self) -> None:
        """Count one update."""
        if not self.is_done:
            self._profile.step()

    def close(self) -> None:
        """End; shows a line if the run ended before all updates were profiled."""
        if not self.is_done:
            self._profile.on_trace_ready = None
            self._profile.stop()
            self.show(f"profile: none, because the run ended before {WARM_UP + UPDATES} updates")

    def _write(self, found: Any) -> None:
        self.is_done = True
        with ignore_disk_full():
            self.trace.parent.mkdir(exist_ok=True)
            replace_file(self.trace, lambda new: found.export_chrome_trace(str(new)))
        for line in table(found.events(), self.device):
            self.show(line)
        self.show(f"profile: {self.trace}, which https://ui.perfetto.dev opens")


def table(events: Iterable[FunctionEvent], device: torch.device) -> list[str]:
    """The lines of the table: milliseconds of an update and share by kind of operation, the largest first.

    On a GPU the time of the kernels that an operation starts counts, elsewhere that of the operation without those
    inside it. The rest of the time is Python, waiting, or code that torch.compile made.
    """
    events = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    steps = [event for event in events if event.name.startswith("ProfilerStep")]
    wall, spent = sum(step.time_range.elapsed_us() for step in steps), Counter[str]()
    for event in events:
        if event not in steps:
            time = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
            spent[kind(event)] += time
    spent["outside operations"] = max(0, wall - spent.total())
    updates = max(1, len(steps))
    lines = [f"where the time goes: {updates} updates of {wall / updates / 1e3:.1f} ms on {device.type}, profiled"]
    return lines + [
        f"  {name:<20}{time / updates / 1e3:>10.1f} ms {time / max(wall, 1):>7.1%}"
        for name, time in spent.most_common()
    ]


def kind(event: FunctionEvent) -> str:
    """The kind of an operation: that of the outermost operation or label around it that has one, or `other`."""
    names = list[str]()
    around: FunctionEvent | None = event
    while around is not None:
        names.append(around.name)
        around = around.cpu_parent
    for name in reversed(names):
        for found, pattern in KINDS.items():
            if re.search(pattern, name, re.IGNORECASE):
                return found
    return "other operations"
