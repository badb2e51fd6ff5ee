"""One accelerator for one process, several GPUs or several machines: everything distributed is accelerate's."""

import gc
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, parse_flag_from_env

from training.config import TrainConfig

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others before it gives up: long enough for one to decode a large data set."""

CPU_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def make_accelerator(config: TrainConfig) -> Accelerator:
    """An accelerator for this process, with the precision resolved; the main process prints the choice.

    Raises ValueError for a batch that the processes cannot share, for bf16 without hardware, and for unknown trackers.
    """
    state = process_state()
    accumulation = config.accumulation(state.num_processes)
    precision, reason = choose_precision(config.precision, state.device)
    _check_trackers(config.trackers)
    # of 1x1 convolutions, whose layout is ambiguous: nothing is wrong or slow (pytorch#157862)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if state.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every update has the same shapes
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    processes = f", {state.num_processes} processes" if state.num_processes > 1 else ""
    accelerator.print(f"device: {state.device.type}{processes}; precision: {precision} ({reason})")
    return accelerator


def process_state() -> PartialState:
    """This process among its peers; the first call joins them, with a timeout.

    Raises ValueError where a launcher started several processes that do not see each other.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT, **_store())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != state.num_processes:
        raise ValueError(
            f"WORLD_SIZE={launched} processes were launched, but each would train alone; "
            "without GPUs, set ACCELERATE_USE_CPU=1"
        )
    return state


def _store() -> dict[str, Any]:
    """Where processes that torchrun has restarted find each other: not among the addresses of those that died.

    torchrun hands the same store to every attempt (pytorch#135712). Its count of restarts is only known to be the same
    for all on one machine; for several there is TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    found = {name: int(os.environ.get(name, 0)) for name in ("TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE")}
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarted = shared and found["TORCHELASTIC_RESTART_COUNT"] > 0 and found["GROUP_WORLD_SIZE"] == 1
    if not restarted or dist.is_initialized():
        return {}
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world_size, is_master=False)
    prefix = f"restart {found['TORCHELASTIC_RESTART_COUNT']}"
    return {"store": dist.PrefixStore(prefix, store), "rank": rank, "world_size": world_size}


def leave_processes(accelerator: Accelerator | None = None, exit_code: int = 0) -> None:
    """Ends this process's part among its peers: the last call of a script. Where there are peers it does not return.

    Prepared models hold the process group, so they go first. A thread of the group that is still at work while the
    interpreter shuts down aborts the process; so with peers the process ends here, without that.
    """
    peers = process_state().num_processes > 1
    if accelerator is not None:
        accelerator.free_memory()
        accelerator.end_training()
    elif peers:
        gc.collect()
        process_state().destroy_process_group()
    if peers:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    if exit_code:
        raise SystemExit(exit_code)


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """`(precision, reason)`, where precision is "bf16" or "float32".

    Raises ValueError if bf16 is wanted on hardware that does not have it.
    """
    if wanted == "float32":
        return "float32", "as asked"
    if device.type == "cuda":
        found, what = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        flags = sorted(CPU_BF16_FLAGS & cpu_flags())
        found, what = bool(flags), f"this CPU with {', '.join(flags)}" if flags else "this CPU"
    else:
        found, what = False, device.type
    if wanted == "bf16" and not found:
        raise ValueError(f"train.precision=bf16: {what} has no bf16 instructions; use auto or float32")
    return ("bf16", f"{what} has it") if found else ("float32", f"{what} has no bf16 instructions")


def choose_memory_format(device: torch.device, bf16: bool, compiled: bool) -> torch.memory_format:
    """The layout of images and weights that trains faster: channels last on a CPU in float32 and on CUDA if compiled.

    On a CPU in bf16 it is slower; uncompiled on CUDA every GroupNorm would copy to the other layout and back.
    """
    faster = (device.type == "cpu" and not bf16) or (device.type == "cuda" and compiled)
    return torch.channels_last if faster else torch.contiguous_format


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Instruction sets of the CPU as Linux names them; empty elsewhere."""
    if not path.exists():
        return set()
    lines = path.read_text().splitlines()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def on_main(function: Callable[[], T]) -> T:
    """Call `function` on the main process only; every process waits, and returns its result or raises its error.

    Without this an error on the main process would leave the others waiting for it. Results must be picklable.
    """
    outcome: list = [None, None]
    if process_state().is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    result, raised = broadcast_object_list(outcome)
    if raised is not None:
        raise raised
    return result


def _check_trackers(trackers: tuple[str, ...]) -> None:
    available = sorted(str(tracker) for tracker in get_available_trackers())
    for name in trackers:
        if name not in available:
            reason = "not installed" if name in LOGGER_TYPE_TO_CLASS else "unknown"
            raise ValueError(f"train.trackers: {name!r} is {reason}; available here: {', '.join(available) or 'none'}")
