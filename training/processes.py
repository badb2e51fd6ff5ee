"""Processes of a distributed run: joining, calling a function on the main process only, leaving."""

import gc
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others: long enough for one of them to decode a large data set."""
CONNECT = timedelta(seconds=20)
"""How long a process tries, twice, to connect with its launcher; it takes milliseconds unless the launcher is gone."""

LAUNCHER = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
    "ACCELERATE_DYNAMO_BACKEND": "torch.compile by the launcher",
}
"""variables by which accelerate's launcher requests what this trainer does not do"""
COUNTS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
"""variables with numbers that launchers set"""


def check_environment() -> None:
    """Raises ValueError for variables of a launcher that ask for what this trainer does not do, or make no sense."""
    for name, what in LAUNCHER.items():
        if (value := os.environ.get(name, "")).lower() not in ("", "0", "false", "no"):
            raise ValueError(
                f"{name}={value}: {what} is not supported. Each process holds the whole model; launch with "
                "`accelerate launch --multi_gpu` or torchrun, and see train.compile and train.micro_batch"
            )
    for name in COUNTS:
        if not (value := os.environ.get(name, "0")).removeprefix("-").isdecimal():
            raise ValueError(f"{name}={value!r} in the environment is not a number; a launcher sets it, so unset it")


def process_state() -> PartialState:
    """Rank, number of processes and device of this process. The first call joins the process group.

    Raises ValueError as `check_environment` does, if a launcher started several processes that do not see each other,
    and if the launcher cannot be reached.
    """
    check_environment()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT, **store_of_launcher())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != state.num_processes:
        raise ValueError(
            f"WORLD_SIZE={launched} processes were launched, but each would train alone; "
            "without GPUs, set ACCELERATE_USE_CPU=1"
        )
    return state


def on_main(function: Callable[[], T]) -> T:
    """Call `function` on the main process only; every process waits, and returns its result or raises its error.

    Otherwise an error on the main process would leave the others waiting. Results must be picklable. Raises
    ProcessFailed as `meet` does.
    """
    outcome: list = [None, None]
    if process_state().is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    meet()
    result, raised = broadcast_object_list(outcome)
    if raised is not None:
        raise raised
    return result


def largest(number: int) -> int:
    """The largest of the numbers of all processes, on each of them. They wait for each other, and for no device."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return number
    vote = torch.tensor(number)
    dist.all_reduce(vote, dist.ReduceOp.MAX, _voters(dist.group.WORLD))
    return int(vote)


@lru_cache(maxsize=1)
def _voters(world: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """All processes of the group `world`, exchanging numbers on the CPU."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


def shared_error(error: Exception | None) -> Exception | None:
    """The error of the first process that has one, on all of them; every process waits. Errors must be picklable."""
    return next((found for found in gather_object([error]) if found is not None), None)


class ProcessFailed(Exception):
    """Some processes failed in an `attempt`; the message is the reason, the same on every process."""


def meet(problem: str | None = None) -> None:
    """Wait for all processes. Raises ProcessFailed on every one if one of them comes with a `problem`.

    Whatever processes do together within an `attempt` begins with this, so that one that fails can leave it.
    """
    if not largest(int(problem is not None)):
        return
    problems = gather_object([problem])
    failed = {rank: text for rank, text in enumerate(problems) if text is not None}
    rank, text = next(iter(failed.items()))
    raise ProcessFailed(text if len(failed) == len(problems) else f"process {rank}: {text}")


def gather(values: list[T]) -> list[T]:
    """The values of all processes in one list, as accelerate's `gather_object`; raises ProcessFailed as `meet` does."""
    meet()
    return gather_object(values)


def attempt(function: Callable[[], T], describe: Callable[[Exception], str]) -> tuple[T, None] | tuple[None, str]:
    """Call `function` on every process. Its result; or None and the reason, if it failed on at least one of them.

    All processes have the same outcome. `describe` makes the reason of an error. Within `function` processes exchange
    nothing except by `on_main`, `gather` and `meet`.
    """
    try:
        try:
            result = function()
        except ProcessFailed:
            raise
        except Exception as error:
            meet(describe(error))
            raise
        meet()
    except ProcessFailed as failure:
        return None, str(failure)
    return result, None


def connect_again() -> dist.Store:
    """Another connection to the store of the process group, for another thread.

    Raises DistNetworkError if the process that holds the store (torchrun, or else the first process) is gone.
    """
    store = dist.distributed_c10d._get_default_store()
    store.set_timeout(CONNECT)
    try:
        return store.clone()  # type: ignore[attr-defined]  # the stubs lack it
    finally:
        store.set_timeout(TIMEOUT)


def leave_processes(accelerator: Accelerator | None = None, exit_code: int = 0) -> None:
    """Leave the process group and exit: the last call of a script. With several processes it does not return.

    Prepared models hold the process group, so they are released first. A thread of the group that still runs while the
    interpreter shuts down would abort the process; so with several processes this one exits here, without shutdown.
    """
    several = process_state().num_processes > 1
    if accelerator is not None:
        accelerator.free_memory()
        accelerator.end_training()
    elif several:
        gc.collect()
        process_state().destroy_process_group()
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    if exit_code:
        raise SystemExit(exit_code)


def store_of_launcher() -> dict[str, Any]:
    """The store of torchrun, as arguments of the process group; none without torchrun, or if the group exists.

    PyTorch would try to connect with a torchrun that is gone for as long as processes wait for each other. For
    processes that torchrun has restarted, the store is free of the addresses of those that died: torchrun passes the
    same store to every attempt (pytorch#135712). Only on a single machine is its count of restarts known to be the same
    for all processes; on several, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return {}
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store: dist.Store = dist.TCPStore(address, port, world_size, is_master=False, timeout=CONNECT)
    except dist.DistNetworkError:
        raise ValueError(f"the launcher at {address}:{port} cannot be reached; launch the same command again") from None
    store.set_timeout(TIMEOUT)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if restarts and int(os.environ.get("GROUP_WORLD_SIZE", 0)) == 1:
        store = dist.PrefixStore(f"restart {restarts}", store)
    return {"store": store, "rank": rank, "world_size": world_size}
