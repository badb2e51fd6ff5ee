"""Makes the accelerator of this process: device, number of processes, precision, trackers; prints by it."""

import warnings

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import GradientAccumulationPlugin

from residual import native
from storage.show import printable
from training.compile import require_compiler
from training.config import TrainConfig
from training.memory import keep_freed_memory
from training.precision import choose_precision
from training.processes import process_state


def make_accelerator(config: TrainConfig) -> Accelerator:
    """An accelerator for this process; the main process prints device, number of processes and precision.

    Raises ValueError for a batch that the processes cannot share, for bf16 on hardware that does not support it, for
    CUDA graphs where they cannot be recorded, for unknown trackers, and as `require_compiler` does.
    """
    state = process_state()
    accumulation = config.accumulation(state.num_processes)
    precision, reason = choose_precision(config.precision, state.device)
    if config.cuda_graphs and (state.device.type != "cuda" or state.num_processes > 1 or accumulation > 1):
        found = f"device={state.device.type}, processes={state.num_processes}, micro-batches={accumulation}"
        raise ValueError(f"train.cuda_graphs=True needs one GPU, one process and no micro-batches, not {found}")
    _check_trackers(config.trackers)
    # The layout of 1x1 convolutions is ambiguous; the warning is harmless (pytorch#157862).
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
    if state.device.type == "cpu":
        accelerator.print(native.load())
        keep_freed_memory()
    if config.compile != "off":
        for line in require_compiler(*config.compile_option, state.device):
            accelerator.print(line)
    return accelerator


def show(accelerator: Accelerator, line: str) -> None:
    """Print a line on the main process; control characters are escaped."""
    accelerator.print(printable(line))


def _check_trackers(trackers: tuple[str, ...]) -> None:
    available = sorted(str(tracker) for tracker in get_available_trackers())
    for name in trackers:
        if name not in available:
            is_known = name in LOGGER_TYPE_TO_CLASS
            reason = f"not installed: pip install {name}, or leave it out" if is_known else "unknown"
            raise ValueError(f"train.trackers: {name!r} is {reason}; available: {', '.join(available) or 'none'}")
