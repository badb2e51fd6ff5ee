"""Compares calls by timing them in turn: ratios of times within a round, with an interval and an A/A control.

The first call of a mapping is the reference. The call named `CONTROL` is a second copy of it: the ratio of the two
shows what the machine makes of equal work. Each round times every call once, in an order that changes. Reported are
the median of the ratios over the rounds and its 95 % bootstrap interval.
"""

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from residual.names import amount

Call = Callable[[], object]
CONTROL = "ours again (control)"
BAND = (0.95, 1.05)
"""the median ratio of the control must lie in it"""
SHORTEST = 0.5
"""seconds: a shorter call is repeated until it takes as long, so that its weights are in the cache, as in sampling"""
RESAMPLES = 2000


@dataclass(frozen=True)
class Plan:
    """How calls are timed."""

    rounds: int
    """rounds in which each call is timed once"""
    warm_up: int = 3
    """calls before, which are not counted"""
    clock: Callable[[], float] = time.perf_counter
    load: str | None = None
    """the work of other processes, if there is so much of it that nothing can be judged"""


@dataclass(frozen=True)
class Ratio:
    """The median over the rounds of a time divided by that of the reference, and its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Timings:
    """Seconds of each call in each round."""

    seconds: Mapping[str, np.ndarray]
    load: str | None = None
    """the work of other processes, if there was so much of it that nothing can be judged"""
    failed: Mapping[str, str] = field(default_factory=dict)
    """why a call could not be timed"""

    def median(self, name: str) -> float:
        """The median time of a call in seconds."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str) -> Ratio:
        """The time of a call divided by that of the reference."""
        reference = next(iter(self.seconds.values()))
        ratios = self.seconds[name] / reference
        drawn = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
        low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
        return Ratio(float(np.median(ratios)), float(low), float(high))

    @property
    def doubt(self) -> str | None:
        """Why these timings are not judged; None if they are."""
        if self.load is not None or CONTROL not in self.seconds:
            return self.load
        control = self.ratio(CONTROL)
        if BAND[0] <= control.median <= BAND[1]:
            return None
        return f"the control is {control.median:.3f}, outside {BAND[0]} to {BAND[1]}"

    def verdict(self, name: str) -> str:
        """Whether the reference is faster than a call: only if the intervals of its ratio and of the control differ."""
        if self.doubt is not None:
            return "not judged"
        ratio, low, high = self.ratio(name), 1.0, 1.0
        if CONTROL in self.seconds:
            control = self.ratio(CONTROL)
            low, high = min(low, control.low), max(high, control.high)
        return "slower than ours" if ratio.low > high else "faster than ours" if ratio.high < low else "no difference"

    def table(self, title: str, images: int) -> str:
        """A table in Markdown; a call computes so many images."""
        lines = [
            f"| {title} | time | images/s | time / ours: median (95 %) | verdict |",
            "|---|---|---|---|---|",
        ]
        for i, name in enumerate(self.seconds):
            middle = self.median(name)
            rate = images / middle
            compared = f"{self.ratio(name)} | {'' if name == CONTROL else self.verdict(name)}" if i else " | "
            lines.append(
                f"| {name} | {show_seconds(middle)} | {rate:{',.0f' if rate >= 100 else '.3g'}} | {compared} |"
            )
        lines += [f"| {name} | {reason} | | | |" for name, reason in self.failed.items()]
        rounds = len(next(iter(self.seconds.values())))
        doubt = "" if self.doubt is None else f" Not judged: {self.doubt}."
        return "\n".join([*lines, "", f"{amount(rounds, 'round')}.{doubt}", ""])


def show_seconds(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit, factor = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * factor:.3g} {unit}"


def add_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Adds the options that every comparison has."""
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds in which each candidate is timed once")
    parser.add_argument("--warm-up", type=int, default=3, help="calls of each candidate that are not counted")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU; one gives the steadiest ratios")
    parser.add_argument("--any-load", action="store_true", help="measure beside other processes, unjudged")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure the time of the CPU, in which others do not count"
    )


def start(args: argparse.Namespace) -> Plan:
    """Sets the number of threads, prints the machine, and returns how to time.

    Raises ValueError for numbers out of range, and for a machine without free cores, unless `args.any_load`.
    """
    for name in ("rounds", "warm_up", "threads"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(args, name)} is too small; give at least 1")
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    found = f"a load of {load:.1f} on {cores} cores leaves no room for {amount(args.threads, 'thread')}"
    loaded = load + args.threads > cores + 0.5
    if loaded and not args.any_load:
        raise ValueError(f"{found}; wait, or measure without a verdict by --any-load")
    torch.set_num_threads(args.threads)
    clock, name = (time.process_time, "CPU") if args.cpu_time else (time.perf_counter, "wall-clock")
    print(f"{machine()}; {amount(args.threads, 'thread')}; {name} time; load {load:.1f} on {cores} cores\n", flush=True)
    return Plan(args.rounds, args.warm_up, clock, found if loaded else None)


def machine() -> str:
    """The processor, or the GPU, and the version of torch."""
    model = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    if torch.cuda.is_available():
        model = f"{torch.cuda.get_device_name()}, host {model}"
    return f"{model}; torch {torch.__version__}"


def orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The names in another order each round: in turn first, in turn forwards and backwards."""
    for k in range(rounds):
        first = k // 2 % len(names)
        order = [*names[first:], *names[:first]]
        yield order if k % 2 == 0 else order[::-1]


def measure(calls: Mapping[str, Call], plan: Plan) -> Timings:
    """Times the calls. One that raises a RuntimeError during its warm-up is left out, with the reason."""
    repeats, failed = dict[str, int](), dict[str, str]()
    for name, call in calls.items():
        try:
            for _ in range(plan.warm_up):
                took = seconds_of(call, plan.clock)
        except RuntimeError as error:
            failed[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        else:
            repeats[name] = max(1, math.ceil(SHORTEST / max(took, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in repeats}
    for order in orders(list(repeats), plan.rounds):
        for name in order:
            times[name].append(seconds_of(calls[name], plan.clock, repeats[name]))
    return Timings({name: np.array(column) for name, column in times.items()}, plan.load, failed)


def seconds_of(call: Call, clock: Callable[[], float] = time.perf_counter, repeats: int = 1) -> float:
    """Seconds per call, with the work that it queues on the device."""
    synchronize()
    began = clock()
    for _ in range(repeats):
        call()
    synchronize()
    return (clock() - began) / repeats


def synchronize() -> None:
    """Waits for the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
