"""Memory of model, gradients, optimizer, EMA and activations, compared with that of the device."""

import copy
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks

from residual.count import parameters
from training.freeze import frozen_names
from training.units import show_count, show_size

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_FREE = Path("/proc/meminfo")
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # numbers of glibc's malloc.h
_NO_MEMORY = r"(?i)out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|alloc_failed"


def require_memory(
    outline: Callable[[], nn.Module],
    freeze: Sequence[str],
    device: torch.device,
    optimizer_slots: int,
    averages: int = 1,
) -> None:
    """Raises ValueError if model and optimizer alone would not fit into the memory of `device`.

    `outline` makes the model on the meta device; `freeze` as in `training.freeze`, `optimizer_slots` as in
    `Optimizer.slots`, `averages` their number.
    """
    available = total_bytes(device)
    if available is None:
        return
    try:
        model = outline()
        needed = state_bytes(model, optimizer_slots, frozen_names(model, freeze), averages)
        count = show_count(parameters(model), 3)
        what = f"{show_size(needed)} (weights, gradients, optimizer, EMA of {count} parameters)"
    except (RuntimeError, TypeError) as error:  # a product of sizes, or a size, beyond 64 bits
        if "overflow" not in str(error).lower():
            raise
        needed, what = available + 1, "more than 2^63 bytes"
    if needed > available:
        raise ValueError(
            f"training this model takes {what}, but {device.type} has {show_size(available)} for each process; "
            "use a smaller model or a larger machine"
        )


def total_bytes(device: torch.device) -> int | None:
    """Memory of the device, used or not, for each of its processes; None if the system does not report it.

    For the CPU that of the machine, or the limit of the container.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    allowed = _CGROUP.read_text().strip() if _CGROUP.is_file() else ""
    available = min(installed, int(allowed)) if allowed.isdecimal() else installed
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def free_bytes(device: torch.device) -> int | None:
    """Unused memory of the device, for each of its processes; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not _FREE.is_file() or (total := total_bytes(device)) is None:
        return None
    found = re.search(r"MemAvailable:\s*(\d+) kB", _FREE.read_text())
    return None if found is None else min(total, 1024 * int(found[1]) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory of the machine or of the device could not be allocated."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(_NO_MEMORY, str(error)) is not None


@contextmanager
def explain_out_of_memory(what: str, way_out: str) -> Iterator[None]:
    """Raises ValueError, which names `what` was too large and the `way_out`, if memory runs out inside the block."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"{what} needs more memory than there is; {way_out}") from error


def keep_freed_memory() -> None:
    """Lets the process keep the CPU memory of freed tensors for its next ones, where glibc allocates it.

    By default glibc returns large blocks to the system, and every page of a new block costs a fault at its first use.
    Its variables MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and GLIBC_TUNABLES in the environment have precedence.
    """
    given = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ)
    if sys.platform != "linux" or given:
        return
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def state_bytes(model: nn.Module, optimizer_slots: int, frozen: frozenset[str] = frozenset(), averages: int = 1) -> int:
    """Bytes of weights and their averages, and of gradients and the optimizer's slots where weights are trained."""
    return (1 + averages) * model_bytes(model) + (1 + optimizer_slots) * trained_bytes(model, frozen)


def activation_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes that autograd stores for the backward pass of `model(*inputs)`, without parameters and buffers.

    Measured by a forward pass on the meta device, which computes nothing. Tensors that share memory count once.
    """
    shadow = copy.deepcopy(model).to("meta").train()
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # a reference, so that no other storage gets the same address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow(*(x.to("meta") for x in inputs))
    for tensor in (*shadow.parameters(), *shadow.buffers()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


def checkpoint_bytes(model: nn.Module, optimizer_slots: int, averages: int = 1) -> int:
    """Bytes of a checkpoint: weights and their averages, and the optimizer's slots where weights are trained."""
    return state_bytes(model, optimizer_slots, averages=averages) - trained_bytes(model)


def model_bytes(model: nn.Module) -> int:
    """Bytes of the weights in a model folder, and of the buffers that belong to them."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def saved_bytes(model: nn.Module, optimizer_slots: int, checkpoints: int = 1, averages: int = 1) -> int:
    """Bytes of that many checkpoints and of the model folder."""
    return checkpoints * checkpoint_bytes(model, optimizer_slots, averages) + model_bytes(model)


def trained_bytes(model: nn.Module, frozen: frozenset[str] = frozenset()) -> int:
    """Bytes of the weights that are trained, and so of their gradients."""
    return sum(p.nbytes for name, p in model.named_parameters() if p.requires_grad and name not in frozen)
