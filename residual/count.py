"""Parameters and multiply-adds, counted rather than estimated."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; buffers are not counted."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one forward pass: convolutions, linear maps and attention, as published tables count.

    Counted on the meta device on a copy of the model, so it needs no memory for activations and leaves `model` alone.
    Elementwise work (norms, activations, sums) is not counted.
    """
    return multiply_adds_of_parts(model, *inputs)[""]


def multiply_adds_of_parts(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """The multiply-adds of each submodule by its name, and under the empty name those of all; see `multiply_adds`.

    Submodules without any are left out.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    # The math backend decomposes attention into the two matrix products that the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        shadow(*(x.to("meta") for x in inputs))
    counts = {name.partition(".")[2]: sum(by_kind.values()) // 2 for name, by_kind in counter.flop_counts.items()}
    return counts | {"": counter.get_total_flops() // 2}


def machine_bytes() -> int | None:
    """Memory of this machine, or of the container around this process; None where the system does not tell."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    allowed = _CGROUP.read_text().strip() if _CGROUP.is_file() else ""
    return min(installed, int(allowed)) if allowed.isdecimal() else installed


def check_memory(make: Callable[[], nn.Module]) -> None:
    """Raises ValueError if the weights of the model that `make()` makes are more than this machine has memory.

    It is made on the meta device, which takes none. Where the system does not tell its memory nothing is checked.
    """
    if (have := machine_bytes()) is None:
        return
    try:
        with torch.device("meta"):
            needed = sum(t.numel() * t.element_size() for t in make().state_dict().values())
    except RuntimeError as error:
        if "overflow" not in str(error).lower():
            raise
        needed = 2**63
    if needed > have:
        raise ValueError(
            f"the weights alone would take {needed / 2**30:,.1f} GiB, and this machine has {have / 2**30:,.1f}: "
            "take fewer channels"
        )
