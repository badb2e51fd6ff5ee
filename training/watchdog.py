"""Ends a process that waits for another one which hangs.

A collective operation waits for all processes, for hours if one of them hangs. So the main thread marks what it does in
an update, and a thread of each process publishes that in the store of the process group. A process that waits ends if
another one has computed the same update for too long. There is no such limit for reading images, for the first update
of a process, which may compile, and between two updates, where evaluations and checkpoints are.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from training.processes import connect_again

EXIT_CODE = 69
"""Exit code of a process that waited for one that hangs: EX_UNAVAILABLE. The same command resumes the run."""
MAX_INTERVAL_S = 5.0
LOOKS = 200
"""how often a process looks at the others within the limit, unless that is more than `MAX_INTERVAL_S`"""

Phase = Literal["reading", "computing", "waiting", "between", "left"]


class Progress:
    """What the main thread of a process does. It sets an attribute, and nothing else."""

    def __init__(self) -> None:
        self.now: tuple[Phase, int, int] = "between", 0, 0
        """reads images; computes; waits for the other processes; is between two updates; or has left the loop. With the
        number of the update, from 1, and of the micro-batch, from 0"""

    def mark_waiting(self, model: torch.nn.Module) -> None:
        """Marks from now on that this process waits: for the buffers of the main process, and for the mean gradient.

        `model` is prepared for several processes; a model of one process has nothing to wait for.
        """
        if not isinstance(model, DistributedDataParallel):
            return
        sync_buffers = model._sync_buffers  # torch calls it before a forward pass, and has no hook for that

        def marked() -> None:
            where = self.now[1:]
            self.now = "waiting", *where
            sync_buffers()
            self.now = "computing", *where

        model._sync_buffers = marked  # type: ignore[method-assign]
        model.register_comm_hook(self, _average)


def _average(progress: Progress, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean over the processes, with the bits of `DistributedDataParallel` without a hook."""
    if bucket.is_last():
        progress.now = "waiting", *progress.now[1:]
    work = dist.all_reduce(bucket.buffer().mul_(1 / dist.get_world_size()), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


@runtime_checkable
class Store(Protocol):
    """What is used of a store of torch.distributed."""

    def set(self, key: str, value: str, /) -> Any: ...
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...


class State(NamedTuple):
    """What a process publishes."""

    phase: Phase
    update: int
    micro_batch: int
    beats: int
    """how often it has published"""


class Watchdog:
    """Publishes the `progress` of this process, and finds another one that keeps it waiting for `limit_s` seconds.

    To be made by every process before the update `first`, which has no limit.
    """

    def __init__(
        self,
        progress: Progress,
        rank: int,
        ranks: int,
        limit_s: float,
        first: int,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress, self.rank, self.ranks, self.limit_s = progress, rank, ranks, limit_s
        self.first = first
        self.interval_s = min(limit_s / LOOKS, MAX_INTERVAL_S)
        self._store, self._clock, self._beats = store, clock, 0
        self._since: dict[Any, tuple[Any, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._publish()

    def start(self) -> None:
        """Start the thread, in which this process ends if another one hangs."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._ended.set()
        self._thread.join(MAX_INTERVAL_S)
        self.progress.now = "left", 0, 0
        with suppress(RuntimeError):
            self._publish()

    def look(self) -> str | None:
        """Publish the progress; if another process hangs that this one waits for, the message about it.

        Of several processes that wait the first one has the message, and the others an empty one.
        """
        own = self._publish()
        if own.phase != "waiting" or own.update <= self.first or self._unchanged_s("own", own[:3]) == 0:
            return None
        others = [rank for rank in range(self.ranks) if rank != self.rank]
        found = self._store.multi_get([_key(rank) for rank in others])
        states = {rank: State(*json.loads(text)) for rank, text in zip(others, found, strict=True)}
        problem = self._problem(own, states)
        first = min([self.rank, *(rank for rank, state in states.items() if state.phase == "waiting")])
        return problem if problem is None or self.rank == first else ""

    def _problem(self, own: State, states: dict[int, State]) -> str | None:
        working = {rank: self._unchanged_s(rank, state[:3]) for rank, state in states.items()}
        silent = {rank: self._unchanged_s((rank, "beats"), state.beats) for rank, state in states.items()}
        same = {rank: state.phase for rank, state in states.items() if state.update == own.update}
        for rank, state in states.items():
            if state.phase != "left" and silent[rank] >= self.limit_s:
                return f"process {rank} has not responded for {silent[rank]:.0f} s, and update {own.update:,} needs it"
            if state.phase == "computing" and rank in same and working[rank] >= self.limit_s:
                return f"process {rank} has computed update {own.update:,} for {working[rank]:.0f} s"
        if list(same.values()) == ["waiting"] * len(states) and min(working.values()) >= self.limit_s:
            return (
                f"all processes have waited in update {own.update:,} for {self.limit_s:g} s: a device or network hangs"
            )
        return None

    def _publish(self) -> State:
        self._beats += 1
        state = State(*self.progress.now, self._beats)
        self._store.set(_key(self.rank), json.dumps(state))
        return state

    def _unchanged_s(self, name: Any, value: Any) -> float:
        """For how many seconds the calls with this `name` have had this `value`."""
        now = self._clock()
        if name not in self._since or self._since[name][0] != value:
            self._since[name] = value, now
        return now - self._since[name][1]

    def _watch(self) -> None:
        while not self._ended.wait(self.interval_s):
            try:
                problem = self.look()
            except RuntimeError as error:
                _warn(error)
                return
            if problem is not None:
                _leave(problem, self.limit_s)


@contextmanager
def watching(progress: Progress, limit_s: float, first: int) -> Iterator[None]:
    """Inside the block this process ends if another one hangs, see `Watchdog`. With one process nothing is done."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    try:
        watchdog = Watchdog(progress, dist.get_rank(), dist.get_world_size(), limit_s, first, connect_again())
    except RuntimeError as error:
        _warn(error)
        yield
        return
    watchdog.start()
    try:
        yield
    finally:
        watchdog.close()


def _warn(error: RuntimeError) -> None:
    """Prints that the store is gone. It is that of the launcher, whose end `Stop` notices."""
    reason = str(error).partition("\n")[0]
    print(f"note: processes that hang are no longer noticed: {reason}", file=sys.stderr, flush=True)


def _leave(problem: str, limit_s: float) -> None:
    """Ends this process, whose main thread is in a collective operation that cannot be interrupted."""
    if problem:
        way_out = f"train.hang_seconds={limit_s:g} is the limit; the same command resumes from the newest checkpoint"
        print(f"{Path(sys.argv[0]).name}: error: {problem}; {way_out}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


def _key(rank: int) -> str:
    return f"residual watchdog {rank}"
