"""Chooses precision and memory format for the hardware."""

from functools import cache
from pathlib import Path

import torch
from torch import nn

from residual import native
from residual.kernel_choice import has_kernel
from residual.prediction import fold_norms
from training.memory import keep_freed_memory

CPU_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def choose_precision(wanted: str, device: torch.device, setting: str = "train.precision") -> tuple[str, str]:
    """`(precision, reason)`, where precision is "bf16" or "float32". `setting` is the name of `wanted` in errors.

    Raises ValueError if bf16 is wanted on hardware that does not support it.
    """
    if wanted == "float32":
        return "float32", "as requested"
    if device.type == "cuda":
        found, what = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        flags = sorted(CPU_BF16_FLAGS & cpu_flags())
        found, what = bool(flags), f"this CPU with {', '.join(flags)}" if flags else "this CPU"
    else:
        found, what = False, device.type
    if wanted == "bf16" and not found:
        raise ValueError(f"{setting}=bf16: {what} has no bf16 instructions; use auto or float32")
    return ("bf16", f"{what} has it") if found else ("float32", f"{what} has no bf16 instructions")


def choose_memory_format(device: torch.device, bf16: bool, compiled: bool) -> torch.memory_format:
    """The faster layout of images and weights: channels last on a CPU in float32, and on CUDA if compiled.

    On a CPU in bf16 PyTorch's GroupNorm is slow in channels last, but the kernels (`residual/native.py`) are fast. On
    CUDA, uncompiled, every GroupNorm would copy to the other layout and back, without the kernel of Triton.
    """
    fast_norm = not bf16 or (native.library is not None and not compiled)
    channels_last = (device.type == "cpu" and fast_norm) or (
        device.type == "cuda" and (compiled or (bf16 and has_kernel(device)))
    )
    return torch.channels_last if channels_last else torch.contiguous_format


def place(network: nn.Module, device: torch.device, precision: str = "float32", compiled: bool = False) -> list[str]:
    """Moves a network to the device where it draws or classifies: in the faster layout, on a CPU with the kernels.

    With `precision="bf16"` its weights become bf16, too. With the kernels batch norms become part of the convolutions
    (`residual/prediction.py`). With `compiled` that is left to the compiler, and on a GPU the layout is another one.
    Returns lines to print: why the kernels of the CPU are not used, if they are not.
    """
    lines = []
    if device.type == "cpu":
        line = native.load()
        lines = [] if native.library is not None else [line]
        keep_freed_memory()
    bf16 = precision == "bf16"
    layout = choose_memory_format(device, bf16, compiled and device.type == "cuda")
    if device.type == "cpu" and native.library is not None and not compiled:
        fold_norms(network)
    network.to(device, torch.bfloat16 if bf16 else torch.float32, memory_format=layout)  # type: ignore[call-overload]
    return lines


@cache
def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Instruction sets of the CPU by their Linux names; empty on other systems."""
    if not path.exists():
        return set()
    lines = path.read_text().splitlines()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
